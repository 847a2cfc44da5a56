"""Everything of a run lies in one folder, and what has been done is read from there.

::

    RUN/schedule.yaml            the schedule, as it was given
    RUN/01-NAME/stage.yaml       what the trainer is given
    RUN/01-NAME/checkpoints/     what it saved
    RUN/01-NAME/metrics.jsonl    what it told
    RUN/02-NAME/growth.yaml      what expand is given
    RUN/02-NAME/start/           the grown checkpoint, with the receipt of its verification

No step keeps a record of its own: whether it is done shows in what it was to make, and that appears
whole or not at all. So a run that was killed at any moment goes on with the same command.

What a stage was needed for ends when the next one's growth is verified. From then on it is done,
whether or not its checkpoints are still there: who needs the disk may remove them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.files import first_bytes
from flmgrow.formats.iterations import TRACKER
from flmgrow.formats.manifest_file import lineage, read_manifest
from flmgrow.formats.megatron_writing import folder_name
from flmgrow.formats.training_state import read_training_state
from flmgrow.stages.schedule import PlannedStage

STAGE, GROWTH, START, CHECKPOINTS = "stage.yaml", "growth.yaml", "start", "checkpoints"

Json = dict[str, Any]


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
        tracker = self.of(planned, CHECKPOINTS, TRACKER)
        if not tracker.is_file():
            return None
        text = first_bytes(tracker, 64).decode("ascii", "replace").strip()
        if not text.isdecimal():
            raise BadCheckpointError(f"{tracker}: found {text!r}, wanted a number")
        return int(text)

    def is_trained(self, planned: PlannedStage) -> bool:
        """Whether a stage has come to its end."""
        return self.is_settled(planned) or self.trained_to(planned) == planned.last

    def is_grown(self, planned: PlannedStage) -> bool:
        """Whether the checkpoint that a stage begins with is there, or no longer needed."""
        start = self.of(planned, START)
        return start.exists() or self._is_proved(planned) or self.is_settled(planned)

    def is_verified(self, planned: PlannedStage) -> bool:
        """Whether that checkpoint was found to compute what the one before does.

        A verdict of its own counts before that of a later stage: a gate that is shut stays shut.
        """
        verdict = self._verdict(planned)
        return self.is_settled(planned) if verdict is None else verdict

    def newest(self, planned: PlannedStage) -> Path | None:
        """Return the folder of a stage's newest checkpoint, None if it is not there."""
        reached = self.trained_to(planned)
        if reached is None:
            return None
        folder = self.of(planned, CHECKPOINTS, folder_name(reached))
        return folder if folder.is_dir() else None

    def ancestry(self, planned: PlannedStage) -> Sequence[Json]:
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
        manifest = read_manifest(self.of(planned, START)) or {}
        return {**known[-2], **(manifest.get("training") or {})} if known[1:] else {}

    def _verdict(self, planned: PlannedStage) -> bool | None:
        """Return whether verification proved a stage's start in full, None if it was not asked."""
        known = self.ancestry(planned)
        receipt = known[-1].get("receipt") if known else None
        if not isinstance(receipt, dict):
            return None
        return receipt.get("equal") is True and receipt.get("proven") is not False

    def _is_proved(self, planned: PlannedStage) -> bool:
        return planned.target is not None and self._verdict(planned) is True
