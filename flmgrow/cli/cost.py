"""``flmgrow cost``: what a schedule costs, before it is run."""

from pathlib import Path
from typing import Annotated

import typer

from flmgrow.cli import options
from flmgrow.cli.cluster import Cluster
from flmgrow.cli.grouped import grouped
from flmgrow.cli.pictures import picture_kind
from flmgrow.cli.printing import in_columns, json_text

SchedulePath = Annotated[
    Path, typer.Argument(metavar="SCHEDULE", help="A schedule file, or a stage file (YAML).")
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
    from flmgrow import foresight
    from flmgrow.costing.picture import picture
    from flmgrow.costing.wording import blocks
    from flmgrow.storage.durable import write_small

    kind = None if plot is None else picture_kind("--plot", plot)
    found = foresight.cost(schedule, **cluster.given())
    if plot is not None and kind is not None:
        write_small(plot, picture(found, kind))
    if as_json:
        print(json_text(found.to_json()))
    else:
        print("\n\n".join("\n".join(in_columns(rows)) for rows in blocks(found)))
