"""The folder of a study: one folder for each leg, and what each has come to.

::

    OUT/study.yaml                   the study, as it was given
    OUT/lock                         who is at it: two at once would spoil each other's legs
    OUT/report.md, results.json, runs.csv, readings.csv, study.png, study.svg
    OUT/rates/SIZE/                  the search of a size's learning rate, as flmgrow search has it
    OUT/legs/seed1-small-000385-3fa2c01b/
        stage.yaml, metrics.jsonl, train.log, checkpoints/
        growth.yaml, start/          what was grown for it, and how, if anything was

The same command goes on with what is not done. No leg keeps a record of its own: whether it is done
shows in what it was to make, and that appears whole or not at all.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from flmgrow.errors import UsageError
from flmgrow.stages.past import GROWTH
from flmgrow.stages.planned_stage import PlannedStage
from flmgrow.stages.pool import Job
from flmgrow.stages.run_folder import RunFolder
from flmgrow.stages.steps import DIFFERS, Step, steps_of
from flmgrow.stages.trial_folder import TrialFolder, TrialState
from flmgrow.storage.durable import write_small
from flmgrow.storage.strict_json import Json
from flmgrow.storage.strict_yaml import dotted, dump_yaml, read_yaml
from flmgrow.studying.legs import Leg, Legs
from flmgrow.text import Setting, Text

LEGS, RATES = "legs", "rates"
_OTHER = Text("give another ", Setting("out"), ", or the study it began with")


@dataclass(frozen=True)
class StudyFolder:
    """The folder of a study."""

    path: Path

    def of(self, leg: Leg) -> TrialFolder:
        """Return a leg's folder."""
        return TrialFolder(self.path / LEGS / leg.name, leg.planned.stage, leg.planned.last)

    def rates_of(self, size: str) -> Path:
        """Return the folder of the search for a size's learning rate."""
        return self.path / RATES / size

    def prepare(self, legs: Legs, source: Path) -> None:
        """Write the legs' files, and a copy of the study.

        Raises:
            UsageError: If a leg is another study's, or was begun otherwise.
            StorageError: The file system failed.
        """
        names = {leg.name for leg in legs.every}
        for folder in sorted((self.path / LEGS).glob("*")):
            if folder.name not in names:
                raise UsageError("is of another study", _OTHER, where=folder)
        for leg in legs.every:
            self.of(leg).check_unchanged("study", _OTHER)
            self._check_growth(leg)
        for leg in legs.every:
            self.of(leg).write()
            if leg.planned.target is not None:
                content = dump_yaml(_growth(leg)).encode()
                write_small(self.of(leg).path / GROWTH, content)
        write_small(self.path / "study.yaml", source.read_bytes())

    def _check_growth(self, leg: Leg) -> None:
        file = self.of(leg).path / GROWTH
        if leg.planned.target is None or not file.exists():
            return
        if dotted(read_yaml(file)) != dotted(_growth(leg)):
            raise UsageError("is another growth than the study says", _OTHER, where=file)

    def growth_steps(self, leg: Leg) -> list[Step]:
        """Return the steps that make what a leg begins with, and prove it; none if it is not grown.

        They are those of ``flmgrow run``.
        """
        if leg.before is None or leg.planned.target is None:
            return []
        run = RunFolder((self.path / LEGS).absolute(), [_alone(leg.before), leg.planned])
        return [step for step in steps_of(run) if step.stage is leg.planned and not step.trains]

    def jobs(self, legs: Sequence[Leg]) -> list[Job]:
        """Return what is to be done of legs, those first that the longest ways lead on from.

        What a leg that diverged was to be begun with is left out.
        """
        found: list[Job] = []
        for leg in sorted(legs, key=lambda leg: -leg.farthest):
            if any(self._diverged(each) for each in leg.path) or self.of(leg).end() is not None:
                continue
            found += self._jobs(leg)
        return found

    def _jobs(self, leg: Leg) -> Iterator[Job]:
        folder = self.of(leg).path.absolute()
        after = frozenset({leg.before.name} if leg.before else ())
        for step in self.growth_steps(leg):
            if not step.done():
                fine = frozenset({0, DIFFERS} if step.may_differ else {0})
                name = f"{leg.name} {step.words[0]}"
                yield Job(name, folder, 0, command=step.words, after=after, fine=fine)
                after = frozenset({name})
        stage = leg.planned.stage
        weight = leg.cost / leg.planned.steps
        yield Job(leg.name, folder, stage.steps, stage.layout.world, after=after, weight=weight)

    def _diverged(self, leg: Leg) -> bool:
        end = self.of(leg).end()
        return end is not None and end.state is TrialState.DIVERGED


def _alone(leg: Leg) -> PlannedStage:
    """Return a leg as the stage that another grows out of, whatever it grew out of itself."""
    return replace(leg.planned, target=None)


def _growth(leg: Leg) -> Json:
    assert leg.planned.target is not None
    plain: Json = leg.planned.target.model_dump(mode="json", exclude_none=True)
    return plain
