"""Writing an output folder that appears whole or not at all, and resuming it.

A half-written checkpoint looks like a whole one, and writing one may take hours. So an output
folder appears complete or not at all, and an interrupted run goes on where it stopped when the same
command is given again. For the output ``NAME`` there is a hidden folder beside it,
``.NAME.flmgrow/``, private to the user: ``lock``, ``plan.json``, ``journal`` and ``data/``.

1. Lock. A second run on the same output stops at once; the lock dies with its process.
2. Plan. ``plan.json`` describes the whole run. Another plan is refused, never mixed in; a folder
   without a plan, or without a finished file, holds nothing of worth and is emptied.
3. Journal. Files it lists are finished if they still have the checksum in it (a disk may have lost
   bits since); all others in ``data/`` are removed.
4. Each file is written as ``NAME.part``, fsynced, renamed, its folder fsynced; only then does the
   journal get its line, with size and checksums.
5. Commit. All files are read once more and must have their checksums; the manifest is written,
   strays are removed, all folders are fsynced; one rename turns ``data/`` into the output, and
   refuses to replace anything; the parent folder is fsynced.
6. The hidden folder is removed. If that fails, or the run dies before, the next one removes it.
"""

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType

import xxhash

from flmgrow.errors import OutputExistsError, StorageError, UsageError
from flmgrow.storage import durable, journal
from flmgrow.storage.checksums import FileRecord, is_intact, is_safe, verify_files
from flmgrow.storage.lock import LockHeldError, take_lock

__all__ = ["FileRecord", "OutputFile", "OutputFolder", "clear_leftovers", "verify_files"]

PROTOCOL = 2
SHOWN_DIFFERENCES = 5


