"""Where a training state lies, and reading it only where there is one.

Most checkpoints have none, and reading one takes pydantic, which takes longer to import than all
that a command which only looks does with a small checkpoint.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flmgrow.formats.history.training_state import TrainingState

TRAINING = "flmgrow_training.json"


def training_state_in(folder: Path) -> "TrainingState | None":
    """Return the state in an iteration's folder, or None if flmgrow's trainer did not save it.

    Raises:
        BadCheckpointError: If there is one that cannot be read.
    """
    if not os.path.lexists(folder / TRAINING):
        return None
    from flmgrow.formats.history.training_state import read_training_state

    return read_training_state(folder)
