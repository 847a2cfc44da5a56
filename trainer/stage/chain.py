"""Stages that grow out of one another in one run of the same processes.

A stage file may say after which other one its model grows in memory. Whoever starts it means all of
them: the first is trained, its model grows, the next goes on. That they fit together is checked
before the first step.
"""

from pathlib import Path

from flmgrow.errors import UsageError
from flmgrow.trainer.stage.file import StageFile, read_stage
from flmgrow.trainer.stage.keys import told_of

TRAINER = "flmgrow.trainer"
"""The module that runs a rank of a stage."""

GROWING = "flmgrow.growing"
"""The module that runs a rank of a stage that grows after another; the trainer knows no growth."""

START = "start"
"""What a run calls the checkpoint that a stage begins with: grown, or laid out, for it."""

BETWEEN = (
    "let it grow between the stages: flmgrow expand, and checkpoint.load in the place of growth"
)
"""What to do about a growth that cannot be done in place."""

_RANKS = ("tp", "pp", "vpp", "dp")


def module_of(stage: StageFile) -> str:
    """Return the module that runs a rank of a stage."""
    return TRAINER if stage.growth is None else GROWING


def read_chain(stage: StageFile, path: Path) -> list[tuple[StageFile, Path]]:
    """Return ``stage``, of the file ``path``, behind those that it grows after, with their files.

    Raises:
        UsageError: For one that cannot be read, for ranks that differ, and for stages that would
            save in one folder, or grow out of themselves.
    """
    chain = [(stage, path)]
    while (growth := chain[0][0].growth) is not None:
        before = read_stage(growth.after)
        for later, file in chain:
            if before.checkpoint.folder == later.checkpoint.folder:
                raise UsageError(
                    f"checkpoint.folder: {later.checkpoint.folder} is that of {growth.after}, too",
                    "give each stage a folder of its own",
                    where=file,
                )
        with told_of(chain[0][1]):
            check_ranks(before, chain[0][0], BETWEEN)
        chain.insert(0, (before, growth.after))
    return chain


def check_ranks(before: StageFile, stage: StageFile, hint: str) -> None:
    """Raise UsageError, with ``hint``, unless two stages have the same ranks."""
    for name in _RANKS:
        was, now = getattr(before.layout, name), getattr(stage.layout, name)
        if was != now:
            raise UsageError(
                f"layout.{name}: is {now}, after {was} in the stage {before.name}: a model that "
                "grows in place stays on its ranks",
                hint,
            )
