"""``flmgrow reshard``: the identity growth to another layout."""

from flmgrow.cli import options
from flmgrow.cli.asked import FileOptions, LayoutOptions
from flmgrow.cli.grouped import grouped
from flmgrow.cli.in_ranks import in_ranks
from flmgrow.cli.reading import SourceOptions
from flmgrow.cli.running import Running, carry_out
from flmgrow.planned import plan_of, requested


@grouped
@in_ranks
def reshard(
    src: options.Source,
    dst: options.Destination,
    *,
    layout: LayoutOptions,
    iteration: options.Iteration = None,
    no_optimizer: options.NoOptimizer = False,
    files: FileOptions,
    reading: SourceOptions,
    running: Running,
) -> None:
    """Lay a checkpoint out for another tensor x pipeline parallelism; weights stay bit for bit.

    \b
    Example: flmgrow reshard ckpt-tp2 ckpt-tp4pp4 --tp 4 --pp 4
    """
    request = requested(**layout.asked(), **files.asked(), no_optimizer=no_optimizer)
    with reading.open(src, iteration) as source:
        carry_out(plan_of(source, request), dst, running)
