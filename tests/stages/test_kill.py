"""A run that is killed again and again ends with the very bytes of one that nobody touched."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from stage_runs import environment, make_data, schedule_data, write_schedule

from flmgrow.trainer.metrics.records import StepRecord, read_metrics

pytestmark = pytest.mark.slow

KILLS = 20
PATIENCE = 120.0
FINAL = Path("02-large", "checkpoints")


@pytest.fixture(scope="module")
def schedule(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints after every step: a kill then meets a save more often than anywhere else."""
    folder = tmp_path_factory.mktemp("schedule")
    data = make_data(folder / "data")
    return write_schedule(folder, schedule_data(data, checkpoint={"every": 1, "keep": 2}))


def begun(schedule: Path, out: Path) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "flmgrow", "run", str(schedule), "--out", str(out)]
    with out.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(words, env=environment(), stdout=log, stderr=log)


def told(out: Path) -> str:
    """The end of what a run had to say."""
    return out.with_suffix(".log").read_text()[-3000:]


def saved(out: Path) -> dict[str, bytes]:
    folder = out / FINAL
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def losses(out: Path) -> list[tuple[int, float, float]]:
    records = [
        record
        for name in ("01-small", "02-large")
        for record in read_metrics(out / name / "metrics.jsonl")
        if isinstance(record, StepRecord)
    ]
    return [(record.step, record.loss, record.grad_norm) for record in records]


@pytest.fixture(scope="module")
def undisturbed(schedule: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A run that nobody touched, and the seconds it took."""
    out, begin = tmp_path_factory.mktemp("whole") / "run", time.monotonic()
    assert begun(schedule, out).wait(PATIENCE) == 0
    return out, time.monotonic() - begin


def processes_of(out: Path) -> list[str]:
    """What still runs on behalf of a run."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if bytes(out) in command:
                found.append(command.replace(b"\0", b" ").decode())
    return found


def check_all_ended(out: Path) -> None:
    end = time.monotonic() + 10
    while left := processes_of(out):
        assert time.monotonic() < end, left
        time.sleep(0.05)


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


def test_killed_at_random_moments(
    schedule: Path, undisturbed: tuple[Path, float], tmp_path: Path
) -> None:
    """The moments of each run lie anywhere between its begin and its end; the very first is while
    the first stage saves, however fast the machine is now.
    """
    whole, seconds = undisturbed
    chance = random.Random(20)
    kills, met, outs = 0, set[str](), list[Path]()
    while kills < KILLS:
        outs.append(tmp_path / f"run-{len(outs)}")
        while kills < KILLS:
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
            break
    assert begun(schedule, outs[-1]).wait(PATIENCE) == 0, told(outs[-1])
    for out in outs:
        assert saved(out) == saved(whole)
        assert losses(out) == losses(whole)
    assert {"first stage", "second stage"} <= met


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
    assert saved(out) == saved(whole)
    assert losses(out) == losses(whole)
