"""The folder of one training among many: what it is given, how far it is, how it ended.

::

    FOLDER/stage.yaml, metrics.jsonl, train.log, checkpoints/
    FOLDER/outcome.json        only of what ended before its last step

A training is done when its last checkpoint is there, so one that was killed at any moment loses no
more than ``flmgrow train`` would. What a folder has begun with must stay what it is.
"""

import json
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from flmgrow.errors import BadDataError, UsageError
from flmgrow.stages.past import CHECKPOINTS, STAGE, trained_to
from flmgrow.storage.durable import write_small
from flmgrow.storage.folders import make_folders
from flmgrow.storage.strict_json import Json, parse_object
from flmgrow.storage.strict_yaml import dotted, dump_yaml, read_yaml
from flmgrow.text import Text
from flmgrow.trainer.metrics.log import read_metrics
from flmgrow.trainer.metrics.records import StepRecord
from flmgrow.trainer.stage.file import StageFile, stage_of
from flmgrow.trainer.stage.watching import METRICS

OUTCOME = "outcome.json"


class TrialState(StrEnum):
    """How far a training is."""

    OPEN = "open"
    DONE = "done"
    DIVERGED = "diverged"
    STOPPED = "stopped"


@dataclass(frozen=True)
class End:
    """How a training ended, after how many ``steps``, and what it told."""

    state: TrialState
    steps: int
    told: str = ""


def in_its_folder(stage: StageFile, load: Path | None = None) -> StageFile:
    """Return a stage with what it writes in its own folder; only its last checkpoint is kept.

    ``load`` is what it begins with, seen from there.
    """
    own = {"folder": Path(CHECKPOINTS), "keep": 1, "load": load}
    checkpoint = stage.checkpoint.model_copy(update=own)
    log = stage.log.model_copy(update={"metrics": Path(METRICS), "tensorboard": None})
    return stage.model_copy(update={"checkpoint": checkpoint, "log": log})


@dataclass(frozen=True)
class TrialFolder:
    """A training's folder, and its stage; it ends at iteration ``last``."""

    path: Path
    stage: StageFile
    last: int

    def content(self) -> Json:
        """Return what its stage file says; of the model only what was said, since all else follows
        from a checkpoint where one is loaded.
        """
        plain: Json = self.stage.model_dump(mode="json", exclude_none=True)
        model = self.stage.model.model_dump(mode="json", exclude_none=True, exclude_unset=True)
        return {**plain, "model": model}

    def check_unchanged(self, whole: str, hint: Text) -> None:
        """Raise UsageError if it was begun with other settings than the ``whole`` says."""
        file = self.path / STAGE
        if not file.exists():
            return
        old = dotted(stage_of(read_yaml(file), file).model_dump(mode="json"))
        new = dotted(stage_of(self.content(), file).model_dump(mode="json"))
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key):
                told = f"{key} is {old.get(key)!r:.60}, the {whole} says {new.get(key)!r:.60}"
                raise UsageError(told, hint, where=file)

    def write(self) -> None:
        """Write its stage file.

        Raises:
            StorageError: The file system failed.
        """
        make_folders(Path(self.path.absolute().anchor), self.path.absolute())
        write_small(self.path / STAGE, dump_yaml(self.content()).encode())

    def end(self) -> End | None:
        """Return how it ended, None while it is open.

        Raises:
            BadDataError: For what is damaged.
        """
        kept = self.path / OUTCOME
        if kept.is_file():
            return _kept(kept)
        if trained_to(self.path / CHECKPOINTS) == self.last:
            return End(TrialState.DONE, self.stage.steps)
        return None

    def keep(self, state: TrialState, told: str = "") -> None:
        """Remember that it ends here."""
        found: Json = {"state": str(state), "steps": self._steps(), "told": told}
        write_small(self.path / OUTCOME, json.dumps(found).encode())

    def _steps(self) -> int:
        records = read_metrics(self.path / METRICS)
        steps = [each.step for each in records if isinstance(each, StepRecord)]
        return steps[-1] if steps else 0


def _kept(file: Path) -> End:
    """Return how a training ended, after how many steps, and what it told.

    Raises:
        BadDataError: The file is damaged.
    """
    told = parse_object(file.read_bytes(), str(file))
    state, steps = told.get("state"), told.get("steps")
    if state not in (TrialState.DIVERGED, TrialState.STOPPED) or type(steps) is not int:
        raise BadDataError(
            "does not say how the trial ended",
            "remove it: the same command goes on with that trial",
            where=file,
        )
    return End(TrialState(str(state)), steps, str(told.get("told", "")))
