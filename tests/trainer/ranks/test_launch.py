"""Ranks of a stage live and die together, and none outlives who started it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from stage_runs import stage_data, write_stage

from flmgrow.trainer.__main__ import not_installed

LAUNCHER = """
import sys
from pathlib import Path
from flmgrow.trainer.ranks import launch
launch.GRACE = float(sys.argv[4])
launch.sys = type("sys", (), {"executable": sys.argv[3]})
sys.exit(launch.launch(Path(sys.argv[1]), int(sys.argv[2])))
"""

RANK = """#!{python}
import os, signal, sys, time
from pathlib import Path
rank, folder = int(os.environ["RANK"]), Path(sys.argv[-1])
(folder / f"pid-{{rank}}").write_text(str(os.getpid()))
while len([*folder.glob("pid-*")]) < int(os.environ["WORLD_SIZE"]):  # starting takes any time
    time.sleep(0.01)
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
(folder / f"environment-{{rank}}").write_text(" ".join(os.environ[name] for name in names))
{body}
"""


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    left = [path for path in tmp_path.glob("pid-*") if alive(path)]
    for path in left:
        os.kill(int(path.read_text()), signal.SIGKILL)
    assert not left, "outlived the run"


def alive(path: Path) -> bool:
    """Whether the rank that wrote this file still runs."""
    try:
        state = Path("/proc", path.read_text(), "stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def launched(place: Path, world: int, body: str, grace: float = 1.0) -> subprocess.Popen[bytes]:
    """Start a launcher whose ranks run ``body`` instead of the trainer.

    They have ``grace`` seconds once one has failed: many, where another is still to end by itself.
    """
    rank = place / "rank.py"
    rank.write_text(RANK.format(python=sys.executable, body=body))
    rank.chmod(0o755)
    words = [sys.executable, "-c", LAUNCHER, str(place), str(world), str(rank), str(grace)]
    with (place / "told").open("wb") as told:
        return subprocess.Popen(words, stderr=told)


def wait_for(place: Path, names: list[str]) -> None:
    end = time.monotonic() + 120
    while not all((place / name).exists() for name in names):
        assert time.monotonic() < end
        time.sleep(0.02)


def test_ranks_know_their_places(place: Path) -> None:
    assert launched(place, 3, "").wait(300) == 0
    found = [(place / f"environment-{rank}").read_text().split() for rank in range(3)]
    assert [line[:4] for line in found] == [[str(rank), str(rank), "3", "3"] for rank in range(3)]
    (where,) = {tuple(line[4:]) for line in found}
    assert where[0] == "127.0.0.1"
    assert 0 < int(where[1]) < 65536


def test_a_rank_that_fails_ends_all(place: Path) -> None:
    """The others would wait for it for ever."""
    assert launched(place, 3, "sys.exit(7) if rank == 1 else time.sleep(600)").wait(300) == 7


def test_a_rank_that_is_killed_ends_all(place: Path) -> None:
    body = "os.kill(os.getpid(), signal.SIGKILL) if rank == 2 else time.sleep(600)"
    assert launched(place, 3, body).wait(300) == 128 + signal.SIGKILL
    told = (place / "told").read_text().splitlines()
    assert told == [
        "error: rank 2: was ended by SIGKILL",
        "hint: the kernel does so when memory runs out (see dmesg); the same command resumes",
    ]


def test_a_rank_that_lost_another_is_not_the_one_that_failed(place: Path) -> None:
    assert launched(place, 3, "sys.exit(8 if rank != 1 else 4)", 100).wait(300) == 4
    late = "sys.exit(8) if rank != 1 else (time.sleep(0.7), sys.exit(4))"
    assert launched(place, 3, late, 100).wait(300) == 4, "it ends after those that lost it"
    assert launched(place, 3, "sys.exit(8)").wait(300) == 8
    assert launched(place, 3, "sys.exit(8) if rank != 1 else time.sleep(600)").wait(300) == 8


TAKEN = """
import errno, socket
port, code = int(os.environ["MASTER_PORT"]), 0
with socket.socket() as thief:
    try:
        thief.bind(("127.0.0.1", port))
    except OSError as error:
        code = error.errno
if rank == 0:
    own = socket.socket(fileno=int(os.environ["FLMGROW_LISTENING"]))
    assert own.getsockname() == ("127.0.0.1", port)
(folder / f"code-{rank}").write_text(errno.errorcode.get(code, "none"))
while len([*folder.glob("code-*")]) < 2:  # rank 0 holds it
    time.sleep(0.01)
