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

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path

from flmgrow.errors import BadDataError, FlmgrowError, UsageError
from flmgrow.prediction.points import end_of
from flmgrow.searching.request import Search, Trial
from flmgrow.stages.pool import Job
from flmgrow.stages.trial_folder import TrialFolder, TrialState
from flmgrow.storage.durable import write_small
from flmgrow.text import Setting, Text

TRIALS = "trials"
_OTHER = Text("give another ", Setting("out"), ", or the search it began with")


@dataclass(frozen=True)
class TrialOutcome:
    """How a trial ended: its last ``loss`` (infinite if it diverged), after how many ``steps``."""

    trial: Trial
    state: TrialState
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

    def prepare(self, source: Path) -> None:
        """Write the trials' stage files, and a copy of the search file.

        Raises:
            UsageError: If a trial was begun with other settings.
            StorageError: The file system failed.
        """
        names = {trial.name for trial in self.search.trials}
        for folder in sorted((self.path / TRIALS).glob("*")):
            if folder.name not in names:
                raise UsageError("is of another search", _OTHER, where=folder)
        for trial in self.search.trials:
            self.folder(trial).check_unchanged("search", _OTHER)
        for trial in self.search.trials:
            self.folder(trial).write()
        write_small(self.path / "search.yaml", source.read_bytes())

    def folder(self, trial: Trial) -> TrialFolder:
        """Return a trial's folder, with what is done there."""
        return TrialFolder(self.of(trial), trial.stage, trial.stage.steps)

    def job(self, trial: Trial, until: int | None = None) -> Job:
        """Return the training of a trial."""
        stage = trial.stage
        return Job(trial.name, self.of(trial).absolute(), stage.steps, stage.layout.world, until)

    def outcome(self, trial: Trial) -> TrialOutcome:
        """Return how far a trial is, and its loss there."""
        end = self.folder(trial).end()
        if end is None:
            return TrialOutcome(trial, TrialState.OPEN, self.job(trial).taken, inf)
        if end.state is TrialState.DONE:
            return TrialOutcome(trial, TrialState.DONE, end.steps, self._last_loss(trial))
        loss = inf if end.state is TrialState.DIVERGED else self.loss(trial, end.steps)
        return TrialOutcome(trial, end.state, end.steps, loss, end.told)

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

    def outcomes(self) -> list[TrialOutcome]:
        """Return how far each trial is."""
        return [self.outcome(trial) for trial in self.search.trials]

    def keep(self, trial: Trial, state: TrialState, told: str = "") -> None:
        """Remember that a trial ends here."""
        self.folder(trial).keep(state, told)


def check_all_ended(outcomes: Sequence[TrialOutcome]) -> None:
    """Raise BadDataError if none has ended well."""
    if not any(each.state is TrialState.DONE for each in outcomes):
        raise BadDataError("no trial has come to its end", "lower the learning rates of the grid")
