"""The folder of a search: one folder for each trial, and how each ended.

::

    OUT/search.yaml           the search, as it was given
    OUT/lock                  who is at it: two searches at once would spoil each other's trials
    OUT/report.md, results.json, search.png
    OUT/trials/07-seed1/stage.yaml, metrics.jsonl, train.log, checkpoints/
    OUT/trials/07-seed1/outcome.json       only of what diverged, or was stopped early

The same command goes on with what is not done. A trial is done when its last checkpoint is there,
so a search that was killed at any moment loses no more than a training would.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from math import inf
from pathlib import Path

from flmgrow.errors import BadDataError, FlmgrowError, UsageError
from flmgrow.prediction.points import end_of
from flmgrow.searching.request import METRICS, Search, Trial
from flmgrow.stages.past import CHECKPOINTS, trained_to
from flmgrow.stages.pool import Job
from flmgrow.storage.durable import make_folders, write_small
from flmgrow.storage.hidden import locked
from flmgrow.storage.strict_json import Json, parse_object
from flmgrow.storage.strict_yaml import dotted, dump_yaml, read_yaml
from flmgrow.text import Setting, Text
from flmgrow.trainer.metrics.log import read_metrics
from flmgrow.trainer.metrics.records import StepRecord
from flmgrow.trainer.stage.file import stage_of

TRIALS, STAGE, OUTCOME = "trials", "stage.yaml", "outcome.json"


class State(StrEnum):
    """How far a trial is."""

    OPEN = "open"
    DONE = "done"
    DIVERGED = "diverged"
    STOPPED = "stopped"


@dataclass(frozen=True)
class Outcome:
    """How a trial ended: its last ``loss`` (infinite if it diverged), after how many ``steps``."""

    trial: Trial
    state: State
    steps: int
    loss: float
    told: str = ""


@dataclass(frozen=True)
class SearchFolder:
    """The folder of a search."""

    path: Path
    search: Search

    def of(self, trial: Trial) -> Path:
        """Return a trial's folder."""
        return self.path / TRIALS / trial.name

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other searches away from the folder, which is made if it is not there.

        Raises OutputExistsError if one is at it, StorageError.
        """
        make_folders(Path(self.path.absolute().anchor), self.path.absolute())
        with locked(self.path, self.path):
            yield

    def prepare(self, source: Path) -> None:
        """Write the trials' stage files, and a copy of the search file.

        Raises UsageError if a trial was begun with other settings; StorageError.
        """
        names = {trial.name for trial in self.search.trials}
        for folder in sorted((self.path / TRIALS).glob("*")):
            if folder.name not in names:
                raise UsageError(
                    "is of another search",
                    Text("give another ", Setting("out"), ", or the search it began with"),
                    where=folder,
                )
        for trial in self.search.trials:
            self._check_unchanged(trial)
        for trial in self.search.trials:
            make_folders(Path(self.path.absolute().anchor), self.of(trial).absolute())
            write_small(self.of(trial) / STAGE, dump_yaml(trial.to_yaml()).encode())
        write_small(self.path / "search.yaml", source.read_bytes())

    def _check_unchanged(self, trial: Trial) -> None:
        file = self.of(trial) / STAGE
        if not file.exists():
            return
        old = dotted(stage_of(read_yaml(file), file).model_dump(mode="json"))
        new = dotted(stage_of(trial.to_yaml(), file).model_dump(mode="json"))
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key):
                raise UsageError(
                    f"{key} is {old.get(key)!r:.60}, the search says {new.get(key)!r:.60}",
                    Text("give another ", Setting("out"), ", or the search it began with"),
                    where=file,
                )

    def job(self, trial: Trial, until: int | None = None) -> Job:
        """Return the training of a trial."""
        stage = trial.stage
        return Job(trial.name, self.of(trial).absolute(), stage.steps, stage.layout.world, until)

    def outcome(self, trial: Trial) -> Outcome:
        """Return how far a trial is, and its loss there."""
        folder = self.of(trial)
        kept = folder / OUTCOME
        if kept.is_file():
            state, steps, told = _kept(kept)
            loss = inf if state is State.DIVERGED else self.loss(trial, steps)
            return Outcome(trial, state, steps, loss, told)
        if trained_to(folder / CHECKPOINTS) == trial.stage.steps:
            return Outcome(trial, State.DONE, trial.stage.steps, self._last_loss(trial))
        return Outcome(trial, State.OPEN, self.job(trial).taken, inf)

    def _last_loss(self, trial: Trial) -> float:
        """Return the loss of a trial that is done, whose metrics must reach its last step."""
        try:
            return self.loss(trial, trial.stage.steps)
        except FlmgrowError as error:
            hint = "remove the trial's folder: the same command trains it again"
            raise error.with_hint(hint) from None

    def loss(self, trial: Trial, step: int | None) -> float:
        """Return a trial's loss at a step, or its last: of validation where there is one."""
        return end_of(self.of(trial), step).loss

    def outcomes(self) -> list[Outcome]:
        """Return how far each trial is."""
        return [self.outcome(trial) for trial in self.search.trials]

    def keep(self, trial: Trial, state: State, told: str = "") -> None:
        """Remember that a trial ends here."""
        told_of: Json = {"state": str(state), "steps": self._steps(trial), "told": told}
        write_small(self.of(trial) / OUTCOME, json.dumps(told_of).encode())

    def _steps(self, trial: Trial) -> int:
        steps = [
            each.step
            for each in read_metrics(self.of(trial) / METRICS)
            if isinstance(each, StepRecord)
        ]
        return steps[-1] if steps else 0


def _kept(file: Path) -> tuple[State, int, str]:
    """Return how a trial ended, after how many steps, and what it told. Raises BadDataError."""
    told = parse_object(file.read_bytes(), str(file))
    state, steps = told.get("state"), told.get("steps")
    if state not in (State.DIVERGED, State.STOPPED) or type(steps) is not int:
        raise BadDataError(
            "does not say how the trial ended",
            "remove it: the same command goes on with that trial",
            where=file,
        )
    return State(str(state)), steps, str(told.get("told", ""))


def check_all_ended(outcomes: Sequence[Outcome]) -> None:
    """Raise BadDataError if none has ended well."""
    if not any(each.state is State.DONE for each in outcomes):
        raise BadDataError("no trial has come to its end", "lower the learning rates of the grid")
