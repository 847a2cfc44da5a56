"""``flmgrow plot``: how runs went, as a picture."""

from pathlib import Path
from typing import Annotated

import typer

from flmgrow.cli.pictures import picture_kind
from flmgrow.cli.printing import note
from flmgrow.stages.curves import LARGEST_LOSS, RunCurves, read_runs
from flmgrow.stages.metrics_files import folder_of
from flmgrow.stages.plots import Look, picture
from flmgrow.stages.score_panels import left_out
from flmgrow.storage.durable import write_small

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
Evaluation = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FILE|FOLDER",
        help="Scores of the run's checkpoints, as flmgrow eval writes them; those in RUN if not "
        "given.",
    ),
]
Title = Annotated[str, typer.Option(help="Title of the picture.", show_default=False)]


def plot(
    runs: Runs,
    out: Out = None,
    evaluation: Evaluation = None,
    log_x: LogX = False,
    title: Title = "",
) -> None:
    """Draw the loss of runs against tokens and against floating-point operations.

    Stages, validation and the ramps of masks are marked; scores of checkpoints follow below. A
    picture of that name is replaced.

    \b
    Example: flmgrow plot run-a run-b --out compared.pdf
    """
    file = folder_of(runs[0]) / "loss.png" if out is None else out
    found = read_runs(runs, evaluation or ())
    kind = picture_kind("--out", file)
    write_small(file, picture(found, kind, Look(log_x, title)))
    _tell_left_out(runs, found)
    print(file)


def _tell_left_out(paths: list[Path], found: list[RunCurves]) -> None:
    for path, run in zip(paths, found, strict=True):
        if run.left_out:
            losses = f"{run.left_out} {'loss' if run.left_out == 1 else 'losses'}"
            note(f"{path}: left out {losses}, not finite or beyond {LARGEST_LOSS:g}")
    if more := left_out(found):
        note(f"left out the scores of {more} tasks: more than can be told apart")
