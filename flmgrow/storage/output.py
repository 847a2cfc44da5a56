"""Writing an output folder that appears whole or not at all, and resuming it.

A half-written checkpoint looks like a whole one, and writing one may take hours. So an output
folder appears complete or not at all, and an interrupted run goes on where it stopped when the same
command is given again. For the output ``NAME`` there is a hidden folder beside it,
``.NAME.flmgrow/``, private to the user: ``lock``, ``plan.json``, ``journal`` and ``data/``.

1. Lock. A second run on the same output stops at once; the lock dies with its process.
2. Plan. ``plan.json`` describes the whole run. Another plan is refused, never mixed in; a folder
   without a plan, or without a finished file, holds nothing of worth and is emptied
   (``adoption.py``).
3. Journal. Files it lists are finished if they still have the checksum in it (a disk may have lost
   bits since); all others in ``data/`` are removed.
4. Each file is written as ``NAME.part``, fsynced, renamed, its folder fsynced; only then does the
   journal get its line, with size and checksums.
5. Commit. All files must have been read back from the disk and have their checksums
   (``read_back.py``), unless nobody wants the double check; the manifest is written, strays are
   removed, all folders are fsynced; one rename turns ``data/`` into the output, and refuses to
   replace anything; the parent folder is fsynced.
6. The hidden folder is removed. If that fails, or the run dies before, the next one removes it.

Where the file system cannot rename folders, files are written where they will stay, and the output
is marked until it is whole (``marker.py``); where it knows no locks, a lease takes their place
(``lease.py``).

Several ranks may write one output (``ranks.py``): files belong to the plan and not to a rank, so
each writes those that are its share of what is left, into a journal of its own. Rank 0 takes the
lock, adopts the plan and commits; checking files, on resuming and before the commit, is shared.
"""

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import xxhash

from flmgrow.errors import LostRankError
from flmgrow.storage import durable, folders, journal, marker
from flmgrow.storage.adoption import PLAN, adopt, encoded_plan, refuse_living
from flmgrow.storage.finished import FinishedFiles
from flmgrow.storage.hidden import (
    absolute,
    already_exists,
    hidden_folder,
    locked,
    one_run,
    remove_hidden,
)
from flmgrow.storage.lease import Lease
from flmgrow.storage.meeting_place import meeting_place
from flmgrow.storage.output_file import BegunOutput, OutputFile
from flmgrow.storage.ranks import Ranks, first_of, meeting, ranks_in
from flmgrow.storage.read_back import FlushedFile, ReadBackFile, SeenFiles, changed
from flmgrow.storage.staging import Staging
from flmgrow.storage.world import ALONE, World

FIRST_TELLS = 10.0
"""Seconds for rank 0 to tell what it finds as well: launchers end all with the one that leaves."""


