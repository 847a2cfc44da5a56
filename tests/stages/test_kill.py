"""A run that is killed again and again ends with the very bytes of one that nobody touched."""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
import run_processes
from run_processes import check_all_ended, losses, saved
from stage_runs import make_data, schedule_data, write_schedule

pytestmark = pytest.mark.slow

KILLS = {8: ["first stage"], 20: ["first stage", "second stage"]}
"""How often a run is killed, and where it must have been by then."""

PATIENCE = 600.0
FINAL = Path("02-large", "checkpoints")


@pytest.fixture(scope="module")
def schedule(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints after every step: a kill then meets a save more often than anywhere else."""
    folder = tmp_path_factory.mktemp("schedule")
    data = make_data(folder / "data")
    return write_schedule(folder, schedule_data(data, checkpoint={"every": 1, "keep": 2}))


def begun(schedule: Path, out: Path) -> subprocess.Popen[bytes]:
    return run_processes.begun("run", schedule, "--out", out, log=out.with_suffix(".log"))


def told(out: Path) -> str:
    """The end of what a run had to say."""
    return out.with_suffix(".log").read_text()[-3000:]


@pytest.fixture(scope="module")
def undisturbed(schedule: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A run that nobody touched, and the seconds it took."""
    out, begin = tmp_path_factory.mktemp("whole") / "run", time.monotonic()
    assert begun(schedule, out).wait(PATIENCE) == 0
    return out, time.monotonic() - begin


def wait_for_a_save(process: subprocess.Popen[bytes], out: Path) -> None:
    """Wait until the first stage has begun to save."""
    while not (out / "01-small" / "checkpoints").exists():
        assert process.poll() is None, told(out)
        time.sleep(0.02)


def place_of(out: Path) -> str:
    """How far a run has come: what a kill met."""
    if (out / FINAL).exists():
        return "second stage"
    if (out / "02-large" / "start").exists():
        return "start"
    if list(out.glob("02-large/.start*")):
        return "growing"
    return "first stage" if (out / "01-small" / "checkpoints").exists() else "beginning"


@pytest.mark.parametrize("times", [8, pytest.param(20, marks=pytest.mark.long)])
def test_killed_at_random_moments(
    schedule: Path, undisturbed: tuple[Path, float], tmp_path: Path, times: int
) -> None:
    """The moments of each run lie anywhere between its begin and its end; the very first is while
    the first stage saves, however fast the machine is now.
    """
    whole, seconds = undisturbed
    chance = random.Random(20)
    kills, met, outs = 0, set[str](), list[Path]()
    while kills < times:
        outs.append(tmp_path / f"run-{len(outs)}")
        while kills < times:
            process = begun(schedule, outs[-1])
            moment = chance.uniform(0.2, 0.6) * seconds
            if kills == 0:
                wait_for_a_save(process, outs[-1])
                moment = chance.uniform(0, 0.3)
            try:
                code = process.wait(moment)
            except subprocess.TimeoutExpired:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
                kills += 1
                met.add(place_of(outs[-1]))
                check_all_ended(outs[-1])
                continue
            assert code == 0, told(outs[-1])
            seconds *= 0.9  # the machine is faster now
            break
    assert begun(schedule, outs[-1]).wait(PATIENCE) == 0, told(outs[-1])
    for out in outs:
        assert saved(out / FINAL) == saved(whole / FINAL)
        assert losses(out) == losses(whole)
    assert met.issuperset(KILLS[times])


def test_asked_to_stop_it_saves_and_goes_on(
    schedule: Path, undisturbed: tuple[Path, float], tmp_path: Path
) -> None:
    whole, _ = undisturbed
    out = tmp_path / "run"
    process = begun(schedule, out)
    log = out / "02-large" / "metrics.jsonl"
    while not log.exists() or b"\n" not in log.read_bytes():
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 143
    check_all_ended(out)
    assert begun(schedule, out).wait(PATIENCE) == 0
    assert saved(out / FINAL) == saved(whole / FINAL)
    assert losses(out) == losses(whole)
