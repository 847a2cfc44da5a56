"""Writing an output into an object store: whole or refused by who reads it, and resumed.

What ``output.py`` promises of a folder on a disk rests on renaming, locks and fsync, none of which
an object store has. Instead, an object is there whole or not at all, and can be put on condition
that there is none, or still the one that was read. For the output ``s3://BUCKET/NAME`` there are,
while it is being written, ``lease``, ``plan.json`` and ``journal/`` below ``NAME/.flmgrow/``.

1. Lease. A second run stops; the lease of a dead run expires (``remote_lease.py``).
2. Plan. It describes the whole run, as on a disk; another one is refused. From now on every command
   refuses to read the folder (``remote/marker.py``).
3. Each file is an upload in parts under its final key. Once it is complete, an object of its own in
   the journal says so: size, checksums, and the tag that the store has given it.
4. Resuming, files are taken over that still have size and tag of the journal. The store keeps the
   bytes; they are not read again, as they would be from a disk.
5. Commit. All objects must have their sizes and tags; strays are deleted; the small files are put,
   a tracker among them; at the very last, ``.flmgrow/complete``.
6. Plan, journal and lease are deleted. What is left of them, the next run of the command deletes.

Programs that know nothing of the marker may see files of a half-done run, but no tracker that leads
to them.

Several ranks may write one output, as on a disk: each uploads its share of the files, and notes
them in the journal. They meet in a folder (``meeting_place.py``). Rank 0 has the lease, adopts the
plan and commits; the others look whether its lease is renewed.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import xxhash

from flmgrow.errors import (
    FlmgrowError,
    LostRankError,
    OutputExistsError,
    UsageError,
)
from flmgrow.storage.adoption import encoded_plan, other_plan_error
from flmgrow.storage.checksums import is_safe
from flmgrow.storage.meeting_place import meeting_place
from flmgrow.storage.output_file import BegunOutput, OutputFile
from flmgrow.storage.ranks import first_of, flattened, meeting
from flmgrow.storage.remote import store, writing
from flmgrow.storage.remote.addresses import Address, address_of
from flmgrow.storage.remote.marker import COMPLETE, JOURNAL, LEASE, PLAN, is_mark
from flmgrow.storage.remote.store import FoundObject
from flmgrow.storage.remote_journal import MOST_BYTES, RemoteJournal
from flmgrow.storage.remote_lease import RemoteLease, SeenLease
from flmgrow.storage.world import ALONE, World
from flmgrow.text import Found, Text


class RemoteOutput(BegunOutput):
    """The output of one run in an object store; used as an ``OutputFolder`` is.

    Raises:
        OutputExistsError: If there is something at ``path``, another run is writing it or another
            plan has begun it.
        StorageError: The store failed, or does not answer.
        LostRankError: Another rank is lost.
        UsageError: For ranks that cannot meet.
    """

    note = ""

    def __init__(
        self,
        path: Path,
        plan: Mapping[str, object],
        *,
        restart: bool = False,
        world: World = ALONE,
    ) -> None:
        self.address = _destination(path)
        self._journal = RemoteJournal(self.address)
        self._finished = self._journal.records
        self._writing: set[str] = set()
        self._committed = False
        wanted = encoded_plan(plan)
        with contextlib.ExitStack() as stack:
            place = meeting_place(path, world) if world.size > 1 else Path()
            self.ranks = stack.enter_context(meeting(place, world))
            if world.first:
                self._refuse_existing(store.list_below(self.address))
            self.ranks.meet(xxhash.xxh3_128_hexdigest(wanted.encode()))
            self._lease = self._begun(wanted, restart, stack)
            self._open = stack.pop_all()

    def _begun(
        self, plan: str, restart: bool, stack: contextlib.ExitStack
    ) -> "RemoteLease | SeenLease":
        """Take the lease and adopt the plan, or hear from rank 0 that it has."""
        if not self.ranks.world.first:
            holder, notes = self.ranks.exchange(None, first_of)
            self._journal.take_over(notes)
            return SeenLease(self.address, holder)
        lease = RemoteLease(self.address)
        stack.callback(lease.release)
        found = store.list_below(self.address)
        self._refuse_existing(found)
        self._adopt(plan, found, restart)
        self.ranks.exchange((lease.holder, self._journal.notes()), first_of)
        return lease

    @property
    def empty(self) -> bool:
        """Whether no rank has finished anything; one that cannot be asked may have."""
        if self._finished:
            return False
        with contextlib.suppress(FlmgrowError), store.hurried():
            return not store.list_below(self.address.below(JOURNAL))
        return False

    def free_space_check(self, needed: int) -> None:
        """Do nothing: an object store does not say."""

    @contextlib.contextmanager
    def file(self, relative: str, size: int, *, sha256: bool = False) -> Iterator[OutputFile]:
        """Give a file to write; after the block it is finished.

        ``relative`` is below the output, not finished, not being written; all of its ``size`` bytes
        must be written, else ValueError. With ``sha256``, its record has that sum, too.

        Raises:
            StorageError: The store failed, or does not answer.
            OutputExistsError: If another run has taken over.
        """
        if not is_safe(relative) or is_mark(self.address, self.address.below(relative).key):
            raise ValueError(f"{relative!r} is not a relative path below the output")
        if self._committed or relative in self._finished or relative in self._writing:
            raise ValueError(f"{relative}: already written or being written")
        self._writing.add(relative)
        try:
            self._lease.check()
            with writing.new_object(self.address.below(relative), size) as raw:
                output = OutputFile(raw, size, sha256, self._report)
                yield output
                record = output.record(relative)
            self._journal.add(record, raw.found)
        finally:
            self._writing.discard(relative)

    def _report(self, nbytes: int) -> None:
        self._lease.check()
        self.ranks.report(nbytes)

    @property
    def beside(self) -> Path | None:
        """None: an object store has no folder beside the output."""
        return None

    def unite(self) -> None:
        """Let every rank know what all have finished; all call it once they have written."""
        self._journal.take_over(self.ranks.exchange(self._journal.notes(), flattened))

    def commit(self, last: Mapping[str, bytes]) -> str:
        """Put the small files ``last`` and finish the output; all ranks call it, and only rank 0's
        ``last`` counts.

        Returns what could not be tidied up afterwards, as a note; it is empty as a rule.

        Raises:
            StorageError: The store failed, or does not answer.
            OutputExistsError: If another run has taken over.
        """
        if self._committed or self._writing or last.keys() & self._finished.keys():
            raise ValueError("commit while files are being written, or of files already written")
        self._lease.check()
        self.ranks.exchange(None, len)  # nobody writes any more
        if not isinstance(self._lease, RemoteLease):
            return self._follow()
        self._check(store.list_below(self.address), last)
        for relative, data in last.items():
            writing.put_small(self.address.below(relative), data)
        self._lease.renew()
        self._lease.check()
        content = {"files": len(self._finished) + len(last)}
        writing.put_small(self.address.below(COMPLETE), json.dumps(content).encode())
        self._committed = True
        with contextlib.suppress(LostRankError):  # it can lose nothing any more
            self.ranks.exchange(None, len)
        self.ranks.stop(None)
        try:
            with store.hurried():
                _tidy(self.address)
        except FlmgrowError:
            return f"{self.address}/.flmgrow: holds leftovers; {self.address} is complete"
        return ""

    def _follow(self) -> str:
        """Wait until rank 0 has committed."""
        try:
            self.ranks.exchange(None, len)
        except LostRankError:
            if store.look(self.address.below(COMPLETE)) is None:  # else it had only to tidy up
                raise
        self._committed = True
        return ""

    def discard(self) -> None:
        """Delete all that was written, if the folder is still this run's. Rank 0 does it, once the
        others have stopped.
        """
        if not isinstance(self._lease, RemoteLease):
            return
        with contextlib.suppress(FlmgrowError), store.hurried():
            self._lease.renew()
            self._lease.check()
            self._drop(store.list_below(self.address))

    def _refuse_existing(self, found: Mapping[str, FoundObject]) -> None:
        complete = self._key(COMPLETE) in found
        others = any(not is_mark(self.address, key) for key in found)
        if complete or (others and self._key(PLAN) not in found):
            raise OutputExistsError(
                "already exists",
                "choose another output, or delete this one",
                where=self.address,
            )

    def _adopt(self, wanted: str, found: Mapping[str, FoundObject], restart: bool) -> None:
        """Go on with a run of this plan, refuse another's, or begin anew."""
        there = None
        if self._key(PLAN) in found:
            there = writing.read_small(self.address.below(PLAN), MOST_BYTES)
        same = there is not None and there[0] == wanted.encode()
        noted = [key for key in found if key.startswith(f"{self._key(JOURNAL)}/")]
        if there is not None and not same and noted and not restart:
            raise other_plan_error(there[0], wanted, self.address)
        if same and not restart:
            self._journal.resume(noted, found)
            return
        self._drop(found)
        writing.put_small(self.address.below(PLAN), wanted.encode())

    def _check(self, there: Mapping[str, FoundObject], last: Mapping[str, bytes]) -> None:
        """See that all files are as they were finished, and delete what else there is."""
        self._journal.check(there)
        known = {self._key(path) for path in (*self._finished, *last)}
        strays = [key for key in there if key not in known and not is_mark(self.address, key)]
        writing.delete(self.address, strays)

    def _drop(self, found: Mapping[str, FoundObject]) -> None:
        """Delete all of a half-done run, the plan after all that it makes refused."""
        keep = {self._key(LEASE), self._key(PLAN)}
        writing.delete(self.address, [key for key in found if key not in keep])
        writing.delete(self.address, {self._key(PLAN)} & found.keys())

    def _key(self, relative: str) -> str:
        return self.address.below(relative).key


def clear_leftovers(path: Path) -> None:
    """Delete what a run that finished the output ``path`` could not.

    Raises:
        OutputExistsError: If another run is at it.
        StorageError: The store failed, or does not answer.
    """
    address = address_of(path)
    marks = store.list_below(address.below(".flmgrow"))
    if address.below(COMPLETE).key in marks and len(marks) > 1:
        lease = RemoteLease(address)
        try:
            _tidy(address)
        finally:
            lease.release()


def _tidy(address: Address) -> None:
    """Delete what only a half-done run needs; the lease is its holder's."""
    keep = {address.below(COMPLETE).key, address.below(LEASE).key}
    marks = store.list_below(address.below(".flmgrow"))
    writing.delete(address, [key for key in marks if key not in keep])


def _destination(path: Path) -> Address:
    """Return where to write.

    Raises:
        UsageError: Where that cannot be.
    """
    address = address_of(path)
    if address.is_bucket:
        raise UsageError(
            Text("is a ", Found(address.service.container)),
            address.service.form,
            where=address,
            wanted="a folder in it",
        )
    return address