class OutputFolder(BegunOutput):
    """The output folder of one run; a context manager that ends with or without :meth:`commit`.

    ``plan`` says, as JSON, all that decides the content: a later run with an equal plan resumes.
    ``restart`` drops what an interrupted run left; without ``double_check``, new files are not read
    back. All ranks of ``world`` make one; beginning and committing, they wait for each other.
    Leaving the block without a commit keeps what is finished for the next run.

    Raises:
        OutputExistsError: If ``path`` exists, another run is writing it or another plan has begun
            it.
        StorageError: If the file system fails.
        LostRankError: Another rank is lost.
    """

    def __init__(
        self,
        path: Path,
        plan: Mapping[str, object],
        *,
        restart: bool = False,
        double_check: bool = True,
        world: World = ALONE,
    ) -> None:
        self.path = absolute(path)
        self._temp = hidden_folder(self.path)
        self._staging = Staging(self.path, self._temp)
        self._finished = {}
        self._seen = SeenFiles(lambda _: self.ranks.report(0))
        self._double_check = double_check
        alone = double_check and world.size == 1
        self._kind = ReadBackFile if alone else FlushedFile
        self._writing: set[str] = set()
        self._mutex = threading.Lock()
        self._committed = False
        self._lease: Lease | None = None
        if self._staging.has_appeared:
            if not world.first:
                time.sleep(FIRST_TELLS)
            raise already_exists(self.path, told=not world.first)
        wanted = encoded_plan(plan)
        with contextlib.ExitStack() as stack:
            self.ranks = stack.enter_context(self._ranks(world))
            if world.first:
                lock = stack.enter_context(contextlib.ExitStack())
                self._lease = lock.enter_context(locked(self.path, self._temp))
                if self._staging.has_appeared:  # finished by another run while we came here
                    lock.close()
                    raise already_exists(self.path)
                refuse_living(self.path, self._temp, self.ranks.paths)
            self._meet(wanted)
            if world.first:
                adopt(self._temp, wanted, restart)
                self._staging.begin(wanted)
                self._begin_journal(stack)
            known = (self._staging.in_place, self._journal.records) if world.first else ()
            self._staging.in_place, listed = self.ranks.exchange(known, first_of)
            if not world.first:
                self._begin_journal(stack)
            self._files = FinishedFiles(self._journal, self.ranks, self._staging, self._seen)
            self._finished = self._files.records
            self._files.resume(listed)
            self._open = stack.pop_all()

    def _ranks(self, world: World) -> contextlib.AbstractContextManager[Ranks]:
        """Give the ranks, which meet in the hidden folder unless they have another."""
        if world.scratch is None:
            return ranks_in(self._temp, world)
        if world.first:
            folders.make_private_folder(self._temp)
        return meeting(meeting_place(self.path, world), world)

    def _meet(self, plan: str) -> None:
        """Wait for the other ranks; if they do not come, all is as it was."""
        try:
            self.ranks.meet(xxhash.xxh3_128_hexdigest(plan.encode()))
        except BaseException as error:
            alone = self.ranks.stop(error) and self.ranks.world.first
            if alone and not (self._temp / PLAN).exists():
                remove_hidden(self._temp)
            raise

    @property
    def _data(self) -> Path:
        """Where files are written."""
        return self._staging.folder

    @property
    def note(self) -> str:
        """What to tell of a file system that lacks something; it is empty as a rule."""
        locks = "locks (do not start two runs in the same seconds)" if self._lease else ""
        place = f"renaming (it is marked until it is whole, by {marker.MARK})"
        lacks = [locks, place if self._staging.in_place else ""]
        what = " and no ".join(filter(None, lacks))
        return f"{self.path}: its file system has no {what}" if what else ""

    def _check_lease(self) -> None:
        if self._lease is not None:
            with one_run(self.path):
                self._lease.check()

    def _begin_journal(self, stack: contextlib.ExitStack) -> None:
        self._journal = journal.Journal(self._temp / journal.name_of(self.ranks.world.rank))
        stack.callback(self._journal.close)

    @property
    def beside(self) -> Path | None:
        """The private folder beside the files, which goes away with the run; it outlives an
        interrupted one whose plan is the same.
        """
        return self._temp

    def free_space_check(self, needed: int) -> None:
        """Raise StorageError unless ``needed`` bytes, those still to be written, are free."""
        folders.check_free_space(self._temp, needed, self.path)

    @contextlib.contextmanager
    def file(self, relative: str, size: int, *, sha256: bool = False) -> Iterator[OutputFile]:
        """Give a file to write; after the block it is finished. Threads may write several at once.

        ``relative`` is below the output folder, not finished, not being written; all of its
        ``size`` bytes must be written, else ValueError. With ``sha256``, its record has that sum,
        too, after a resume as well.

        Raises:
            StorageError: The file system failed.
        """
        target = self._claim(relative)
        try:
            folders.make_folders(self._data, target.parent)
            with durable.new_file(target, size, self._staging.in_place, self._kind) as raw:
                output = OutputFile(raw, size, sha256, self.ranks.report)
                yield output
                record = output.record(relative)
            if raw.read_back:
                if raw.read_back != record.xxh3_128:
                    raise changed(target)
                self._seen.note(target)
            self._check_lease()
            self._files.add(record)
        finally:
            with self._mutex:
                self._writing.discard(relative)

    def add_small(self, relative: str, data: bytes) -> None:
        """Write a small file like any other; one that is finished already must hold ``data``."""
        if (found := self._finished.get(relative)) is not None:
            if found.xxh3_128 != xxhash.xxh3_128_hexdigest(data):
                raise ValueError(f"{relative}: one plan asks for two contents")
            return
        with self.file(relative, len(data)) as output:
            output.write(data)

    def finished_path(self, relative: str) -> Path:
        """Return where a finished file lies until the commit, to be read again."""
        if relative not in self._finished:
            raise ValueError(f"{relative}: not finished")
        return self._staging.target(relative)

    def drop(self, relative: str) -> None:
        """Remove a finished file, if there is one, which the output shall not have.

        Raises:
            StorageError: The file system failed.
        """
        target = self._staging.target(relative)
        if self._finished.pop(relative, None) is not None:
            with durable.storage_errors(target, "removing"):
                target.unlink()

    def unite(self) -> None:
        """Let every rank know what all have finished; all call it once they have written."""
        self._files.unite()

    def commit(self, last: Mapping[str, bytes]) -> str:
        """Write the small files ``last`` and make the output folder appear; all ranks call it, and
        only rank 0's ``last`` counts.

        Returns what could not be tidied up afterwards, as a note; it is empty as a rule. When only
        the very last fsync fails, the output is there but a power cut may still lose it.

        Raises:
            StorageError: The file system failed.
            OutputExistsError: If the output's name was taken meanwhile.
        """
        targets = {self._staging.target(relative): data for relative, data in last.items()}
        if self._committed or self._writing or last.keys() & self._finished.keys():
            raise ValueError("commit while files are being written, or of files already written")
        self._files.check_share(read=self._double_check)
        self._check_lease()
        if not self.ranks.world.first:
            return self._follow()
        self._staging.prune(self._finished)
        self._staging.appear(targets)
        self._committed = True
        durable.sync_folder(self.path.parent)
        with contextlib.suppress(LostRankError):  # it can lose nothing any more
            self.ranks.exchange(None, len)
        self.ranks.stop(None)
        if remove_hidden(self._temp):
            return ""
        return f"{self._temp}: could not be removed, and may be; {self.path} is complete"

    def _follow(self) -> str:
        """Wait until rank 0 has committed."""
        try:
            self.ranks.exchange(None, len)
        except LostRankError:
            if not self._staging.has_appeared:  # else it had only the tidying up to do
                raise
        self._committed = True
        return ""

    @property
    def empty(self) -> bool:
        """Whether no rank has finished anything."""
        return not self._finished and not journal.has_lines(self._temp)

    def discard(self) -> None:
        """Remove all that was written: for a run that cannot be resumed, or has nothing to
        resume. Rank 0 does it, once the others have stopped.
        """
        if self.ranks.world.first:
            self._staging.discard()
            remove_hidden(self._temp)

    def _claim(self, relative: str) -> Path:
        """Return the path of a file that may be begun now, and note that it was."""
        target = self._staging.target(relative)
        with self._mutex:
            if self._committed or relative in self._finished or relative in self._writing:
                raise ValueError(f"{relative}: already written or being written")
            self._writing.add(relative)
        return target
