"""A signal at any moment ends the command soon, with its code, in two lines."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pico import make_checkpoint

TOLD = "error: interrupted\nhint: the same command resumes\n"
SOON = 5.0
"""Seconds in which it must have ended, whatever it was doing, on a machine that is not busy."""

COMMAND = "import flmgrow.cli; flmgrow.cli.main()"
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def start(*arguments: object, script: str = COMMAND) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def answers(process: subprocess.Popen[str], number: signal.Signals) -> bool:
    """Whether the process has a handler for the signal, or has ended."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
    except FileNotFoundError:
        return True
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return "Z" in fields["State"] or bool(int(fields["SigCgt"], 16) >> (number - 1) & 1)


def interrupted(
    process: subprocess.Popen[str], number: signal.Signals, delay: float
) -> tuple[int, str, str, float]:
    """Signal it, that long after it answers; return code, stdout, stderr, seconds to the end.

    Python itself answers interrupts: what counts is the answer to SIGTERM, installed just before.
    """
    while not (answers(process, signal.SIGTERM) and answers(process, signal.SIGHUP)):
        time.sleep(0.001)
    time.sleep(delay)
    process.send_signal(number)
    begin = time.monotonic()
    out, err = process.communicate(timeout=900)
    return process.returncode, out, err, time.monotonic() - begin


def check(process: subprocess.Popen[str], number: signal.Signals, delay: float, whole: str) -> bool:
    """Check the end of an interrupted command; return whether the signal came before its own."""
    code, out, err, took = interrupted(process, number, delay)
    assert took < 2 * SOON, (number, delay)
    if code == 0:
        assert (out, err) == (whole, ""), (number, delay)
        return False
    if code == -number:  # Python had let go of its signals, some instructions before the end
        assert (out, err) == (whole, ""), (number, delay)
        return False
    assert code == 128 + number, (number, delay, err)
    assert err == TOLD, (number, delay, err)
    return True


def sweep(moments: int, seed: int, *arguments: object) -> None:
    """Interrupt the command at that many random moments of its life.

    How long it lives is found as it goes: a machine that was busy, or read the program for the
    first time, makes the first one too long, and signals after a command's end prove little.
    """
    begin = time.monotonic()
    whole, _ = start(*arguments).communicate(timeout=900)
    length = time.monotonic() - begin
    choose = random.Random(seed)
    met = 0
    for _ in range(20 * moments):
        process = start(*arguments)
        if check(process, choose.choice(SIGNALS), choose.random() * length, whole):
            met += 1
        else:
            length *= 0.9
        if met == moments:
            return
    raise AssertionError(f"{met} of {moments} signals came before the command had ended")


def test_signals_at_random_moments(tmp_path: Path) -> None:
    sweep(6, 1, "inspect", make_checkpoint(tmp_path / "source", "llama"))


@pytest.mark.long
@pytest.mark.slow
def test_signals_at_three_hundred_moments(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "source", "llama")
    sweep(100, 2, "inspect", source, "--json")
    sweep(100, 3, "expand", source, tmp_path / "out", "--ffn-hidden-size", 48, "--dry-run")
    sweep(100, 4, "verify", source, source)


# --- where an exception alone would not do

SWALLOWED = """
import os, signal, sys, time, types
import flmgrow.cli
def run(arguments):
    try:
        os.kill(os.getpid(), signal.{name})
        time.sleep(5)
    except BaseException:
        pass
    {then}
sys.modules['flmgrow.cli.app'] = types.SimpleNamespace(run=run)
flmgrow.cli.main()
"""


