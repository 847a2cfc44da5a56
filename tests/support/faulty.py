"""flmgrow's real commands under faults, and what they promise whatever fails.

1. The output is absent, or complete: to the byte what an undisturbed run writes.
2. The source is as it was.
3. The same command again gives the same bytes, or finds them.
4. Nothing but the output is left then.
5. A failure is one line, with a hint that says how to go on, and no traceback.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from hf_folders import make_folder
from pico import CONFIGS, even, make_checkpoint
from pico_dist import make_dist_checkpoint
from power import Disk

from flmgrow.storage.read_back import WINDOW

HERE = Path(__file__).parents[1] / "faults"
KILL, FAULTS = "KILL", ("KILL", "EIO", "ENOSPC", "EINTR")
ENDS = {0, 4, 5, 8, 143, -9}
"""How a command may end of which one call fails: 8 and 143 are ranks that lost another one, by
themselves or by their launcher; 5 is one that finds another at it.
"""


class Reply(NamedTuple):
    """What became of a command: its exit code, what it printed, the calls that change files."""

    code: int
    out: list[str]
    err: list[str]
    calls: list[str]


class Commands:
    """The server of commands; ``places`` is where sources and outputs lie."""

    def __init__(self, places: Path, library: Path) -> None:
        self.places = places
        shim = library / "shim.so"
        subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", shim, HERE / "shim.c"], check=True)
        environment = {**os.environ, "LD_PRELOAD": str(shim), "OMP_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = str(Path(__file__).parent)
        self._server = subprocess.Popen(
            [sys.executable, HERE / "server.py"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def close(self) -> None:
        """End the server."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        self._server.stdout.close()
        self._server.wait(30)

    def _ask(self, what: object) -> Any:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(what) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    def warm_up(self, arguments: Sequence[object]) -> None:
        """Let the server import what this command needs."""
        self._ask({"warm_up": [str(word) for word in arguments]})

    def at_once(self, requests: Sequence[dict[str, Any]]) -> list[Reply]:
        """Run commands at once."""
        return [Reply(**reply) for reply in self._ask(list(requests))]

    def request(
        self, arguments: Sequence[object], below: Path, window: int = WINDOW, **fault: Any
    ) -> dict[str, Any]:
        """Describe a command of one rank, of which a call below a folder fails."""
        words = [str(word) for word in arguments]
        place = {"below": str(below), "environment": {}}
        return {"arguments": words, "window": window, **place, **fault}

    def ranks(
        self,
        size: int,
        arguments: Sequence[object],
        below: Path,
        rank: int = 0,
        window: int = WINDOW,
        **fault: Any,
    ) -> list[Reply]:
        """Run a command in ranks, with a fault in one of them."""
        requests = []
        for number in range(size):
            own = fault if number == rank else {}
            request = self.request(arguments, below, window, **own)
            if size > 1:
                request["environment"] = {
                    "FLMGROW_RANK": str(number),
                    "FLMGROW_WORLD_SIZE": str(size),
                    "FLMGROW_LOCAL_WORLD_SIZE": str(size),
                    "FLMGROW_LAUNCH": "faults",
                }
            requests.append(request)
        return self.at_once(requests)


