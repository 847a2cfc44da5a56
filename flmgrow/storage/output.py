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
5. Commit. All files are read once more and must have their checksums; the manifest is written,
   strays are removed, all folders are fsynced; one rename turns ``data/`` into the output, and
   refuses to replace anything; the parent folder is fsynced.
6. The hidden folder is removed. If that fails, or the run dies before, the next one removes it.

Several ranks may write one output (``ranks.py``): files belong to the plan and not to a rank, so
each writes those that are its share of what is left, into a journal of its own. Rank 0 takes the
lock, adopts the plan and commits; checking files, on resuming and before the commit, is shared.
"""

import contextlib
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

import xxhash

from flmgrow.errors import LostRankError, OutputExistsError, StorageError, UsageError
from flmgrow.storage import durable, journal
from flmgrow.storage.adoption import PLAN, adopt, encoded_plan, refuse_living
from flmgrow.storage.checksums import FileRecord, is_intact, is_safe, verify_files
from flmgrow.storage.lock import LockHeldError, take_lock
from flmgrow.storage.output_file import OutputFile
from flmgrow.storage.ranks import first_of, flattened, ranks_in
from flmgrow.storage.remote.addresses import address_of, is_remote
from flmgrow.storage.shares import shared_out
from flmgrow.storage.world import ALONE, World

__all__ = ["FileRecord", "OutputFile", "OutputFolder", "clear_leftovers", "verify_files"]


class OutputFolder:
    """The output folder of one run; a context manager that ends with or without :meth:`commit`.

    ``plan`` says, as JSON, all that decides the content: a later run with an equal plan resumes.
    ``restart`` drops what an interrupted run left. All ranks of ``world`` make one; beginning and
    committing, they wait for each other. Leaving the block without a commit keeps what is finished
    for the next run. Raises OutputExistsError if ``path`` exists, another run is writing it or
    another plan has begun it; StorageError if the file system fails; LostRankError.
    """

    def __init__(
        self,
        path: Path,
        plan: Mapping[str, object],
        *,
        restart: bool = False,
        world: World = ALONE,
    ) -> None:
        self.path = _absolute(path)
        self._temp = hidden_folder(self.path)
        self._data = self._temp / "data"
        self._finished: dict[str, FileRecord] = {}
        self._writing: set[str] = set()
        self._mutex = threading.Lock()
        self._committed = False
        if durable.is_there(self.path):
            raise self._already_exists(told=not world.first)
        wanted = encoded_plan(plan)
        with contextlib.ExitStack() as stack:
            self.ranks = stack.enter_context(ranks_in(self._temp, world))
            if world.first:
                lock = stack.enter_context(contextlib.ExitStack())
                lock.enter_context(_locked(self.path, self._temp))
                if durable.is_there(self.path):  # finished by another run while we came here
                    lock.close()
                    raise self._already_exists()
                refuse_living(self.path, self._temp, self.ranks.paths)
            self._meet(wanted)
            if world.first:
                adopt(self._temp, wanted, restart)
                durable.make_folders(self._temp, self._data)
                self._begin_journal(stack)
            self._listed = self.ranks.exchange(
                self._journal.records if world.first else [], first_of
            )
            if not world.first:
                self._begin_journal(stack)
            self._resume()
            self._open = stack.pop_all()

    def _meet(self, plan: str) -> None:
        """Wait for the other ranks; if they do not come, all is as it was."""
        try:
            self.ranks.meet(xxhash.xxh3_128_hexdigest(plan.encode()))
        except BaseException as error:
            alone = self.ranks.stop(error) and self.ranks.world.first
            if alone and not (self._temp / PLAN).exists():
                _remove_hidden(self._temp)
            raise

    def _begin_journal(self, stack: contextlib.ExitStack) -> None:
        self._journal = journal.Journal(self._temp / journal.name_of(self.ranks.world.rank))
        stack.callback(self._journal.close)

    @property
    def finished(self) -> Mapping[str, FileRecord]:
        """Files that are complete, by relative path: earlier runs' at first, then this one's."""
        return MappingProxyType(self._finished)

    def __enter__(self) -> "OutputFolder":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.__exit__(kind, error, trace)

    def free_space_check(self, needed: int) -> None:
        """Raise StorageError unless ``needed`` bytes, those still to be written, are free."""
        durable.check_free_space(self._temp, needed, self.path)

    @contextlib.contextmanager
    def file(self, relative: str, size: int, *, sha256: bool = False) -> Iterator[OutputFile]:
        """Give a file to write; after the block it is finished. Threads may write several at once.

        ``relative`` is below the output folder, not finished, not being written; all of its
        ``size`` bytes must be written, else ValueError. With ``sha256``, its record has that sum,
        too, after a resume as well. Raises StorageError.
        """
        target = self._claim(relative)
        try:
            durable.make_folders(self._data, target.parent)
            with durable.new_file(target, size) as raw:
                output = OutputFile(raw, size, sha256, self.ranks.report)
                yield output
                record = output.record(relative)
            self._journal.append(asdict(record))
            self._finished[relative] = record
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
        return self._target(relative)

    def drop(self, relative: str) -> None:
        """Remove a finished file, if there is one, which the output shall not have.

        Raises StorageError.
        """
        target = self._target(relative)
        if self._finished.pop(relative, None) is not None:
            with durable.storage_errors(target, "removing"):
                target.unlink()

    def unite(self) -> None:
        """Let every rank know what all have finished; all call it once they have written."""
        self._take_over(self.ranks.exchange(self._records(), flattened))

    def commit(self, last: Mapping[str, bytes]) -> str:
        """Write the small files ``last`` and make the output folder appear; all ranks call it, and
        only rank 0's ``last`` counts.

        Returns what could not be tidied up afterwards, as a note; it is empty as a rule. Raises
        StorageError, or OutputExistsError if the output's name was taken meanwhile. When only the
        very last fsync fails, the output is there but a power cut may still lose it.
        """
        targets = {self._target(relative): data for relative, data in last.items()}
        if self._committed or self._writing or last.keys() & self._finished.keys():
            raise ValueError("commit while files are being written, or of files already written")
        self._check_share()
        if not self.ranks.world.first:
            return self._follow()
        self._appear(targets)
        self._committed = True
        durable.sync_folder(self.path.parent)
        with contextlib.suppress(LostRankError):  # it can lose nothing any more
            self.ranks.exchange(None, len)
        self.ranks.stop(None)
        if _remove_hidden(self._temp):
            return ""
        return f"{self._temp}: could not be removed, and may be; {self.path} is complete"

    def _check_share(self) -> None:
        """Read this rank's share of all files once more; another rank wrote them, as a rule."""
        world = self.ranks.world
        records = [FileRecord(**each) for each in self.ranks.exchange(self._records(), first_of)]
        shares = shared_out(records, lambda record: record.size, world.size)
        for record in shares[(world.rank + 1) % world.size]:
            if not is_intact(self._data, record, lambda _: self.ranks.report(0)):
                path = self._data / record.path
                changed = "is not what was written there: the disk or a program changed it"
                found = changed if path.exists() else "vanished"
                raise StorageError(found, hint=durable.RESUME, where=path)
        self.ranks.exchange(None, len)

    def _follow(self) -> str:
        """Wait until rank 0 has committed."""
        try:
            self.ranks.exchange(None, len)
        except LostRankError:
            if not durable.is_there(self.path):  # else it had only the tidying up to do
                raise
        self._committed = True
        return ""

    def _appear(self, targets: Mapping[Path, bytes]) -> None:
        self._drop_strays()
        for target, data in targets.items():
            durable.make_folders(self._data, target.parent)
            durable.write_small(target, data)
        durable.sync_tree(self._data)
        if not durable.rename_to_new(self._data, self.path):
            found = f"appeared while this run was writing; the result is in {self._data}"
            hint = f"move it away, then {durable.RESUME}"
            raise OutputExistsError(found, hint, where=self.path)

    @property
    def empty(self) -> bool:
        """Whether no rank has finished anything."""
        return not self._finished and not journal.has_lines(self._temp)

    def discard(self) -> None:
        """Remove all that was written: for a run that cannot be resumed, or has nothing to
        resume. Rank 0 does it, once the others have stopped.
        """
        if self.ranks.world.first:
            _remove_hidden(self._temp)

    def _target(self, relative: str) -> Path:
        if not is_safe(relative) or relative.endswith(durable.PART):
            raise ValueError(f"{relative!r} is not a relative path below the output folder")
        return self._data / relative

    def _claim(self, relative: str) -> Path:
        """Return the path of a file that may be begun now, and note that it was."""
        target = self._target(relative)
        with self._mutex:
            if self._committed or relative in self._finished or relative in self._writing:
                raise ValueError(f"{relative}: already written or being written")
            self._writing.add(relative)
        return target

    def _resume(self) -> None:
        """Take over what journals say is finished, each rank checking its share, and remove all
        the rest.
        """
        world = self.ranks.world
        records = [FileRecord(**entry) for entry in self._listed]
        own = shared_out(records, lambda record: record.size, world.size)[world.rank]
        intact = [
            asdict(record)
            for record in own
            if is_intact(self._data, record, lambda _: self.ranks.report(0))
        ]

        def settled(parts: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
            self._take_over(flattened(parts))
            self._drop_strays()
            return self._records()

        self._take_over(self.ranks.exchange(intact, settled))

    def _records(self) -> list[dict[str, Any]]:
        return [asdict(record) for record in self._finished.values()]

    def _take_over(self, records: list[dict[str, Any]]) -> None:
        self._finished = {each["path"]: FileRecord(**each) for each in records}

    def _drop_strays(self) -> None:
        durable.prune(self._data, keep={self._data / path for path in self._finished})

    def _already_exists(self, told: bool = False) -> OutputExistsError:
        note = ""
        if not told:
            with contextlib.suppress(OSError, StorageError, OutputExistsError):
                note = clear_leftovers(self.path)
        error = OutputExistsError(
            f"already exists{note}",
            hint="choose another output folder, or remove this one",
            where=self.path,
        )
        error.told = told  # by rank 0, which finds it as well
        return error


def clear_leftovers(path: Path) -> str:
    """Remove what a run that made the output ``path`` could not; return what to tell of it.

    A half-done run stays. Raises OutputExistsError if another run is at it, OSError, StorageError.
    """
    temp = hidden_folder(path)
    if not durable.is_own_folder(temp):
        return ""
    with _locked(path, temp):
        if (temp / "data").exists():
            return f"; {temp} holds a half-done run"
        if _remove_hidden(temp):
            return f"; removed the leftovers in {temp}"
    return ""


def hidden_folder(path: Path) -> Path:
    """Return the folder beside an output in which it is made."""
    return path.with_name(f".{path.name}.flmgrow")


@contextlib.contextmanager
def _locked(path: Path, temp: Path) -> Iterator[None]:
    """Keep other runs away from the output ``path`` and its hidden folder."""
    try:
        descriptor = take_lock(temp / "lock")
    except LockHeldError as held:
        raise OutputExistsError(
            f"another run ({held}) is writing it",
            hint="wait for it to finish or stop it, or choose another output folder",
            where=path,
        ) from None
    try:
        yield
    finally:
        durable.close_quietly(descriptor)


def _remove_hidden(temp: Path) -> bool:
    """Remove the hidden folder, the lock last; if that fails, a later run does it."""
    lock = temp / "lock"
    with contextlib.suppress(StorageError, OSError):
        durable.prune(temp, keep={lock})
        lock.unlink()
        temp.rmdir()
        return True
    return False


def _absolute(path: Path) -> Path:
    """Return ``path`` with its parent's links resolved; its own last part is left as it is."""
    if is_remote(path):
        raise UsageError(
            "is in an object store, wanted a folder", "name a folder", where=address_of(path)
        )
    if path.name in ("", ".."):
        raise UsageError("not a name for a new folder", hint="name the folder to make", where=path)
    parent = Path(os.path.realpath(path.parent))
    if not parent.is_dir():
        raise UsageError(f"no such folder, wanted for {path.name}", hint="create it", where=parent)
    return parent / path.name
