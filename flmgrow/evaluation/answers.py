"""Answers kept as they come, so that an evaluation that was broken off goes on where it was.

A file holds the answers of one rank, one JSON object on each line, with a sum of its own. The first
line says what answered: the content of the checkpoint, its masks, tokenizer, dtype and backend.
Answers of anything else are never mixed with those. A line counts once it is whole: the last one
may have been cut off and is written anew. The files are data, and nothing in them is run.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from flmgrow.errors import BadCheckpointError, BadDataError, UsageError
from flmgrow.storage.content_sum import is_intact, with_sum
from flmgrow.storage.durable import close_quietly, storage_errors, sync_folder, write_all
from flmgrow.storage.journal import OWN_FILE
from flmgrow.storage.strict_json import Json, parse_object

Answer = tuple[float, bool] | float | str
"""A log-likelihood and whether it is the likeliest; that of a whole text; or a text."""

VERSION = 1
LOG_LIKELIHOOD, ROLLING, GENERATE = "loglikelihood", "loglikelihood_rolling", "generate_until"
_FIELD = "answers_version"
_SYNC = 2.0
"""Seconds of answers that a machine may lose when it goes down."""


def key_of(kind: str, *asked: object) -> str:
    """Return the name of a question: a digest of all that was asked."""
    text = json.dumps([kind, *asked], sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class Answers:
    """The answers in ``folder``, those of all ranks; new ones go to the file of ``rank``.

    ``identity`` says what answers.

    Raises:
        UsageError: If the folder's answers are of something else.
        BadDataError: For a damaged line.
        StorageError: The file system failed.
    """

    def __init__(self, folder: Path, identity: Mapping[str, str], rank: int = 0) -> None:
        self._known: dict[str, Answer] = {}
        self._identity = dict(identity)
        self._path = folder / f"answers.{rank}.jsonl"
        self._synced = time.monotonic()
        with storage_errors(folder, "making"):
            folder.mkdir(parents=True, exist_ok=True)
        for path in sorted({*folder.glob("answers.*.jsonl")} - {self._path}):
            with storage_errors(path, "reading"):
                self._read(path, path.read_bytes())
        with storage_errors(self._path, "opening"):
            self._descriptor = os.open(self._path, OWN_FILE, 0o644)
            try:
                self._begin(folder)
            except BaseException:
                self.close()
                raise

    def _begin(self, folder: Path) -> None:
        """Read the own file, cut off what is no whole line, and head it if it is new."""
        self._end = self._read(self._path, self._path.read_bytes())
        os.ftruncate(self._descriptor, self._end)
        if not self._end:
            self._write({_FIELD: VERSION, "identity": self._identity})
            sync_folder(folder)

    def __len__(self) -> int:
        return len(self._known)

    @property
    def known(self) -> dict[str, Answer]:
        """All answers, by the names of their questions."""
        return dict(self._known)

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def __getitem__(self, key: str) -> Answer:
        return self._known[key]

    def keep(self, key: str, answer: Answer) -> None:
        """Put an answer into the file, unless it is known.

        Raises:
            StorageError: The file system failed.
        """
        if key in self._known:
            return
        self._known[key] = answer
        with storage_errors(self._path, "adding a line"):
            self._write({"key": key, "answer": _plain(answer)})
            if time.monotonic() - self._synced > _SYNC:
                self.sync()

    def learn(self, answers: Mapping[str, Answer]) -> None:
        """Know what another rank has answered, and keeps, from now on."""
        self._known = {**answers, **self._known}

    def sync(self) -> None:
        """Put on the disk, for certain, what was kept.

        Raises:
            StorageError: The file system failed.
        """
        with storage_errors(self._path, "syncing"):
            os.fsync(self._descriptor)
        self._synced = time.monotonic()

    def close(self) -> None:
        """Close the file."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            close_quietly(descriptor)

    def _write(self, content: Json) -> None:
        line = json.dumps(with_sum(content)).encode() + b"\n"
        write_all(self._descriptor, memoryview(line), self._end)
        self._end += len(line)

    def _read(self, path: Path, content: bytes) -> int:
        """Learn what a file holds; return where its last whole line ends."""
        whole = content[: content.rfind(b"\n") + 1]
        lines = _lines(path, whole)
        header = next(lines, None)
        if header is None:
            return 0
        self._check(path, header)
        for number, line in enumerate(lines, 2):
            key, answer = line.get("key"), _answer(line.get("answer"))
            if not isinstance(key, str) or answer is None:
                raise _damaged(path, number)
            self._known[key] = answer
        return len(whole)

    def _check(self, path: Path, header: Json) -> None:
        """Raise UsageError if the answers under this header are not of what answers now."""
        found = header.get("identity")
        if header.get(_FIELD) != VERSION or not isinstance(found, dict):
            raise BadDataError(
                "has no answers that this version of flmgrow reads",
                "give another folder, or remove the file to have them answered anew",
                where=path,
            )
        for name in sorted(found.keys() | self._identity.keys()):
            before, now = found.get(name), self._identity.get(name)
            if before != now:
                raise UsageError(
                    f"holds answers of another {name}: {before}, now it is {now}",
                    "give another folder, or remove the file to have them answered anew",
                    where=path,
                )


def _lines(path: Path, content: bytes) -> Iterator[Json]:
    """Yield the objects on the lines of a file.

    Raises:
        BadDataError: For a damaged one.
    """
    for number, line in enumerate(content.splitlines(), 1):
        try:
            found = parse_object(line, str(path))
        except BadCheckpointError:
            raise _damaged(path, number) from None
        if not is_intact(found):
            raise _damaged(path, number)
        yield found


def _damaged(path: Path, number: int) -> BadDataError:
    return BadDataError(
        f"line {number} is damaged",
        "remove the line, or the file, to have it answered anew",
        where=path,
    )


def _plain(answer: Answer) -> object:
    """Return an answer as JSON holds it, which has no infinite numbers."""
    if isinstance(answer, tuple):
        return [repr(answer[0]), answer[1]]
    return answer if isinstance(answer, str) else {"log_likelihood": repr(answer)}


def _answer(plain: object) -> Answer | None:
    """Return the answer that ``_plain`` made plain; None if it is none."""
    match plain:
        case str():
            return plain
        case [str(number), bool(greedy)]:
            return (found, greedy) if (found := _number(number)) is not None else None
        case {"log_likelihood": str(number)}:
            return _number(number)
    return None


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
