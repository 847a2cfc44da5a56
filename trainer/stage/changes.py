"""Which settings of a stage may change while it runs, and telling that they did.

Settings of a stage may change while it runs: after a divergence, for example. Never silently. A
checkpoint remembers the settings that its stage was trained with, so a run that goes on can tell
what is other than before. It says so, and writes it beside the stage's metrics: which key, both
values, from which step on, by whom. Nothing in that file is ever replaced.

What is here loads neither torch nor megatron-core: ``flmgrow run`` plans with it.
"""

import getpass
import json
import os
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from flmgrow.errors import BadDataError
from flmgrow.storage.durable import storage_errors, write_small
from flmgrow.storage.strict_json import Json
from flmgrow.storage.strict_yaml import dotted
from flmgrow.storage.validation import problems
from flmgrow.text import Text
from flmgrow.trainer.stage.clock import StageProgress
from flmgrow.trainer.stage.file import StageFile

CHANGES = "changes.jsonl"

NEXT_SAMPLE = "the next sample"
"""What is another where a run passes over samples; no key of a stage file."""

TAKEN = "training.switches taken"
"""What was had of ``training.switches``, by name; a machine decides on it, no stage file."""

BEGAN_MASKED = "masks below 1 at the stage's begin"
"""Whether there were any; they are open later, and what they decided on stays."""

WATCHING = "guard."
"""Settings that end a run, and change none of its steps."""

_DATA = "data."
_UNFREEZES = "training.unfreeze_at"
_DECIDES = (
    "training.batch",
    "training.precision",
    "training.switches",
    "training.freeze",
    _UNFREEZES,
    "learning_rate.",
    "optimizer.",
    "masks.",
    "data.seed",
    "data.sequence_length",
    WATCHING,
)
_UNTIL = "learning_rate.decay_tokens"
_AT = "checkpoint.change_at"


@dataclass(frozen=True)
class Change:
    """One setting that is another from step ``step`` on, when the stage was at ``progress``."""

    stage: str
    step: int
    key: str
    before: Any
    after: Any
    progress: StageProgress

    @property
    def text(self) -> str:
        """The change as a person is told of it."""
        return f"{self.key} is {_shown(self.after)} after step {self.step:,}, was " + _shown(
            self.before
        )


def settings_of(stage: StageFile) -> Json:
    """Return what decides on a stage's steps, by key, as a checkpoint remembers it.

    Not what its model is, which never changes; nor its length, but for the rate's end; nor the
    paths of its data, whose content has a digest of its own. And from where on they hold, so that
    it is known whether the stage has been there.
    """
    found = dotted(stage.model_dump(mode="json"))
    settings = {key: value for key, value in found.items() if key.startswith(_DECIDES)}
    if settings[_UNTIL] is None:
        tokens, steps = stage.training.tokens, stage.training.steps
        settings[_UNTIL] = f"the stage's {steps:,} steps" if tokens is None else tokens
    settings[_UNFREEZES] = stage.unfreeze_step  # a share is of a length, which may change
    return settings | {_AT: stage.checkpoint.change_at}


def changed_settings(
    now: Mapping[str, Any], settings: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """Return what is otherwise ``now`` than in ``settings``, by key: the value then, and now.

    But for data, of which its own keys tell more, and for what only one of them knows, as they are
    of different versions.
    """
    return {
        key: (before, now[key])
        for key, before in settings.items()
        if key in now and now[key] != before and key != _AT and not key.startswith(_DATA)
    }


def goes_back(stage: StageFile, settings: Mapping[str, Any]) -> bool:
    """Whether ``stage`` trains otherwise than with ``settings``, or from another iteration on; a
    guard only watches.

    What an earlier version saved does not say from where on its settings hold.
    """
    now = settings_of(stage)
    return any(now.get(k, v) != v for k, v in settings.items() if not k.startswith(WATCHING))


def record(path: Path, changes: Sequence[Change]) -> None:
    """Add changes to a file of them, with who makes them, and when; known ones are left out.

    Raises:
        StorageError: The file system failed.
        BadDataError: For a file that holds something else.
    """
    known = read_changes(path)
    fresh = [change for change in changes if change not in known]
    if not fresh:
        return
    signed = {"who": _who(), "date": datetime.now(UTC).isoformat(timespec="seconds")}
    lines = [json.dumps(asdict(change) | signed, ensure_ascii=False) for change in fresh]
    with storage_errors(path, "reading"):
        before = path.read_bytes() if path.exists() else b""
    write_small(path, before + "".join(f"{line}\n" for line in lines).encode())


_READER = TypeAdapter(Change)


def read_changes(path: Path) -> list[Change]:
    """Return the changes in a file, oldest first; none if it is not there.

    Raises:
        BadDataError: For what is no change; the message names file and line.
        StorageError: The file system failed.
    """
    if not path.exists():
        return []
    with storage_errors(path, "reading"):
        lines = path.read_bytes().splitlines()
    return [_read(f"{path}:{number}", line) for number, line in enumerate(lines, start=1)]


def _read(where: str, line: bytes) -> Change:
    try:
        return _READER.validate_json(line)
    except ValidationError as error:
        raise BadDataError(
            Text("holds no change of a setting: ", problems(error.errors())),
            "remove the line if the file was edited, or restore it from a copy",
            where=where,
        ) from None


def _who() -> str:
    """Return the user and the machine, as far as they have names."""
    user = str(os.getuid())
    with suppress(OSError, KeyError):
        user = getpass.getuser()
    return f"{user}@{socket.gethostname()}"


def _shown(value: object) -> str:
    """Return a value as a stage file would say it; what is not said in it is left out."""
    if value is None:
        return "not given"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return _shown(value[0]) if len(value) == 1 else f"[{', '.join(map(_shown, value))}]"
    if isinstance(value, dict):
        said = (f"{key}: {_shown(each)}" for key, each in value.items() if each)
        return f"{{{', '.join(said)}}}"
    return f"{value}"