@pytest.mark.parametrize(
    ("name", "then"),
    [
        ("SIGINT", "return 0"),
        ("SIGTERM", "threading = __import__('threading'); threading.Event().wait()"),
        ("SIGHUP", "lock = __import__('threading').Lock(); lock.acquire(); lock.acquire()"),
        ("SIGTERM", "time.sleep(60)"),
        (
            "SIGINT",
            "__import__('threading').Thread(target=time.sleep, args=(60,)).start(); return 0",
        ),
        ("SIGTERM", "__import__('atexit').register(time.sleep, 60); return 0"),
        ("SIGINT", "raise ValueError('made of the interrupt by a library')"),
        ("SIGTERM", "sys.exit(3)"),
    ],
    ids=["swallowed", "event", "lock", "sleep", "thread", "shutdown", "another", "exit"],
)
def test_what_swallows_it_or_waits_for_ever_is_ended(name: str, then: str) -> None:
    number = signal.Signals[name]
    process = start(script=SWALLOWED.format(name=name, then=then))
    begin = time.monotonic()
    out, err = process.communicate(timeout=900)
    assert time.monotonic() - begin < 2 * SOON
    assert (process.returncode, out, err) == (128 + number, "", TOLD)


def test_a_second_signal_ends_it_on_the_spot() -> None:
    then = "os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)"
    process = start(script=SWALLOWED.format(name="SIGINT", then=then))
    assert process.communicate(timeout=900) == ("", TOLD)
    assert process.returncode == 130


IN_A_DESTRUCTOR = """
import os, signal, sys, time, types
import flmgrow.cli
class Odd:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
def run(arguments):
    Odd()
    time.sleep(60)
sys.modules['flmgrow.cli.app'] = types.SimpleNamespace(run=run)
flmgrow.cli.main()
"""


def test_what_python_would_only_complain_of_is_told_in_the_same_lines() -> None:
    process = start(script=IN_A_DESTRUCTOR)
    assert process.communicate(timeout=900) == ("", TOLD)
    assert process.returncode == 143


AFTER_THE_END = """
import atexit, os, signal, sys, types
import flmgrow.cli
sys.modules['flmgrow.cli.app'] = types.SimpleNamespace(run=lambda _: 0)
atexit.register(os.kill, os.getpid(), signal.{name})
flmgrow.cli.main()
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_while_python_shuts_down(name: str) -> None:
    process = start(script=AFTER_THE_END.format(name=name))
    assert process.communicate(timeout=900) == ("", TOLD)
    assert process.returncode == 128 + signal.Signals[name]


@pytest.mark.parametrize("rank", ["0", "2"])
def test_of_several_ranks_the_first_one_speaks(rank: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A launcher ends the others when one has ended, which may be while they are imported."""
    monkeypatch.setenv("RANK", rank)
    process = start(script=AFTER_THE_END.format(name="SIGTERM"))
    assert process.communicate(timeout=900) == ("", TOLD if rank == "0" else "")
    assert process.returncode == 143


BEFORE_ANYTHING = """
import signal, sys
before = set(sys.modules)
own = signal.signal
def told(number, handler):
    heavy = {"numpy", "typer", "pydantic", "ctypes", "rich", "yaml"} & set(sys.modules)
    print(signal.Signals(number).name, len(set(sys.modules) - before) < 20, sorted(heavy))
    return own(number, handler)
signal.signal = told
import flmgrow.cli
flmgrow.cli.main()
"""


def test_the_handlers_are_there_before_anything_heavy_is_imported() -> None:
    out, _ = start("--version", script=BEFORE_ANYTHING).communicate(timeout=900)
    first = out.splitlines()[:3]
    assert first == [f"{number.name} True []" for number in SIGNALS]


IGNORED = """
import os, signal, sys, types
signal.signal(signal.{name}, signal.SIG_IGN)
import flmgrow.cli
def run(arguments):
    os.kill(os.getpid(), signal.{name})
    return 0
sys.modules['flmgrow.cli.app'] = types.SimpleNamespace(run=run)
flmgrow.cli.main()
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGHUP"])
def test_a_signal_that_is_ignored_stays_so(name: str) -> None:
    """As in the background of a shell, or under nohup."""
    process = start(script=IGNORED.format(name=name))
    assert process.communicate(timeout=900) == ("", "")
    assert process.returncode == 0
