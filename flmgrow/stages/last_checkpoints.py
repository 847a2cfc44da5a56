"""Each stage's last checkpoint: what there is to compare when a run is looked back upon."""

import re
from pathlib import Path

from flmgrow.errors import UsageError
from flmgrow.stages.past import CHECKPOINTS, trained_to
from flmgrow.storage.remote.addresses import is_remote

STAGE_FOLDER = re.compile(r"([0-9]+)-.+")
"""The name of a stage's folder in that of a run: its number comes first."""


def is_run(path: Path) -> bool:
    """Whether ``path`` is the folder of a run: with folders of stages in it."""
    return not is_remote(path) and path.is_dir() and bool(_stages(path))


def last_checkpoints(run: Path) -> list[Path]:
    """Return the folders of checkpoints of a run's stages, in order, whose newest are the last.

    Stages that have saved none, or whose checkpoints were removed, are left out.

    Raises:
        UsageError: If that leaves none.
    """
    found = [stage / CHECKPOINTS for stage in _stages(run)]
    saved = [folder for folder in found if trained_to(folder) is not None]
    if not saved:
        raise UsageError("no stage has saved a checkpoint yet", where=run)
    return saved


def _stages(run: Path) -> list[Path]:
    numbered = [
        (int(match[1]), stage)
        for stage in run.iterdir()
        if (match := STAGE_FOLDER.fullmatch(stage.name)) and (stage / CHECKPOINTS).is_dir()
    ]
    return [stage for _, stage in sorted(numbered)]
