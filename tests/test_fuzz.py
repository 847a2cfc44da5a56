"""Every parser, on valid files, on mutations of them, and on all that fuzzing ever found.

``make fuzz`` tries more; an input that a parser failed on lies in ``tests/fuzz/found`` since then.
"""

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from zlib import crc32

import pytest
from fuzz_mutations import mutated
from fuzz_targets import PARSERS, Parser, Place
from fuzz_watch import Watch

from flmgrow.errors import FlmgrowError

FOUND = Path(__file__).parent / "fuzz" / "found"
MUTATIONS = 150


@pytest.fixture(scope="module")
def watch() -> Watch:
    """The one of this process."""
    return Watch()


@pytest.fixture(scope="module", params=PARSERS)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A parser in a folder of its own, which has read its valid files."""
    made = Place(PARSERS[request.param], tmp_path_factory.mktemp("fuzz") / request.param)
    for seed in made.seeds:
        made.put(seed)
        made.read()
    return made


def objections(place: Place, watch: Watch, data: bytes) -> list[str]:
    place.put(data)
    return watch.objections(place.read, place.folder, place.parser.wrap(data))


def test_what_was_found_and_what_is_mutated_does_no_harm(place: Place, watch: Watch) -> None:
    """Seeds are valid, so mutations of them reach what lies behind the first check."""
    name = place.folder.name
    choose = Random(crc32(name.encode()))
    tried = [path.read_bytes() for path in sorted((FOUND / name).glob("*"))]
    tried += [mutated(choose.choice(place.seeds), choose) for _ in range(MUTATIONS)]
    for data in (*place.seeds, b"", *tried):
        assert objections(place, watch, data) == [], data[:200]


def test_every_input_that_was_found_belongs_to_a_parser() -> None:
    assert {path.name for path in FOUND.iterdir() if path.is_dir()} <= PARSERS.keys()


def imports_what_it_reads(folder: Path) -> None:
    __import__((folder / "x").read_text())


def opens_what_it_reads(folder: Path) -> None:
    Path((folder / "x").read_text()).read_bytes()


def runs_what_it_reads(folder: Path) -> None:
    os.system((folder / "x").read_text())


def calls_home(folder: Path) -> None:
    with socket.socket() as line:
        line.connect_ex(("127.0.0.1", 9))


def leaves_it_open(folder: Path) -> None:
    os.open(folder / "x", os.O_RDONLY)


def lacks_a_key(folder: Path) -> None:
    os.environ[(folder / "x").read_text() * 99]


class ShoutedError(FlmgrowError):
    """An error that drives the terminal."""

    def __str__(self) -> str:
        return "\x1b[2J"


def writes_to_the_terminal(folder: Path) -> None:
    raise ShoutedError("x")


FAULTS: dict[str, tuple[Callable[[Path], object], bytes, str]] = {
    "import": (imports_what_it_reads, b"this", "import: this, which the file names"),
    "open": (opens_what_it_reads, b"/etc/hostname", "open: '/etc/hostname', outside"),
    "run": (runs_what_it_reads, b"true", "os.system"),
    "connect": (calls_home, b"", "socket.connect"),
    "descriptor": (leaves_it_open, b"x", "1 descriptors left open"),
    "traceback": (lacks_a_key, b"x", "KeyError"),
    "terminal": (writes_to_the_terminal, b"x", "not one printable line"),
}


@pytest.fixture
def no_more_descriptors() -> Iterator[None]:
    """Closes what a faulty parser left open."""
    before = set(Path("/proc/self/fd").iterdir())
    yield
    for path in set(Path("/proc/self/fd").iterdir()) - before:
        with contextlib.suppress(OSError):  # the one that listed them is closed
            os.close(int(path.name))


@pytest.mark.usefixtures("no_more_descriptors")
@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_seen(fault: str, watch: Watch, tmp_path: Path) -> None:
    """The control: a parser with one fault each."""
    reads, data, says = FAULTS[fault]
    faulty = Place(Parser("x", lambda _: [data], reads), tmp_path / "faulty")
    found = objections(faulty, watch, data)
    assert any(says in each for each in found), found