def tree(folder: Path) -> dict[str, bytes]:
    """Return the bytes of all files below a folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@dataclass
class Case:
    """A command, its source, and what it writes; files are flushed every ``window`` bytes."""

    name: str
    commands: Commands
    source: Path
    words: tuple[object, ...]
    before: dict[str, bytes]
    reference: dict[str, bytes]
    place: Path
    window: int = WINDOW

    @property
    def out(self) -> Path:
        """Where the output goes."""
        return self.place / "out"

    def new(self) -> None:
        """Empty the place of the output."""
        shutil.rmtree(self.place, ignore_errors=True)
        self.place.mkdir(parents=True)

    @property
    def arguments(self) -> list[object]:
        """The command's words."""
        first, *rest = self.words
        return [first, self.source, self.out, *rest]

    def run(self, size: int = 1, rank: int = 0, **fault: Any) -> list[Reply]:
        """Run it, with a fault in one of its ranks."""
        return self.commands.ranks(
            size, self.arguments, self.place, rank, window=self.window, **fault
        )

    @property
    def flushed(self) -> "Case":
        """The same, but its files, small as they are, are flushed while they are written."""
        return replace(self, window=4096)

    def at(self, place: Path) -> "Case":
        """Return the same case with its output elsewhere."""
        return replace(self, place=place)

    def after_failure(self, replies: Sequence[Reply]) -> Iterator[str]:
        """Yield the promises that are broken right after a run."""
        if self.out.exists() and tree(self.out) != self.reference:
            yield "an output appeared that is not whole"
        if tree(self.source) != self.before:
            yield "the source was changed"
        if all(reply.code == 0 for reply in replies) and not self.out.exists():
            yield "success without an output"
        for reply in replies:
            if reply.code not in ENDS:
                yield f"ended with {reply.code}: {reply.err}"
        for reply in replies[:1]:
            if reply.code in (4, 8):
                yield from _told(reply)

    def after_resuming(self, size: int = 1) -> Iterator[str]:
        """Yield the promises that are broken when the same command is given again, undisturbed."""
        again = self.run(size)
        if any(reply.code for reply in again):
            yield f"the same command again: {[(reply.code, reply.err) for reply in again]}"
        if not self.out.exists() or tree(self.out) != self.reference:
            yield "the result differs"
        if left := {path.name for path in self.place.iterdir()} - {"out"}:
            yield f"left behind: {left}"


def _told(reply: Reply) -> Iterator[str]:
    errors = [line for line in reply.err if line.startswith("error: ")]
    hints = [line for line in reply.err if line.startswith("hint: ")]
    notes = [line for line in reply.err if line.startswith("note: ")]
    if len(errors) != 1 or len(errors + hints + notes) != len(reply.err):
        yield f"not one line: {reply.err}"
    if not any("resumes" in line for line in hints):
        yield f"does not say how to go on: {reply.err}"


GROW = ("--ffn-hidden-size", "24", "--method", "copy", "--workers", "1")
SMALL = replace(CONFIGS["llama"], layers=2)


def _legacy(path: Path) -> Path:
    return make_checkpoint(path, SMALL, even(SMALL, tp=2), dtype="float32")


def _dist(path: Path) -> Path:
    return make_dist_checkpoint(path.parent, "llama", 2)


def _hugging(path: Path) -> Path:
    return make_folder(path, shards=2)


CASES: dict[str, tuple[Callable[[Path], Path], tuple[object, ...]]] = {
    "expand legacy": (_legacy, ("expand", *GROW)),
    "expand legacy to torch_dist": (_legacy, ("expand", *GROW, "--format", "torch_dist")),
    "reshard torch_dist": (_dist, ("reshard", "--tp", "1", "--workers", "1")),
    "export legacy": (_legacy, ("export", "--workers", "1")),
    "import": (_hugging, ("import", "--tp", "2", "--workers", "1")),
}


def make_case(name: str, commands: Commands, folder: Path) -> Case:
    """Make the source of a case, and find what its command writes."""
    make, words = CASES[name]
    source = folder / "source" / name.replace(" ", "-")
    if not source.exists():
        source = make(source)
    case = Case(name, commands, source, words, tree(source), {}, folder / "reference")
    case.new()
    commands.warm_up(case.arguments)
    case.reference = tree(case.out)
    assert case.reference, f"{name}: wrote nothing"
    return case.at(folder / "case")


@contextmanager
def commands_in(folder: Path | None = None) -> Iterator[Commands]:
    """Give the server, and a folder for its files: in memory if there is one."""
    memory = Path("/dev/shm")
    fast = memory if memory.is_dir() and os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=folder or fast) as place:
        commands = Commands(Path(place), Path(place))
        try:
            yield commands
        finally:
            commands.close()


