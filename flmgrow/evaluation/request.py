"""What is asked of an evaluation: tasks, and all else that decides on their scores.

A task is called as lm-evaluation-harness calls it, or as one of those that come with flmgrow;
``bits-per-byte:FILE`` is about a text of the user's. A score is of use only beside what it was
asked with: :meth:`Request.to_json` says that, and a resumed run must find the same.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import xxhash

from flmgrow.errors import UsageError
from flmgrow.storage.checksums import checksum_of
from flmgrow.storage.strict_json import Json
from flmgrow.text import Setting, Text
from flmgrow.trainer.data.sources import is_lines

BITS_PER_BYTE = "bits-per-byte"


@dataclass(frozen=True)
class Asked:
    """A task, or a group of tasks; ``file`` is the text of ``bits-per-byte``, and of no other.

    A name may be the path of a task's file as lm-evaluation-harness knows them.
    """

    name: str
    file: Path | None = None

    def __post_init__(self) -> None:
        if self.name == BITS_PER_BYTE and self.file is None:
            how = Setting("tasks", f"{BITS_PER_BYTE}:FILE")
            raise UsageError(f"task {BITS_PER_BYTE}: of which text?", Text("such as ", how))
        if self.file is not None and not self.file.is_file():
            raise UsageError("no such file", where=(f"task {self.name}", self.file))

    @property
    def task(self) -> str:
        """The name of its scores: with a file, that of the file as well."""
        return self.name if self.file is None else f"{self.name}-{self.file.name.partition('.')[0]}"

    def digest(self) -> str:
        """Return the sum of its file (XXH3, 128 bits); empty if it has none."""
        file = Path(self.name) if self.file is None else self.file
        return checksum_of(file, cached=True) if file.is_file() else ""


def asked_in(texts: Iterable[str]) -> tuple[Asked, ...]:
    """Return the tasks in lists such as ``open-llm,bits-per-byte:FILE``.

    Raises:
        UsageError: If there are none, one stands twice, or the file of one is missing.
    """
    found: list[Asked] = []
    for word in (word.strip() for text in texts for word in text.split(",")):
        if not word:
            continue
        name, colon, file = word.partition(":")
        asked = Asked(name, Path(file)) if colon and name == BITS_PER_BYTE else Asked(word)
        if asked.task in {each.task for each in found}:
            raise UsageError(f"task {asked.task}: stands there twice")
        found.append(asked)
    if not found:
        raise UsageError(Text(Setting("tasks"), ": names none"), "such as open-llm or iq")
    return tuple(found)


@dataclass(frozen=True)
class EvaluationRequest:
    """Tasks and how they are asked.

    ``data`` is a folder in which the data of tasks is looked for before the Hub is asked, or a file
    for tasks that are made of one. ``shots`` is the number of examples before each question, each
    task's own if None. ``seed`` draws them, and what is generated or sampled; 0 is as the harness
    does without one. ``limit`` is the
    number of questions of each task, all if None.
    """

    tasks: tuple[Asked, ...]
    data: Path | None = None
    shots: int | None = None
    seed: int = 0
    limit: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("shots", 0), ("seed", 0), ("limit", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(Text(Setting(name), f" {value}"), wanted=f"{least} or more")
        if self.data is not None and not self.data.exists():
            raise UsageError(
                "no such file or folder",
                where=Text(Setting("data"), f" {self.data}"),
                wanted="a folder with data sets, or a file of JSON lines",
            )

    def to_json(self) -> Json:
        """Return all that decides on the scores of a checkpoint, as plain data."""
        return {
            "tasks": [each.task for each in self.tasks],
            "files": {each.task: sum for each in self.tasks if (sum := each.digest())},
            "data": None if self.data is None else _data_name(self.data),
            "shots": self.shots,
            "seed": self.seed,
            "limit": self.limit,
        }


def _data_name(data: Path) -> str:
    """Return what the data of a request is known by: the sum of a file, or of all that a folder
    has of files that a task may read, and their names.
    """
    if data.is_file():
        return f"xxh3_128:{checksum_of(data, cached=True)}"
    digest = xxhash.xxh3_128()
    for file in sorted(each for each in data.rglob("*") if is_lines(each) and each.is_file()):
        digest.update(f"{file.relative_to(data)} {checksum_of(file, cached=True)}\n".encode())
    return f"xxh3_128:{digest.hexdigest()}"
