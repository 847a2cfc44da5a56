"""``flmgrow train``: one stage, from a stage file."""

from pathlib import Path
from typing import Annotated

import typer

from flmgrow.cli.ended import EndedError
from flmgrow.trainer.ranks.launch import launch
from flmgrow.trainer.stage.chain import module_of, read_chain
from flmgrow.trainer.stage.file import read_stage

StagePath = Annotated[Path, typer.Argument(metavar="STAGE", help="A stage file (YAML).")]


def train(stage: StagePath) -> None:
    """Train one stage on this machine, and go on where it stopped if it did.

    All ranks of the stage's layout are started here. On several machines, start them with torchrun
    or srun instead: torchrun ... -m flmgrow.trainer STAGE. After an interruption the same command
    resumes, and takes the very same steps. A stage whose model grows in memory out of another's
    (growth.after) has that one trained first, by the same processes.

    \b
    Example: flmgrow train runs/16b/stage.yaml
    """
    file = read_stage(stage)
    read_chain(file, stage)  # so what is wrong with stages before is told once
    if code := launch(stage, file.layout.world, module_of(file)):
        raise EndedError(code)
