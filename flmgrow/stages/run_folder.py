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
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from flmgrow.errors import BadCheckpointError, UsageError
from flmgrow.formats.durable import make_folders, write_small
from flmgrow.formats.manifest_file import read_manifest
from flmgrow.formats.megatron import TRACKER
from flmgrow.stages.schedule import PlannedStage
from flmgrow.trainer.stage_sections import Section

STAGE, GROWTH, START, CHECKPOINTS = "stage.yaml", "growth.yaml", "start", "checkpoints"
SCHEDULE = "schedule.yaml"
_LENGTHS = ("training.steps", "training.tokens")
_FREE = ("checkpoint.", "log.", "guard.")
"""What may change while a stage runs: how it is watched and kept. So may its length, to its end."""

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

        Raises UsageError if a stage that has begun would become another, naming what differs.
        """
        contents = {planned: self._contents(planned) for planned in self.stages}
        for planned, files in contents.items():
            self._check_unchanged(planned, files)
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

    def _check_unchanged(self, planned: PlannedStage, files: dict[str, Json]) -> None:
        place = self.stages.index(planned)
        ended = any(self.of(later, START).exists() for later in self.stages[place + 1 :])
        free = _FREE if ended else (*_FREE, *_LENGTHS)
        begun = {
            STAGE: self.of(planned, CHECKPOINTS).exists(),
            GROWTH: self.of(planned, START).exists(),
        }
        for name, content in files.items():
            path = self.of(planned, name)
            if not begun[name] or not path.is_file():
                continue
            old, new = flat(yaml.safe_load(path.read_bytes())), flat(content)
            for key in sorted(old.keys() | new.keys()):
                if old.get(key) != new.get(key) and not key.startswith(free):
                    raise UsageError(
                        f"{path}: {key} is {old.get(key)}, the schedule says {new.get(key)}",
                        "this stage has begun: give another --out, or the schedule it began with",
                    )

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
        return self.trained_to(planned) == planned.last

    def is_grown(self, planned: PlannedStage) -> bool:
        """Whether the checkpoint that a stage begins with is there."""
        return self.of(planned, START).exists()

    def is_verified(self, planned: PlannedStage) -> bool:
        """Whether that checkpoint was found to compute what the one before does."""
        manifest = read_manifest(self.of(planned, START))
        return bool(manifest and manifest["receipt"] and manifest["receipt"]["equal"])


def plain(section: Section) -> Json:
    """Return a section as YAML has it."""
    content: Json = section.model_dump(mode="json", exclude_none=True)
    return content


def encoded(content: Json) -> bytes:
    """Return the bytes of a YAML file."""
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True).encode()


def flat(content: Any, prefix: str = "") -> dict[str, object]:
    """Return all values of nested mappings by their dotted keys."""
    if not isinstance(content, dict):
        return {prefix.removesuffix("."): content}
    return {
        k: v for name, inner in content.items() for k, v in flat(inner, f"{prefix}{name}.").items()
    }