"""


def test_nobody_else_can_take_the_port_of_a_run(place: Path) -> None:
    assert launched(place, 2, TAKEN).wait(300) == 0
    for rank in range(2):
        assert (place / f"code-{rank}").read_text() == "EADDRINUSE"


HANDLER = """
def asked(number, frame):
    (folder / f"asked-{rank}").write_text(str(number))
    {then}
signal.signal(signal.SIGTERM, asked)
signal.signal(signal.SIGINT, asked)
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM, signal.SIGINT])
(folder / f"ready-{rank}").touch()
time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_every_rank_once(place: Path, number: signal.Signals) -> None:
    process = launched(place, 2, HANDLER.replace("{then}", "sys.exit(128 + number)"))
    wait_for(place, ["ready-0", "ready-1"])
    process.send_signal(number)
    assert process.wait(300) == 128 + number
    for rank in range(2):
        assert (place / f"asked-{rank}").read_text() == str(int(number))


@pytest.mark.parametrize(
    ("then", "told"),
    [("sys.exit(128 + number)", ""), ("end(number)", "error: interrupted\n")],
)
def test_an_interrupt_is_told_once(place: Path, then: str, told: str) -> None:
    """By the rank, or by who started it if the rank could not: it was still being loaded."""
    end = "def end(n): signal.signal(n, signal.SIG_DFL); os.kill(os.getpid(), n)\nimport os\n"
    process = launched(place, 1, end + HANDLER.replace("{then}", then))
    wait_for(place, ["ready-0"])
    process.send_signal(signal.SIGINT)
    assert process.wait(300) == 130
    assert (place / "told").read_text().startswith(told)
    assert (place / "told").read_text().count("interrupted") == told.count("interrupted")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_waits_until_a_rank_can_answer(place: Path, number: signal.Signals) -> None:
    """What Python says of one that comes while it is still importing is a traceback."""
    late = '(folder / "begun").touch()\nwhile not (folder / "go").exists(): time.sleep(0.01)\n'
    process = launched(place, 1, late + HANDLER.replace("{then}", "sys.exit(128 + number)"))
    wait_for(place, ["begun"])
    process.send_signal(number)
    time.sleep(0.3)
    (place / "go").touch()
    assert process.wait(300) == 128 + number
    assert (place / "asked-0").read_text() == str(int(number))
    assert (place / "told").read_text() == ""


def test_a_second_signal_kills(place: Path) -> None:
    process = launched(place, 2, HANDLER.replace("{then}", ""))
    wait_for(place, ["ready-0", "ready-1"])
    process.send_signal(signal.SIGTERM)
    wait_for(place, ["asked-0", "asked-1"])
    process.send_signal(signal.SIGINT)
    assert process.wait(300) == 128 + signal.SIGTERM
    told = (place / "told").read_text()
    assert told == "error: interrupted\nhint: the same command resumes\n"


def test_ranks_do_not_outlive_a_launcher_that_is_killed(place: Path) -> None:
    process = launched(place, 2, "(folder / f'ready-{rank}').touch()\ntime.sleep(600)")
    wait_for(place, ["ready-0", "ready-1"])
    process.kill()
    process.wait()
    end = time.monotonic() + 120
    while any(alive(place / f"pid-{rank}") for rank in range(2)):
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("words", "code"), [([], 2), (["--help"], 2), (["a", "b"], 2), (["missing.yaml"], 2)]
)
def test_a_rank_says_how_it_is_called(words: list[str], code: int, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "flmgrow.trainer", *words],
        cwd=tmp_path, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == code
    assert done.stderr.startswith(("usage: ", "error: missing.yaml: "))
    assert "Traceback" not in done.stderr


def test_a_package_that_is_missing_is_named(tmp_path: Path) -> None:
    stage = write_stage(tmp_path, stage_data(tmp_path))
    code = (
        "import sys; sys.modules['megatron'] = None; from flmgrow.trainer.__main__ import main; "
        f"sys.argv = ['trainer', {str(stage)!r}]; sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 2
    assert done.stderr == (
        "error: the package megatron is not installed\nhint: pip install 'flmgrow[train]'\n"
    )


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("megatron.core", ""),
        ("triton.language", "; where that is done, megatron-core imports triton: install it, or"),
    ],
)
def test_a_package_that_is_missing_is_told_with_a_way_out(name: str, more: str) -> None:
    """megatron-core 0.18.0 imports Triton, which no extra of ours installs."""
    error = not_installed(ModuleNotFoundError(name=name))
    assert str(error) == f"the package {name.partition('.')[0]} is not installed"
    way_out, separator, rest = str(error.hint).partition(";")
    assert way_out == "pip install 'flmgrow[train]'"
    assert f"{separator}{rest}".startswith(more)
    assert bool(rest) == bool(more)
