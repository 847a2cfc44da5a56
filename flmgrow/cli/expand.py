"""``flmgrow expand``: grow a checkpoint, and lay it out anew, in one pass."""

from dataclasses import replace

from flmgrow.cli import options
from flmgrow.cli.asked import FileOptions, GrowthOptions, LayoutOptions
from flmgrow.cli.grouped import grouped
from flmgrow.cli.in_ranks import in_ranks
from flmgrow.cli.reading import SourceOptions
from flmgrow.cli.running import Running, carry_out
from flmgrow.cli.target_file import read_target_file
from flmgrow.planned import plan_of, requested


@grouped
@in_ranks
def expand(
    src: options.Source,
    dst: options.Destination,
    *,
    growth: GrowthOptions,
    layout: LayoutOptions,
    iteration: options.Iteration = None,
    no_optimizer: options.NoOptimizer = False,
    files: FileOptions,
    reading: SourceOptions,
    running: Running,
) -> None:
    """Grow a checkpoint so that its function does not change.

    Any subset of width, FFN, heads, depth and vocabulary grows in one pass, into any layout. The
    result appears complete or not at all; after an interruption the same command resumes.

    \b
    Example: flmgrow expand ckpt-16b ckpt-51b --hidden-size 8192 --num-layers 62 --tp 4 --pp 2
    """
    request = requested(
        read_target_file(growth.to),
        **growth.asked(),
        **layout.asked(),
        **files.asked(),
        no_optimizer=no_optimizer,
        untie=reading.untie or None,
    )
    if reading.untie is None:
        reading = replace(reading, untie=request.target.untie)
    with reading.open(src, iteration) as source:
        carry_out(plan_of(source, request), dst, replace(running, init_std=growth.init_std))
