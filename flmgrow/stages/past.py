"""Adjusting a stage of a schedule to what was already done of it.

How long a stage of a run is may depend on what was done of it before its settings changed. A stage
of so many tokens takes other steps with another batch. So a plan looks into the run's folder: how
far each stage was when it was last saved, or when its settings last changed.
"""

from pathlib import Path

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.history.training_state import TrainingState, read_training_state
from flmgrow.formats.megatron.folders import TRACKER, folder_name
from flmgrow.storage.files import first_bytes
from flmgrow.text import Found, Text
from flmgrow.trainer.stage.changes import CHANGES, goes_back, read_changes
from flmgrow.trainer.stage.clock import StageProgress, progress_of, steps_in_all
from flmgrow.trainer.stage.file import StageFile

CHECKPOINTS, STAGE, GROWTH = "checkpoints", "stage.yaml", "growth.yaml"
"""What lies in the folder of a stage: what it saved, what the trainer is given, and ``expand``."""


def trained_to(checkpoints: Path) -> int | None:
    """Return the iteration of the newest checkpoint in a folder of them, None if it has none.

    Raises:
        BadCheckpointError: If the tracker cannot be read.
    """
    tracker = checkpoints / TRACKER
    if not tracker.is_file():
        return None
    text = first_bytes(tracker, 64).decode("ascii", "replace").strip()
    if not text.isdecimal():
        raise BadCheckpointError(
            Text("found ", Found(f"{text!r}")), where=tracker, wanted="a number"
        )
    return int(text)


def newest_state(checkpoints: Path, name: str) -> TrainingState | None:
    """Return what the newest checkpoint of the stage ``name`` remembers, None if there is none."""
    reached = trained_to(checkpoints)
    state = None if reached is None else read_training_state(checkpoints / folder_name(reached))
    return state if state is not None and state.stage == name else None


def steps_of(folder: Path, stage: StageFile, first: int) -> int:
    """Return the steps that ``stage``, whose folder this is, takes from iteration ``first`` on."""
    newest = newest_state(folder / CHECKPOINTS, stage.name)
    if newest is not None and newest.stage_begin != first:
        newest = None  # another run's: what does not fit is told where the folder is checked
    return steps_in_all(stage, progress_in(folder, stage, newest))


def is_pending(stage: StageFile, newest: TrainingState | None) -> bool:
    """Whether ``stage`` goes back from its newest checkpoint, to change its settings."""
    at = stage.checkpoint.change_at
    if at is None or newest is None:
        return False
    return not newest.settings or goes_back(stage, newest.settings)


def progress_in(folder: Path, stage: StageFile, newest: TrainingState | None) -> StageProgress:
    """Return how far ``stage``, whose folder this is, is with the settings that it has.

    ``newest`` is the state of its newest checkpoint, None if there is none.

    Raises:
        FlmgrowError: What reading these files raises.
    """
    if newest is not None and not is_pending(stage, newest):
        return progress_of(stage, newest)
    if newest is not None:
        assert stage.checkpoint.change_at is not None
        name = folder_name(stage.checkpoint.change_at)
        state = read_training_state(folder / CHECKPOINTS / name)
        return StageProgress() if state is None else progress_of(stage, state)
    told = [change for change in read_changes(folder / CHANGES) if change.stage == stage.name]
    return told[-1].progress if told else StageProgress()
