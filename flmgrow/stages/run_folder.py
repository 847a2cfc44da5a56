"""The folder of a run: where things are in it, and what has been done.

Everything of a run lies in one folder, and what has been done is read from there.

::

    RUN/schedule.yaml            the schedule, as it was given
    RUN/01-NAME/stage.yaml       what the trainer is given
    RUN/01-NAME/checkpoints/     what it saved
    RUN/01-NAME/metrics.jsonl    what it reported
    RUN/01-NAME/changes.jsonl    settings that changed at a checkpoint, if any
    RUN/02-NAME/growth.yaml      what expand is given
    RUN/02-NAME/start/           the grown checkpoint, with the receipt of its verification

No step keeps a record of its own: whether it is done shows in what it was to make, and that appears
whole or not at all. So a run that was killed at any moment goes on with the same command.

What a stage was needed for ends when the next one's growth is verified, or, if that was in memory,
when the next one has saved. From then on it is done, whether or not its checkpoints are still
there: who needs the disk may remove them.

A first stage that starts with a model has a folder ``start`` of its own, and ``start.yaml``, which
says what it was made from.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flmgrow.formats.history.manifest import lineage, read_manifest
from flmgrow.formats.history.parts import FUNCTION, Member
from flmgrow.formats.history.training_state import read_training_state
from flmgrow.formats.megatron.folders import folder_name
from flmgrow.stages.past import CHECKPOINTS, is_pending, newest_state, trained_to
from flmgrow.stages.planned_stage import PlannedStage
from flmgrow.storage.strict_json import Json
from flmgrow.trainer.stage.chain import START

SOURCE = "start.yaml"


@dataclass(frozen=True, eq=False)
class RunFolder:
    """The folder of a run, its stages, and how far each of them is."""

    path: Path
    stages: Sequence[PlannedStage]

    def of(self, planned: PlannedStage, *names: str) -> Path:
        """Return a path in a stage's folder."""
        return self.path.joinpath(planned.folder, *names)

    def before(self, planned: PlannedStage) -> PlannedStage:
        """Return the stage before."""
        return self.stages[self.stages.index(planned) - 1]

    def after(self, planned: PlannedStage) -> Sequence[PlannedStage]:
        """Return the stages after."""
        return self.stages[self.stages.index(planned) + 1 :]

    def is_settled(self, planned: PlannedStage) -> bool:
        """Whether a later stage begins with what grew out of this one, and that is verified."""
        return any(self._is_proved(later) for later in self.after(planned))

    def trained_to(self, planned: PlannedStage) -> int | None:
        """Return the iteration of a stage's newest checkpoint, None if it has none."""
        return trained_to(self.of(planned, CHECKPOINTS))

    def is_trained(self, planned: PlannedStage) -> bool:
        """Whether a stage has come to its end, with the settings that it has."""
        if self.is_settled(planned):
            return True
        return self.trained_to(planned) == planned.last and not self.is_pending(planned)

    def is_pending(self, planned: PlannedStage) -> bool:
        """Whether a stage goes back from its newest checkpoint, to change its settings."""
        newest = newest_state(self.of(planned, CHECKPOINTS), planned.stage.name)
        return is_pending(planned.stage, newest)

    def is_grown(self, planned: PlannedStage) -> bool:
        """Whether the checkpoint that a stage begins with is there, or no longer needed."""
        start = self.of(planned, START)
        return start.exists() or self._is_proved(planned) or self.is_settled(planned)

    def is_verified(self, planned: PlannedStage) -> bool:
        """Whether that checkpoint was found to compute what the one before does, or may differ.

        A verdict of its own counts before that of a later stage: a gate that is shut stays shut.
        What grew in memory is no checkpoint that could be compared.
        """
        if planned.in_place:
            return True
        verdict = self._verdict(planned)
        return self.is_settled(planned) if verdict is None else verdict

    def newest(self, planned: PlannedStage) -> Path | None:
        """Return the folder of a stage's newest checkpoint, None if it is not there."""
        reached = self.trained_to(planned)
        if reached is None:
            return None
        folder = self.of(planned, CHECKPOINTS, folder_name(reached))
        return folder if folder.is_dir() else None

    def ancestry(self, planned: PlannedStage) -> Sequence[Member]:
        """Return the ancestry of what a stage begins with, that one last.

        Its manifest tells it, and where it was removed since, what the stage itself has saved.
        """
        start = self.of(planned, START)
        if start.exists():
            manifest = read_manifest(start)
            return [] if manifest is None else lineage(manifest, START)
        newest = self.newest(planned)
        state = None if newest is None else read_training_state(newest)
        return [] if state is None else state.family

    def grew_from(self, planned: PlannedStage) -> Json:
        """Return what is known of the checkpoint that a stage's start was made from."""
        known = self.ancestry(planned)
        manifest = read_manifest(self.of(planned, START))
        training = None if manifest is None else manifest.training
        trained = {} if training is None else training.to_json()
        return {**known[-2].to_json(), **trained} if known[1:] else {}

    def _verdict(self, planned: PlannedStage) -> bool | None:
        """Return whether verification proved a stage's start in full, None if it was not asked.

        Where another function is accepted, all else must have been as it should.
        """
        known = self.ancestry(planned)
        receipt = known[-1].receipt if known else None
        if receipt is None:
            return None
        if receipt.equal:
            return receipt.proven is not False
        return planned.accepts and not receipt.missing and self._only_differs(planned)

    def _only_differs(self, planned: PlannedStage) -> bool:
        """Whether a stage's start failed in nothing but its function, as far as it is there.

        It was asked before the stage was trained.
        """
        manifest = read_manifest(self.of(planned, START))
        receipt = None if manifest is None else manifest.receipt
        checks = () if receipt is None else receipt.checks
        return {check.name for check in checks if check.passed is False} <= {FUNCTION}

    def _is_proved(self, planned: PlannedStage) -> bool:
        """Whether a stage needs nothing any more of the one before."""
        if planned.in_place:
            return self.newest(planned) is not None
        return planned.is_given and self._verdict(planned) is True
