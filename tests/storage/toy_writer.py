"""A toy run of the commit protocol that can be made to fail at any call to the operating system.

Started as a program it answers requests, one JSON line each, on its standard input. It forks,
the child makes the output as the request says (`Request`), and the reply says what became of it.
A run in a fork of a small process with everything imported takes milliseconds.
"""

import contextlib
import errno
import fcntl
import json
import os
import resource
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash

from flmgrow.errors import FlmgrowError
from flmgrow.storage import durable, read_back
from flmgrow.storage.checksums import FileRecord
from flmgrow.storage.durable import NewFile
from flmgrow.storage.finished import FinishedFiles
from flmgrow.storage.output import OutputFolder

CHUNK = 10_000
read_back.WINDOW = CHUNK  # each write is flushed, and read back, by a thread behind the writer
RANKS = [f"iter_0000004/mp_rank_0{rank}_000/model_optim_rng.pt" for rank in range(2)]
TRACKER = "latest_checkpointed_iteration.txt"


@dataclass(frozen=True)
class Request:
    source: str
    out: str
    kind: str = ""  # at the `nth` call of this kind ...
    nth: int = 0
    what: str = ""  # ... die (KILL, TORN, BYTES, POWER) or get this error
    variant: str = "good"  # or the name of a protocol with a mistake, below
    restart: bool = False
    limit: int = 0  # RLIMIT_FSIZE
    times: int = 1  # this many runs at once
    pause: float = 0.0  # seconds between two writes


def make_output(request: Request) -> None:
    source = Path(request.source).read_bytes()
    plan = {"source": xxhash.xxh3_128_hexdigest(source), "options": {"tp": 2}}
    share = len(source) // len(RANKS)
    with OutputFolder(Path(request.out), plan, restart=request.restart) as folder:
        folder.free_space_check(len(source))
        for rank, name in enumerate(RANKS):
            if name not in folder.finished:
                with folder.file(name, share) as file:
                    for start in range(rank * share, (rank + 1) * share, CHUNK):
                        file.write(source[start : start + CHUNK])
                        time.sleep(request.pause)
        folder.add_small(TRACKER, b"4\n")
        folder.commit({"flmgrow.json": manifest(list(folder.finished.values()))})


def manifest(records: list[FileRecord]) -> bytes:
    return json.dumps([asdict(each) for each in sorted(records, key=lambda r: r.path)]).encode()


# Protocols with one mistake each: the tests that use them must notice.


def write_in_place(request: Request) -> None:
    """No hidden folder: the output's own name from the first byte on."""
    out, source = Path(request.out), Path(request.source).read_bytes()
    share = len(source) // len(RANKS)
    records = []
    for rank, name in enumerate(RANKS):
        data = source[rank * share : (rank + 1) * share]
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        durable.write_small(out / name, data)
        records.append(FileRecord(name, share, xxhash.xxh3_128_hexdigest(data)))
    durable.write_small(out / TRACKER, b"4\n")
    records.append(FileRecord(TRACKER, 2, xxhash.xxh3_128_hexdigest(b"4\n")))
    durable.write_small(out / "flmgrow.json", manifest(records))


def rename_early(request: Request) -> None:
    """The commit comes first and the files after it."""
    with OutputFolder(Path(request.out), {}) as folder:
        folder.commit({})
    write_in_place(request)


def trust_any_size(request: Request) -> None:
    """No .part and no journal: on resuming, a file of the right size counts as finished."""

    @contextlib.contextmanager
    def new_file(
        path: Path, size: int, in_place: bool = False, kind: type[NewFile] = NewFile
    ) -> Iterator[NewFile]:
        file = kind(os.open(path, os.O_WRONLY | os.O_CREAT, 0o666), path)
        durable.reserve(file._descriptor, path, size)
        yield file
        file.finish()

    def resume(finished: FinishedFiles, _: object) -> None:
        for name in [*RANKS, TRACKER]:
            if (path := finished._staging.folder / name).exists():
                checksum = xxhash.xxh3_128_hexdigest(path.read_bytes())
                finished.records[name] = FileRecord(name, path.stat().st_size, checksum)

    durable.new_file = new_file
    FinishedFiles.resume = resume  # type: ignore[method-assign, assignment]
    make_output(request)


def ignore_fsync(request: Request) -> None:
    """What fsync reports is thrown away."""
    fsync = os.fsync

    def careless(descriptor: int) -> None:
        with contextlib.suppress(OSError):
            fsync(descriptor)

    os.fsync = careless  # type: ignore[assignment]
    make_output(request)


def ignore_fdatasync(request: Request) -> None:
    """The same of what a thread flushes while the file is being written."""
    fdatasync = os.fdatasync

    def careless(descriptor: int) -> None:
        with contextlib.suppress(OSError):
            fdatasync(descriptor)

    os.fdatasync = careless  # type: ignore[assignment]
    make_output(request)


def never_fsync(request: Request) -> None:
    """Trusts the kernel to write everything in time."""

    def idle(descriptor: int) -> None:
        pass

    os.fsync = idle  # type: ignore[assignment]
    make_output(request)


VARIANTS = {"good": make_output} | {
    each.__name__: each
    for each in (
        *(write_in_place, rename_early, trust_any_size),
        *(ignore_fsync, ignore_fdatasync, never_fsync),
    )
}


