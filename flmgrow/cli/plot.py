"""``flmgrow plot``: how runs went, as a picture."""

from pathlib import Path
from typing import Annotated

import typer

from flmgrow.errors import UsageError
from flmgrow.formats.durable import write_small
from flmgrow.stages.curves import folder_of, read_runs
from flmgrow.stages.plots import KINDS, Look, picture

Runs = Annotated[
    list[Path],
    typer.Argument(
        metavar="RUN...", help="Folders of runs, or of single stages, or files metrics.jsonl."
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Picture to write, .png, .svg or .pdf; loss.png in the first RUN if not given.",
    ),
]
LogX = Annotated[bool, typer.Option("--log-x", help="Logarithmic axes for tokens and FLOPs.")]
Title = Annotated[str, typer.Option(help="Title of the picture.", show_default=False)]


def plot(runs: Runs, out: Out = None, log_x: LogX = False, title: Title = "") -> None:
    """Draw the loss of runs against tokens and against floating-point operations.

    Stages, validation and the ramps of masks are marked. A picture of that name is replaced.

    \b
    Example: flmgrow plot run-a run-b --out compared.pdf
    """
    file = out or folder_of(runs[0]) / "loss.png"
    kind = file.suffix.removeprefix(".").lower()
    if kind not in KINDS:
        wanted = ", ".join(f".{each}" for each in KINDS)
        raise UsageError(f"--out {file}: unknown kind of picture, wanted one of {wanted}")
    write_small(file, picture(read_runs(runs), kind, Look(log_x, title)))
    print(file)
