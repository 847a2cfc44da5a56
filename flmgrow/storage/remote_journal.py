"""Which files of an output in an object store are finished: an object for each of them.

It says size, checksums, and the tag that the store has given the file. The store keeps the bytes;
they are not read again, as they would be from a disk.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from typing import Any

import xxhash

from flmgrow.errors import StorageError
from flmgrow.storage import journal
from flmgrow.storage.checksums import FileRecord
from flmgrow.storage.durable import RESUME
from flmgrow.storage.remote import writing
from flmgrow.storage.remote.addresses import Address
from flmgrow.storage.remote.marker import JOURNAL
from flmgrow.storage.remote.store import FoundObject

MOST_BYTES = 64 << 20
"""Of a small object of a half-done run: its plan, or a line of the journal."""


class RemoteJournal:
    """The journal of the output at ``address``. ``records`` are of the files that are finished."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self.records: dict[str, FileRecord] = {}
        self._tags: dict[str, str | None] = {}

    def add(self, record: FileRecord, found: FoundObject) -> None:
        """Put into the journal that a file is finished.

        Raises:
            StorageError: The store failed, or does not answer.
        """
        name = xxhash.xxh3_128_hexdigest(record.path.encode())
        line = journal.as_line({**asdict(record), "tag": found.tag})
        writing.put_small(self._address.below(f"{JOURNAL}/{name}"), line)
        self._take(record, found.tag)

    def resume(self, lines: Iterable[str], found: Mapping[str, FoundObject]) -> None:
        """Take over what objects with the keys ``lines`` say is finished, and the store still has.

        Raises:
            StorageError: The store failed, or does not answer.
        """
        for key in lines:
            line = writing.read_small(replace(self._address, key=key), MOST_BYTES)
            content: dict[str, Any] | None = None if line is None else journal.record_in(line[0])
            if content is None:
                continue
            tag, record = content.pop("tag"), FileRecord(**content)
            there = found.get(self._address.below(record.path).key)
            if there is not None and (there.size, there.tag) == (record.size, tag):
                self._take(record, tag)

    def check(self, there: Mapping[str, FoundObject]) -> None:
        """Raise StorageError unless all files are ``there`` as they were finished."""
        for path, record in self.records.items():
            at = self._address.below(path)
            now = there.get(at.key)
            if now is None or (now.size, now.tag) != (record.size, self._tags[path]):
                what = "vanished" if now is None else "is not what was written there"
                raise StorageError(what, RESUME, where=at)

    def notes(self) -> list[dict[str, Any]]:
        """Return what is finished as plain data."""
        return [{**asdict(each), "tag": self._tags[each.path]} for each in self.records.values()]

    def take_over(self, notes: Iterable[dict[str, Any]]) -> None:
        """Take what another rank notes to be finished."""
        for note in notes:
            tag, record = note.pop("tag"), FileRecord(**note)
            self._take(record, tag)

    def _take(self, record: FileRecord, tag: str | None) -> None:
        self.records[record.path], self._tags[record.path] = record, tag