class OutputFile:
    """One file being written in sequence; made by :meth:`OutputFolder.file`."""

    def __init__(self, file: durable.NewFile, size: int, sha256: bool) -> None:
        self._file = file
        self._size = size
        self._hash = xxhash.xxh3_128()
        self._sha256 = hashlib.sha256() if sha256 else None

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append all of ``data`` (C-contiguous). Raises StorageError."""
        view = memoryview(data)
        if not view.nbytes:
            return
        view = view.cast("B")
        if self._file.position + view.nbytes > self._size:
            raise ValueError(f"more than the planned {self._size} bytes were written")
        self._hash.update(view)
        if self._sha256 is not None:
            self._sha256.update(view)
        self._file.write(view)

    def _record(self, relative: str) -> FileRecord:
        if self._file.position != self._size:
            raise ValueError(f"{self._file.position} bytes were written, {self._size} planned")
        sha256 = "" if self._sha256 is None else self._sha256.hexdigest()
        return FileRecord(relative, self._size, self._hash.hexdigest(), sha256)


class OutputFolder:
    """The output folder of one run; a context manager that ends with or without :meth:`commit`.

    ``plan`` says, as JSON, all that decides the content: a later run with an equal plan resumes.
    ``restart`` drops what an interrupted run left. Leaving the block without a commit keeps what
    is finished for the next run. Raises OutputExistsError if ``path`` exists, another run is
    writing it or another plan has begun it; StorageError if the file system fails.
    """

    def __init__(self, path: Path, plan: Mapping[str, object], *, restart: bool = False) -> None:
        self.path = _absolute(path)
        self._temp = _hidden(self.path)
        self._data = self._temp / "data"
        self._finished: dict[str, FileRecord] = {}
        self._writing: set[str] = set()
        self._mutex = threading.Lock()
        self._committed = False
        if os.path.lexists(self.path):
            raise self._already_exists()
        durable.make_private_folder(self._temp)
        with contextlib.ExitStack() as stack:
            stack.enter_context(_locked(self.path, self._temp))
            if os.path.lexists(self.path):  # finished by another run while we came here
                stack.close()
                raise self._already_exists()
            self._adopt(plan, restart)
            self._journal = journal.Journal(self._temp / journal.NAME)
            stack.callback(self._journal.close)
            self._resume()
            self._open = stack.pop_all()

    @property
    def finished(self) -> Mapping[str, FileRecord]:
        """Files that are complete, by relative path: earlier runs' at first, then this one's."""
        return MappingProxyType(self._finished)

    def __enter__(self) -> "OutputFolder":
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

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
                output = OutputFile(raw, size, sha256)
                yield output
                record = output._record(relative)
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

    def commit(self, last: Mapping[str, bytes]) -> str:
        """Write the small files ``last`` and make the output folder appear.

        Returns what could not be tidied up afterwards, as a note; it is empty as a rule. Raises
        StorageError, or OutputExistsError if the output's name was taken meanwhile. When only the
        very last fsync fails, the output is there but a power cut may still lose it.
        """
        targets = {self._target(relative): data for relative, data in last.items()}
        if self._committed or self._writing or last.keys() & self._finished.keys():
            raise ValueError("commit while files are being written, or of files already written")
        for record in self._finished.values():
            if not is_intact(self._data, record):
                path = self._data / record.path
                changed = "is not what was written there: the disk or a program changed it"
                found = changed if path.exists() else "vanished"
                raise StorageError(f"{path}: {found}", hint=durable.RESUME)
        self._drop_strays()
        for target, data in targets.items():
            durable.make_folders(self._data, target.parent)
            durable.write_small(target, data)
        durable.sync_tree(self._data)
        if not durable.rename_to_new(self._data, self.path):
            raise OutputExistsError(
                f"{self.path}: appeared while this run was writing; the result is in {self._data}",
                hint=f"move it away, then {durable.RESUME}",
            )
        self._committed = True
        durable.sync_folder(self.path.parent)
        if _remove_hidden(self._temp):
            return ""
        return f"{self._temp}: could not be removed, and may be; {self.path} is complete"

    def discard(self) -> None:
        """Remove all that was written: for a run that cannot be resumed, or has nothing to
        resume.
        """
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

    def _adopt(self, plan: Mapping[str, object], restart: bool) -> None:
        """Make the hidden folder this plan's: accept its own, refuse another's, or begin anew."""
        place = self._temp / "plan.json"
        wanted = json.dumps({"protocol": PROTOCOL, "plan": plan}, indent=1, sort_keys=True)
        with durable.storage_errors(place, "reading"):
            found = place.read_bytes() if place.exists() else None
        wanted_by_nobody = found != wanted.encode() and not journal.has_lines(self._temp)
        if restart or found is None or wanted_by_nobody:
            # A crash in here does no harm: without a plan, nothing in the folder is trusted.
            durable.prune(self._temp, keep={self._temp / "lock"})
            durable.sync_folder(self._temp)
            durable.write_small(place, wanted.encode())
            durable.sync_folder(self._temp.parent)
        elif found != wanted.encode():
            raise OutputExistsError(
                f"{self._temp}: holds a half-done run of another plan: "
                + _differences(found, wanted),
                hint="give that run's command to finish it, choose another output folder, "
                "or pass --restart to drop what it wrote",
            )
        durable.make_folders(self._temp, self._data)

    def _resume(self) -> None:
        """Take over what the journal says is finished and remove all the rest."""
        for entry in self._journal.records:
            record = FileRecord(**entry)  # type: ignore[arg-type]  # our own line, its sum fits
            if is_intact(self._data, record):
                self._finished[record.path] = record
        self._drop_strays()

    def _drop_strays(self) -> None:
        durable.prune(self._data, keep={self._data / path for path in self._finished})

    def _already_exists(self) -> OutputExistsError:
        note = ""
        with contextlib.suppress(OSError, StorageError, OutputExistsError):
            note = clear_leftovers(self.path)
        return OutputExistsError(
            f"{self.path}: already exists{note}",
            hint="choose another output folder, or remove this one",
        )


def clear_leftovers(path: Path) -> str:
    """Remove what a run that made the output ``path`` could not; return what to tell of it.

    A half-done run stays. Raises OutputExistsError if another run is at it, OSError, StorageError.
    """
    temp = _hidden(path)
    if not durable.is_own_folder(temp):
        return ""
    with _locked(path, temp):
        if (temp / "data").exists():
            return f"; {temp} holds a half-done run"
        if _remove_hidden(temp):
            return f"; removed the leftovers in {temp}"
    return ""


def _hidden(path: Path) -> Path:
    """Return the folder beside an output in which it is made."""
    return path.with_name(f".{path.name}.flmgrow")


@contextlib.contextmanager
def _locked(path: Path, temp: Path) -> Iterator[None]:
    """Keep other runs away from the output ``path`` and its hidden folder."""
    try:
        descriptor = take_lock(temp / "lock")
    except LockHeldError as held:
        raise OutputExistsError(
            f"{path}: another run ({held}) is writing it",
            hint="wait for it to finish or stop it, or choose another output folder",
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
    if path.name in ("", ".."):
        raise UsageError(f"{path}: not a name for a new folder", hint="name the folder to make")
    parent = Path(os.path.realpath(path.parent))
    if not parent.is_dir():
        raise UsageError(f"{parent}: no such folder, wanted for {path.name}", hint="create it")
    return parent / path.name


def _differences(found: bytes, wanted: str) -> str:
    """Return the keys in which two plans differ, as ``options.tp: 4 there, 8 here``."""
    try:
        there = dict(_leaves(json.loads(found)))
    except ValueError:
        return "its plan.json is damaged"
    here = dict(_leaves(json.loads(wanted)))
    keys = [key for key in sorted(there.keys() | here.keys()) if there.get(key) != here.get(key)]
    shown = [
        f"{key.removeprefix('plan.')}: {there.get(key, 'none')} there, {here.get(key, 'none')} here"
        for key in keys[:SHOWN_DIFFERENCES]
    ]
    return ", ".join(shown) + (f", and {len(keys) - len(shown)} more" if keys[len(shown) :] else "")


def _leaves(value: object, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for name, below in value.items():
            yield from _leaves(below, f"{key}.{name}" if key else name)
    else:
        text = json.dumps(value)
        yield key, text if len(text) <= 60 else f"{text[:56]} ..."
