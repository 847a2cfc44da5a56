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

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flmgrow.errors import BadCheckpointError, UsageError
from flmgrow.formats.durable import make_folders, write_small
from flmgrow.formats.manifest_file import lineage, read_manifest
from flmgrow.formats.megatron import TRACKER
from flmgrow.formats.megatron_writing import folder_name
from flmgrow.formats.strict_yaml import dump_yaml, read_yaml
from flmgrow.formats.training_state import read_training_state
from flmgrow.model.tensors import parameter_count
from flmgrow.stages.schedule import PlannedStage
from flmgrow.trainer.stage_sections import Section

STAGE, GROWTH, START, CHECKPOINTS = "stage.yaml", "growth.yaml", "start", "checkpoints"
SCHEDULE = "schedule.yaml"
_LENGTHS = ("training.steps", "training.tokens")
_FREE = ("checkpoint.", "log.", "guard.")
"""What may change while a stage runs: how it is watched and kept. So may its length, to its end."""

_FOLDER = re.compile(r"\d{2,}-.+")

Json = dict[str, Any]


@dataclass(frozen=True, eq=False)
class RunFolder:
    """The folder of a run, and its stages."""

    path: Path
    stages: Sequence[PlannedStage]

    def of(self, planned: PlannedStage, *names: str) -> Path:
        """Return a path in a stage's folder."""
        return self.path.joinpath(planned.folder, *names)

    def before(self, planned: PlannedStage) -> PlannedStage:
        """Return the stage before."""
        return self.stages[self.stages.index(planned) - 1]

    def prepare(self, schedule: Path) -> None:
        """Write the files that commands are given.

        Raises UsageError, naming what differs, if the folder has stages that the schedule has not,
        if a stage that has begun would become another, or if a stage begins with what grew from
        another checkpoint than the one before it saved.
        """
        contents = {planned: self._contents(planned) for planned in self.stages}
        self._check_folders()
        for planned, files in contents.items():
            self._check_unchanged(planned, files)
            self._check_length(planned, schedule)
        for planned in self.stages[1:]:
            self._check_source(planned)
        for planned, files in contents.items():
            make_folders(Path(self.path.anchor), self.of(planned))
            for name, content in files.items():
                write_small(self.of(planned, name), encoded(content))
        write_small(self.path / SCHEDULE, schedule.read_bytes())

    def _contents(self, planned: PlannedStage) -> dict[str, Json]:
        stage = planned.stage
        begins: Json = {"folder": Path(CHECKPOINTS)}
        if planned.target is not None:
            begins["load"] = Path(START)
        checkpoint = stage.checkpoint.model_copy(update=begins)
        log: Json = {"metrics": Path("metrics.jsonl")}
        if stage.log.tensorboard is not None:
            log["tensorboard"] = Path("tensorboard")
        changed = {"checkpoint": checkpoint, "log": stage.log.model_copy(update=log)}
        files = {STAGE: plain(stage.model_copy(update=changed))}
        if planned.target is not None:
            files[GROWTH] = planned.target.model_dump(mode="json", exclude_none=True)
        return files

    def _check_folders(self) -> None:
        known = {planned.folder for planned in self.stages}
        found = sorted(self.path.iterdir()) if self.path.is_dir() else []
        for folder in found:
            is_stage = _FOLDER.fullmatch(folder.name) and (folder / STAGE).exists()
            if not is_stage or folder.name in known:
                continue
            begun = any((folder / name).exists() for name in (CHECKPOINTS, START))
            raise UsageError(
                f"{folder}: is a stage that the schedule does not have",
                "give another --out, or give the stage its name and place again"
                + ("" if begun else "; it has not begun: its folder may be removed"),
            )

    def _check_unchanged(self, planned: PlannedStage, files: dict[str, Json]) -> None:
        later = self.stages[self.stages.index(planned) + 1 :]
        settled = self.is_settled(planned)
        ended = settled or any(self.of(stage, START).exists() for stage in later)
        free = _FREE if ended else (*_FREE, *_LENGTHS)
        begun = {
            STAGE: settled or self.of(planned, CHECKPOINTS).exists(),
            GROWTH: settled or self.of(planned, START).exists() or bool(self._lineage(planned)),
        }
        for name, content in files.items():
            path = self.of(planned, name)
            if not begun[name] or not path.exists():
                continue
            old, new = written(path), flat(content)
            for key in sorted(old.keys() | new.keys()):
                if old.get(key) != new.get(key) and not key.startswith(free):
                    raise UsageError(
                        f"{path}: {key} is {old.get(key)}, the schedule says {new.get(key)}",
                        "this stage has begun: give another --out, or the schedule it began with",
                    )

    def _check_length(self, planned: PlannedStage, schedule: Path) -> None:
        reached = self.trained_to(planned)
        if reached is not None and reached > planned.last:
            key = "steps" if planned.stage.training.tokens is None else "tokens"
            raise UsageError(
                f"{schedule}: stage {planned.stage.name}: training.{key}: end it at iteration "
                f"{planned.last}, it has been trained to {reached}",
                f"give at least {reached - planned.first} steps, or another --out",
            )

    def _check_source(self, planned: PlannedStage) -> None:
        """Raise UsageError unless what a stage begins with speaks of the stage before as it is.

        The sum over all of a source's bytes is left to ``verify``: here is compared what is known
        without reading them.
        """
        before = self.before(planned)
        source, saved = self.of(before, CHECKPOINTS), self._newest(before)
        begun = bool(self._lineage(planned)) or self.of(planned, START).exists()
        if begun and saved is None and not self.is_verified(planned):
            raise UsageError(
                f"{self.of(planned, START)}: is not verified, and what it grew from is no longer "
                f"in {source}",
                "restore those checkpoints, or give another --out",
            )
        grew_from = self._grew_from(planned)
        for where, there in (("the schedule", _planned_end(before)), (str(source), _end_of(saved))):
            for key, value in there.items():
                if key in grew_from and grew_from[key] != value:
                    raise UsageError(
                        f"{self.of(planned)}: grew from a checkpoint whose {key} is "
                        f"{grew_from[key]}, {where} has {value}",
                        "restore what it grew from, or give another --out",
                    )

    def _newest(self, planned: PlannedStage) -> Path | None:
        """Return the folder of a stage's newest checkpoint, None if it is not there."""
        reached = self.trained_to(planned)
        folder = self.of(planned, CHECKPOINTS, folder_name(reached))
        return folder if reached is not None and folder.is_dir() else None

    def _lineage(self, planned: PlannedStage) -> Sequence[Json]:
        """Return the ancestry of what a stage begins with, that one last.

        Its manifest tells it, and where it was removed since, what the stage itself has saved.
        """
        start = self.of(planned, START)
        if start.exists():
            manifest = read_manifest(start)
            return [] if manifest is None else lineage(manifest, START)
        newest = self._newest(planned)
        state = None if newest is None else read_training_state(newest)
        return [] if state is None else state.family

    def _grew_from(self, planned: PlannedStage) -> Json:
        """Return what is known of the checkpoint that a stage's start was made from."""
        known = self._lineage(planned)
        manifest = read_manifest(self.of(planned, START)) or {}
        return {**known[-2], **(manifest.get("training") or {})} if known[1:] else {}

    def _verdict(self, planned: PlannedStage) -> bool | None:
        """Return what verification found of a stage's start, None if it was not asked."""
        known = self._lineage(planned)
        receipt = known[-1].get("receipt") if known else None
        return receipt.get("equal") is True if isinstance(receipt, dict) else None

    def _is_proved(self, planned: PlannedStage) -> bool:
        return planned.target is not None and self._verdict(planned) is True

    def is_settled(self, planned: PlannedStage) -> bool:
        """Whether a later stage begins with what grew out of this one, and that is verified."""
        place = self.stages.index(planned)
        return any(self._is_proved(later) for later in self.stages[place + 1 :])

    def trained_to(self, planned: PlannedStage) -> int | None:
        """Return the iteration of a stage's newest checkpoint, None if it has none."""
        tracker = self.of(planned, CHECKPOINTS, TRACKER)
        if not tracker.is_file():
            return None
        text = tracker.read_bytes()[:64].decode("ascii", "replace").strip()
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


