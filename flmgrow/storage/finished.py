"""Which files of an output folder are finished: known to all ranks, and on the disk.

Each rank has a journal of its own for those that it has written. What is checked, when a run
resumes and before it commits, is shared among the ranks.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from flmgrow.storage.checksums import FileRecord
from flmgrow.storage.journal import Journal
from flmgrow.storage.ranks import Ranks, first_of, flattened
from flmgrow.storage.read_back import SeenFiles, changed
from flmgrow.storage.shares import shared_out
from flmgrow.storage.staging import Staging


class FinishedFiles:
    """The files in ``staging`` that are finished, by relative path: its ``records``.

    This rank's are in ``journal``; ``seen`` knows which were read since they were written.
    """

    def __init__(self, journal: Journal, ranks: Ranks, staging: Staging, seen: SeenFiles) -> None:
        self._journal, self._ranks, self._staging, self._seen = journal, ranks, staging, seen
        self.records: dict[str, FileRecord] = {}

    def add(self, record: FileRecord) -> None:
        """Put on the disk that a file is finished.

        Raises:
            StorageError: The file system failed.
        """
        self._journal.append(asdict(record))
        self.records[record.path] = record

    def unite(self) -> None:
        """Let every rank know what all have finished."""
        self._take_over(self._ranks.exchange(self._notes(), flattened))

    def resume(self, listed: Iterable[Mapping[str, Any]]) -> None:
        """Take over what journals ``listed`` as finished, each rank checking its share, and remove
        all the rest.

        Raises:
            StorageError: The file system failed.
        """
        world = self._ranks.world
        records = [FileRecord(**entry) for entry in listed]
        own = shared_out(records, lambda record: record.size, world.size)[world.rank]
        folder = self._staging.folder
        intact = [asdict(record) for record in own if self._seen.is_intact(folder, record)]

        def settled(parts: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
            self._take_over(flattened(parts))
            self._staging.prune(self.records)
            return self._notes()

        self._take_over(self._ranks.exchange(intact, settled))

    def check_share(self, *, read: bool) -> None:
        """Read this rank's share of all files once more, if they are to be ``read``; another rank
        wrote them, as a rule. What this process has read back stays unread, unless it was changed
        since.

        Raises:
            StorageError: One is not what was written.
        """
        world, folder = self._ranks.world, self._staging.folder
        notes = self._ranks.exchange(self._notes(), first_of)
        records = [FileRecord(**each) for each in notes]
        shares = shared_out(records, lambda record: record.size, world.size)
        for record in shares[(world.rank + 1) % world.size] if read else []:
            if not self._seen.is_intact(folder, record):
                raise changed(folder / record.path)
        self._ranks.exchange(None, len)

    def _notes(self) -> list[dict[str, Any]]:
        """Return what is finished as plain data."""
        return [asdict(record) for record in self.records.values()]

    def _take_over(self, notes: Iterable[Mapping[str, Any]]) -> None:
        """Know what is noted, and nothing else, to be finished."""
        found = {each["path"]: FileRecord(**each) for each in notes}
        self.records.clear()
        self.records.update(found)
