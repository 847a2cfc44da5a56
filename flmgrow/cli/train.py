"""``flmgrow train``: one stage, from a stage file."""

from pathlib import Path
from typing import Annotated

import typer

from flmgrow.cli.ended import EndedError
from flmgrow.trainer.ranks.launch import launch
from flmgrow.trainer.stage.file import read_stage

StagePath = Annotated[Path, typer.Argument(metavar="STAGE", help="A stage file (YAML).")]


def train(stage: StagePath) -> None:
    """Train one stage on this machine, and go on where it stopped if it did.

    All ranks of the stage's layout are started here. On several machines, start them with torchrun
    or srun instead: torchrun ... -m flmgrow.trainer STAGE. After an interruption the same command
    resumes, and takes the very same steps.

    \b
    Example: flmgrow train runs/16b/stage.yaml
    """
    if code := launch(stage, read_stage(stage).layout.world):
        raise EndedError(code)
