"""Training that is asked to stop at any moment stops soon, says so, and loses nothing."""

import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from run_processes import begun, check_all_ended, losses, saved
from stage_runs import make_data, schedule_data, stage_data, write_schedule, write_stage

from flmgrow.stages.runner import launch
from flmgrow.stages.steps import DIFFERS

PATIENCE = 600.0
SOON = 5.0
"""Seconds in which it must have ended, whatever it was doing, on a machine that is not busy."""

SIGNALS = [signal.SIGINT, signal.SIGTERM]
PROGRESS = re.compile(r"\$ |note: |(?:small|large|ok|wrote|model|layout) |equal$|.*checkpoints$")
"""What a command tells that goes on as it should."""

TOLD = ["error: interrupted", "hint: the same command resumes"]
SAVED = re.compile(r"stopped at step \d+; the same command resumes")


class Kind:
    """One of the commands that train, what it wants, and where it saves."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self._folder = name, folder
        self._data = make_data(folder / "data")

    def words(self, out: Path) -> list[object]:
        every = {"every": 1, "keep": 2}
        if self.name == "train":
            return ["train", write_stage(out, stage_data(self._data, checkpoint=every))]
        schedule = write_schedule(self._folder, schedule_data(self._data, checkpoint=every))
        return ["run", schedule, "--out", out]

    def saved(self, out: Path) -> dict[str, bytes]:
        return saved(out / "checkpoints" if self.name == "train" else out / "02-large/checkpoints")


def asked(
    kind: Kind, out: Path, number: signal.Signals, moment: float
) -> tuple[int, list[str], float]:
    """Ask it to stop after so many seconds; return its code, what it told, seconds to its end."""
    log = out.with_suffix(".log")
    log.unlink(missing_ok=True)
    process = begun(*kind.words(out), log=log)
    try:
        code = process.wait(moment)
        took = 0.0
    except subprocess.TimeoutExpired:
        process.send_signal(number)
        begin = time.monotonic()
        code = process.wait(PATIENCE)
        took = time.monotonic() - begin
    check_all_ended(out)
    return code, log.read_text().splitlines(), took


def check(number: signal.Signals, code: int, told: list[str], took: float) -> None:
    """What must be true of a command that was asked to stop before it was done."""
    assert code == 128 + number, told
    assert took < SOON, (took, told)
    last = told[-2:] if told[-2:] == TOLD else told[-1:]
    assert last == TOLD or SAVED.fullmatch(last[0]), told
    assert not [line for line in told[: -len(last)] if not PROGRESS.match(line)], told


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("name", ["train", "run"])
def test_asked_at_sixty_moments(name: str, tmp_path: Path) -> None:
    kind, chance = Kind(name, tmp_path), random.Random(60)
    whole, begin = tmp_path / "whole", time.monotonic()
    assert begun(*kind.words(whole), log=tmp_path / "whole.log").wait(PATIENCE) == 0
    seconds = time.monotonic() - begin
    met, outs = 0, list[Path]()
    while met < 60:
        outs.append(tmp_path / f"run-{len(outs)}")
        code = -1
        while code != 0:
            number, moment = chance.choice(SIGNALS), chance.uniform(0.1, 0.6) * seconds
            code, told, took = asked(kind, outs[-1], number, PATIENCE if met == 60 else moment)
            if code == -number:  # Python had let go of its signals: all was done
                assert PROGRESS.match(told[-1])
            elif code:
                check(number, code, told, took)
                met += 1
        seconds *= 0.9  # the machine is faster now
    for out in outs:
        assert kind.saved(out) == kind.saved(whole)
        assert losses(out) == losses(whole)


@pytest.fixture
def answered() -> Iterator[list[int]]:
    """The signals that this process itself has to answer."""
    found: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: found.append(number))
    yield found
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ("code", "own"), [(0, [15]), (DIFFERS, [15]), (-15, [15]), (143, []), (3, [])], ids=str
)
def test_a_signal_that_came_too_late_for_a_step_ends_the_run(
    code: int, own: list[int], answered: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step that was just done, whatever it found, is not the end of the run."""

    class Done:
        def __init__(self, *_: object, **__: object) -> None:
            pass

        def send_signal(self, number: int) -> None:
            assert number == signal.SIGTERM

        def wait(self) -> int:
            os.kill(os.getpid(), signal.SIGTERM)
            return code

    monkeypatch.setattr(subprocess, "Popen", Done)
    assert launch(("verify", "a", "b")) == (code if code >= 0 else 128 - code)
    assert answered == own


def test_a_step_that_the_kernel_kills_is_told(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it does when memory runs out: the step itself can say nothing."""

    class Killed(subprocess.Popen[bytes]):
        def wait(self, timeout: float | None = None) -> int:
            self.kill()
            return super().wait(timeout)

    monkeypatch.setattr(subprocess, "Popen", Killed)
    assert launch(("inspect", "nothing")) == 128 + signal.SIGKILL
    told = capfd.readouterr().err.splitlines()
    assert told[0] == "error: flmgrow inspect: was ended by SIGKILL"
    assert told[1].endswith("when memory runs out (see dmesg); the same command resumes")
