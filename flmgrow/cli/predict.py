"""``flmgrow predict``: what the loss of a large model will be, from the runs of small ones."""

from pathlib import Path
from typing import Annotated

import typer

from flmgrow.cli import options
from flmgrow.cli.parsing import parse_amount
from flmgrow.cli.pictures import picture_kind
from flmgrow.cli.printing import in_columns, json_text

Runs = Annotated[
    list[Path],
    typer.Argument(
        metavar="RUN...",
        help="Folders of runs of one stage, stage files, or tables of points (.csv).",
    ),
]
At = Annotated[
    list[str] | None,
    typer.Option(metavar="SIZE", help="Parameters, such as 13B; may be given several times."),
]
Tokens = Annotated[
    str | None,
    typer.Option(metavar="AMOUNT", help="Read until then; as the longest run if not given."),
]
Step = Annotated[
    int | None, typer.Option(min=1, help="Compare runs at this step; where each ends if not given.")
]
Against = Annotated[
    Path | None,
    typer.Option(metavar="RUN", help="A run whose stages' ends are held against the law."),
]
Plot = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Draw loss against size, .png, .svg or .pdf.")
]
Write = Annotated[
    Path | None, typer.Option(metavar="FILE.csv", help="Write the points as a table.")
]


def predict(
    runs: Runs,
    at: At = None,
    tokens: Tokens = None,
    step: Step = None,
    against: Against = None,
    plot: Plot = None,
    write: Write = None,
    as_json: options.AsJson = False,
) -> None:
    """Foretell the loss of a large model from the runs of small ones.

    Fits a law of sizes to runs that end at one step, or of sizes and tokens to runs of several
    lengths, and says how wrong it is about the largest run when it has not seen it.

    \b
    Example: flmgrow predict proxies/* --at 16B --plot law.png
    """
    from flmgrow import foresight
    from flmgrow.prediction import wording
    from flmgrow.prediction.ending import ended
    from flmgrow.prediction.picture import picture
    from flmgrow.prediction.points import table_of
    from flmgrow.storage.durable import write_small

    kind = None if plot is None else picture_kind("--plot", plot)
    sizes = [parse_amount("--at", text) for text in at or ()]
    length = None if tokens is None else parse_amount("--tokens", tokens)
    found = foresight.predict(runs, step=step)
    forecasts = [found.at(size, length) for size in sizes]
    stages = [] if against is None else list(ended(against, found))
    if write is not None:
        write_small(write, table_of(found.points).encode())
    if plot is not None and kind is not None:
        write_small(plot, picture(found, forecasts, kind))
    if as_json:
        told = {
            **found.to_json(),
            "forecasts": [each.to_json() for each in forecasts],
            "stages": [each.to_json() for each in stages],
        }
        print(json_text(told))
        return
    rows = [wording.forecast_row(found, each) for each in forecasts]
    rows += [wording.ended_row(each) for each in stages]
    print("\n".join(in_columns([*wording.law_rows(found), *rows])))
