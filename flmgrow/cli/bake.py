"""``flmgrow bake``: put masks into the weights, once their ramp is done or for a stock trainer."""

from typing import Annotated

import typer

from flmgrow.cli import options
from flmgrow.cli.grouped import grouped
from flmgrow.cli.in_ranks import in_ranks
from flmgrow.cli.reading import SourceOptions
from flmgrow.cli.running import Running, carry_out
from flmgrow.planned import plan_bake

Value = Annotated[
    float | None,
    typer.Option(min=0.0, max=1.0, help="Mask value to bake at, instead of the recorded one."),
]


@grouped
@in_ranks
def bake(
    src: options.Source,
    dst: options.Destination,
    value: Value = None,
    iteration: options.Iteration = None,
    no_optimizer: options.NoOptimizer = False,
    *,
    reading: SourceOptions,
    running: Running,
) -> None:
    """Put the masks of a growth into the weights; the result is an ordinary checkpoint.

    FFN, head and depth masks can be baked at any value, a width mask only at 1.

    \b
    Example: flmgrow bake ckpt-51b ckpt-51b-plain --value 1
    """
    with reading.open(src, iteration) as source:
        carry_out(plan_bake(source, value, no_optimizer), dst, running)