def _planned_end(planned: PlannedStage) -> Json:
    """Return what a schedule says of a stage's last checkpoint."""
    return {"iteration": planned.last, "parameters": parameter_count(planned.config)}


def _end_of(saved: Path | None) -> Json:
    """Return what a checkpoint says of itself, under the names that its descendants have for it."""
    state = None if saved is None else read_training_state(saved)
    if state is None:
        return {}
    return {"name": state.stage, "iteration": state.iteration, **state.carried.model_dump()}


def written(path: Path) -> dict[str, object]:
    """Return the values in a file of the run's folder. Raises UsageError if it is no mapping."""
    hint = "restore it from a copy, or give another --out"
    try:
        content = read_yaml(path)
    except UsageError as error:
        raise UsageError(error.message, hint) from None
    if not isinstance(content, dict):
        found = "nothing" if content is None else f"{content!r:.60}"
        raise UsageError(f"{path}: found {found}, wanted a mapping", hint)
    return flat(content)


def plain(section: Section) -> Json:
    """Return a section as YAML has it."""
    content: Json = section.model_dump(mode="json", exclude_none=True)
    return content


def encoded(content: Json) -> bytes:
    """Return the bytes of a YAML file."""
    return dump_yaml(content).encode()


def flat(content: Any, prefix: str = "") -> dict[str, object]:
    """Return all values of nested mappings by their dotted keys."""
    if not isinstance(content, dict):
        return {prefix.removesuffix("."): content}
    return {
        k: v for name, inner in content.items() for k, v in flat(inner, f"{prefix}{name}.").items()
    }
