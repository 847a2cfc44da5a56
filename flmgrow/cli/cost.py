"""``flmgrow cost``: what a schedule costs, before it is run."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flmgrow.cli import options
from flmgrow.cli.cluster import Cluster
from flmgrow.cli.grouped import grouped
from flmgrow.cli.pictures import picture_kind
from flmgrow.cli.printing import in_columns, json_text

if TYPE_CHECKING:
    from flmgrow.cost.estimate import RunCost
    from flmgrow.cost.rates import Rates

SchedulePath = Annotated[
    Path, typer.Argument(metavar="SCHEDULE", help="A schedule file (YAML), as run takes it.")
]
Plot = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Draw parameters against tokens, .png, .svg or .pdf."),
]


@grouped
def cost(
    schedule: SchedulePath,
    plot: Plot = None,
    as_json: options.AsJson = False,
    *,
    cluster: Cluster,
) -> None:
    """Show what a schedule costs: operations, GPU hours, days, money, energy and memory.

    Stage by stage and in all; beside it the same tokens at the final size, without growth. Needs
    neither data nor devices.

    \b
    Example: flmgrow cost configs/flm-101b.yaml --accelerator A800 --utilisation 0.52 --price 1.0
    """
    from flmgrow.cost.estimate import cost_of
    from flmgrow.cost.picture import picture
    from flmgrow.stages.schedule import read_schedule
    from flmgrow.storage.durable import write_small

    kind = None if plot is None else picture_kind("--plot", plot)
    stages = read_schedule(schedule)
    rates = cluster.rates(stages)
    found = cost_of(stages, rates)
    if plot is not None and kind is not None:
        write_small(plot, picture(found, kind))
    print(json_text(found.to_json()) if as_json else _text(found, rates))


def _text(found: "RunCost", rates: "Rates") -> str:
    from flmgrow.cost import wording

    blocks = [wording.stage_rows(found.stages[0])]
    for between, stage in zip(found.between, found.stages[1:], strict=True):
        blocks += [[wording.between_row(between)], wording.stage_rows(stage)]
    blocks += [[*wording.total_rows(found), *wording.supposed_rows(rates)]]
    return "\n\n".join("\n".join(in_columns(rows)) for rows in blocks)