class Disk:
    """What a power cut would take: bytes and names that no fsync has put on the disk."""

    def __init__(self) -> None:
        self.bytes: set[Path] = set()
        self.names: list[tuple[Path, Callable[[], object]]] = []  # folder, how to undo
        self.rename, self.unlink, self.mkdir = os.rename, os.unlink, os.mkdir

    def done(self, kind: str, path: Path, new_path: Path, before: bytes | None) -> None:
        if kind in ("pwrite", "ftruncate", "fallocate"):
            self.bytes.add(path)
        elif kind == "fsync":
            self.bytes.discard(path)
            self.names = [each for each in self.names if each[0] != path]
        elif kind == "open" and before is None:
            self.names.append((path.parent, lambda: self.unlink(path)))
        elif kind == "unlink" and before is not None:
            self.names.append((path.parent, lambda: path.write_bytes(before)))
        elif kind == "rmdir":
            self.names.append((path.parent, lambda: self.mkdir(path)))
        elif kind == "mkdir":
            self.names.append((path.parent, lambda: shutil.rmtree(path)))
        elif kind in ("rename", "renameat2"):
            self.names.append((new_path.parent, lambda: self.rename(new_path, path)))
            self.bytes = {
                new_path / each.relative_to(path) if each.is_relative_to(path) else each
                for each in self.bytes
            }

    def lose(self, names_too: bool) -> None:
        for path in self.bytes:
            if path.exists():
                path.write_bytes(bytes(path.stat().st_size))
        for _, undo in reversed(self.names if names_too else []):
            with contextlib.suppress(FileNotFoundError):  # in a folder that is gone for certain
                undo()


def contents(path: Path) -> bytes | None:
    """The bytes of a file; of a folder, none; None if there is nothing."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError:
        return b""


class Faults:
    """Stands between the program and the operating system; counts, records, and fails one call."""

    KINDS = (
        *("open", "pwrite", "fsync", "fdatasync", "close", "rename", "mkdir", "unlink", "rmdir"),
        "ftruncate",
    )

    def __init__(self, request: Request) -> None:
        self.request = request
        self.counts: Counter[str] = Counter()
        self.trace: list[tuple[str, str]] = []
        self.paths: dict[int, Path] = {}
        self.disk = Disk()
        self.pwrite = os.pwrite

    def install(self) -> None:
        for kind in self.KINDS:
            setattr(os, kind, self.wrap(kind, getattr(os, kind)))
        fcntl.flock = self.wrap("flock", fcntl.flock)
        real = durable._call_libc

        def call_libc(name: str, *arguments: Any) -> None:
            self.wrap(name, lambda *rest: real(name, *rest))(*arguments)

        durable._call_libc = call_libc

    def wrap(self, kind: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            first, second = {"renameat2": (1, 3), "rename": (0, 1)}.get(kind, (0, 0))
            path, new_path = self.path_of(arguments[first]), self.path_of(arguments[second])
            self.trace.append((kind, path.name))
            self.check(kind, real, arguments)
            before = contents(path)
            result = real(*arguments, **options)
            self.disk.done(kind, path, new_path, before)
            if kind == "open":
                self.paths[result] = path
            return result

        return call

    def path_of(self, argument: Any) -> Path:
        if isinstance(argument, int):
            return self.paths.get(argument, Path())
        return Path(os.fsdecode(argument))

    def check(self, kind: str, real: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        """Fail if it is this call's turn."""
        self.counts[kind] += 1
        if kind != self.request.kind or self.counts[kind] != self.request.nth:
            return
        what = self.request.what
        if what == "TORN":
            descriptor, data, position = arguments
            self.pwrite(descriptor, data[: len(data) // 2], position)
        if what in ("BYTES", "POWER"):
            self.disk.lose(names_too=what == "POWER")
        if what in ("KILL", "TORN", "BYTES", "POWER"):
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "close":
            real(*arguments)  # Linux closes even when it reports an error
        number = getattr(errno, what)
        raise OSError(number, os.strerror(number))


def child(request: Request, report: int, start: int) -> None:
    """Run once and report; never returns."""
    code = 0
    write, exit_now = os.write, os._exit
    os.dup2(report, 2)
    os.read(start, 1)  # all at once
    if request.limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request.limit, request.limit))
    faults = Faults(request)
    faults.install()
    try:
        VARIANTS[request.variant](request)
        faults.check("exit", exit_now, ())
    except FlmgrowError as error:
        code = error.exit_code
        write(2, f"flmgrow: error: {error}; {error.hint}\n".encode())
    except BaseException as error:
        code = 70
        write(2, f"{type(error).__name__}: {error}\n".encode())
    write(2, json.dumps({"counts": faults.counts, "trace": faults.trace}).encode())
    exit_now(code)


def serve(line: str) -> list[dict[str, object]]:
    request = Request(**json.loads(line))
    start, go = os.pipe()
    running = []
    for _ in range(request.times):
        reading, report = os.pipe()
        if (pid := os.fork()) == 0:
            os.close(go)
            child(request, report, start)
        os.close(report)
        running.append((pid, reading))
    os.close(go)
    os.close(start)
    replies: list[dict[str, object]] = []
    for pid, reading in running:
        with os.fdopen(reading, "rb") as pipe:
            *lines, last = pipe.read().decode().split("\n")
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        told = json.loads(last) if last.startswith("{") else {"counts": {}, "trace": []}
        replies.append({"code": code, "errors": lines, "pid": pid, **told})
    return replies


if __name__ == "__main__":
    for each in sys.stdin:
        print(json.dumps(serve(each)), flush=True)