def sweep(
    case: Case, what: str, size: int = 1, rank: int = 0, step: int = 1, begin: int = 1
) -> tuple[int, list[str]]:
    """Let the call number ``begin`` fail, then that ``step`` further on, until there is none.

    Returns how many failed, and the promises that were broken.
    """
    broken: list[str] = []
    for tried, nth in enumerate(range(begin, 100_000, step)):
        case.new()
        replies = case.run(size, rank, nth=nth, what=what)
        if len(replies[rank].calls) < nth and all(reply.code == 0 for reply in replies):
            return tried, broken
        found = [*case.after_failure(replies), *case.after_resuming(1 + nth % size)]
        call = replies[rank].calls[nth - 1 :][:1]
        broken += [f"{case.name}, {what} at {nth} {call}: {each}" for each in found]
    raise AssertionError("no end")


REMEMBERS, FORGETS_ALL, FORGETS_FILES = range(3)
"""What fsync does: its work, nothing, or its work on folders alone."""


def power_cuts(
    case: Case, disk: Disk, memory: int = REMEMBERS, step: int = 1, begin: int = 1
) -> tuple[int, list[str]]:
    """Cut the power at a call, then at one ``step`` further on, and at last when all is done.

    Returns how often, and the promises that were broken.
    """
    broken: list[str] = []
    for tried, nth in enumerate(range(begin, 100_000, step), 1):
        with disk.on() as live:
            running = case.at(live / "case")
            running.new()
            (reply,) = running.run(nth=nth, what=KILL, memory=memory)
            done = reply.code == 0
            with disk.cut() as left:
                resumed = case.at(left / "case")
                found = []
                if done and not resumed.out.exists():
                    found = ["it said that it was done, and nothing is there"]
                resumed.place.mkdir(exist_ok=True)
                if not found:
                    found = [*resumed.after_failure([reply]), *resumed.after_resuming()]
        call = reply.calls[nth - 1 :][:1]
        broken += [f"{case.name}, power cut at {nth} {call}: {each}" for each in found]
        if done:
            return tried, broken
    raise AssertionError("no end")


def kill_chain(case: Case, chance: Random, most: int = 6) -> tuple[int, list[str]]:
    """Kill a command at calls drawn by lot until it ends; return how often, and what was broken."""
    case.new()
    calls = 250
    for kills in range(most):
        (reply,) = case.run(nth=chance.randint(1, calls), what=KILL)
        if reply.code == 0:
            return kills, [*case.after_failure([reply]), *case.after_resuming()]
        if found := [*case.after_failure([reply])]:
            return kills, found
    return most, [*case.after_resuming()]


def flipped_bits(case: Case, chance: Random, count: int) -> tuple[int, list[str]]:
    """Flip a bit of a finished output, drawn by lot, again and again; return how often, and which
    were not found, or not in their file.
    """
    case.new()
    assert case.run()[0].code == 0
    files = [path for path in sorted(case.out.rglob("*")) if path.is_file()]
    sizes = [path.stat().st_size for path in files]
    missed = []
    for _ in range(count):
        (path,) = chance.choices(files, sizes)
        bit = chance.randrange(path.stat().st_size * 8)
        content = path.read_bytes()
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        words = ["verify", "--integrity", case.out]
        (reply,) = case.commands.at_once([case.commands.request(words, case.place)])
        path.write_bytes(content)
        name = str(path.relative_to(case.out))
        if reply.code not in (1, 3) or name not in "\n".join(reply.out + reply.err):
            missed.append(f"bit {bit} of {name}: {reply.code} {reply.out} {reply.err}")
    return count, missed


def started_at_once(case: Case, count: int = 8) -> list[str]:
    """Start a command several times at once; return what is wrong: exactly one must write."""
    case.new()
    request = case.commands.request(case.arguments, case.place)
    replies = case.commands.at_once([request] * count)
    wrote = sum(any(line.startswith("wrote") for line in reply.out) for reply in replies)
    wrong = [*case.after_resuming()]
    if wrote != 1:
        wrong.append(f"{wrote} of {count} wrote")
    for reply in replies:
        found = any(line.startswith("found") for line in reply.out)
        if reply.code != 5 and not (reply.code == 0 and (found or wrote)):
            wrong.append(f"ended with {reply.code}: {reply.err}")
    return wrong
