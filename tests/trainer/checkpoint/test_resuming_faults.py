"""A run that is taken up again believes nothing that does not fit, and loses nothing that does."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from stage_runs import (
    command,
    environment,
    make_data,
    metrics,
    saved,
    stage_data,
    train,
    write_stage,
)

from flmgrow.cli.app import run
from flmgrow.storage.content_sum import with_sum

pytestmark = pytest.mark.slow  # every test starts a stage several times

TRACKER = "latest_checkpointed_iteration.txt"
STEPS = 2


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def begun(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a stage that has come to iteration 2 of 3."""
    stage = write_stage(
        tmp_path_factory.mktemp("begun"),
        stage_data(data, training={"steps": STEPS}, checkpoint={"every": 1, "keep": 2}),
    )
    train(stage)
    return stage.parent


def copied(begun: Path, data: Path, to: Path) -> Path:
    shutil.copytree(begun, to)
    content = stage_data(data, training={"steps": STEPS + 1}, checkpoint={"every": 1, "keep": 2})
    return write_stage(to, content)


def test_without_its_tracker_it_goes_on_from_the_newest(
    data: Path, begun: Path, tmp_path: Path
) -> None:
    """It is killed between the first iteration and the tracker: the iteration is whole."""
    stages = [copied(begun, data, tmp_path / name) for name in ("whole", "lost")]
    (tmp_path / "lost" / "checkpoints" / TRACKER).unlink()
    for stage in stages:
        train(stage)
    assert saved(stages[0], 3) == saved(stages[1], 3)
    assert [record["step"] for record in metrics(stages[1])] == [1, 2, 3]


def test_a_stage_that_is_done_gets_its_tracker_back(begun: Path, tmp_path: Path) -> None:
    """Else whoever looks there, as ``flmgrow run`` does, would wait for its end for ever."""
    shutil.copytree(begun, tmp_path / "done")
    tracker = tmp_path / "done" / "checkpoints" / TRACKER
    tracker.unlink()
    assert "there is nothing to do" in train(tmp_path / "done" / "stage.yaml")
    assert tracker.read_text() == str(STEPS)


def test_what_is_too_short_is_told(data: Path, tmp_path: Path) -> None:
    """A warm-up, and a ramp; and where a run goes on."""
    train(write_stage(tmp_path / "small", stage_data(data, training={"steps": 1})))
    start, source = tmp_path / "start", tmp_path / "small" / "checkpoints"
    assert run(["expand", str(source), str(start), "--num-layers", "3", "--ramp-steps", "8"]) == 0
    content = stage_data(data, name="deep", checkpoint={"load": str(start), "every": 1})
    del content["model"]  # all of it follows from the checkpoint
    content["training"]["steps"] = STEPS
    content["learning_rate"]["warmup_samples"] = 80
    told = train(write_stage(tmp_path / "deep", content))
    assert f"  begins with {start}/iter_0000001\n" in told
    assert "note: learning_rate.warmup_samples take 10 steps, the stage has 2: its peak is" in told
    assert "note: the stage ends before its masks are open: depth at 0.25\n" in told
    content["training"]["steps"] = STEPS + 1
    told = train(write_stage(tmp_path / "deep", content))
    assert "  TP1 x PP1 x DP1  float32  goes on from step 3\n" in told


def test_the_step_that_diverged_is_told(data: Path, tmp_path: Path) -> None:
    """By the error, and as a metric: whoever looks for the reason finds it there."""
    changes = {"guard": {"spike": 2.0, "window": 30}, "checkpoint": {"every": 3}}
    rate = {"peak": 30.0, "warmup_samples": 240}
    content = stage_data(data, learning_rate=rate, training={"steps": 30}, **changes)
    told = train(write_stage(tmp_path, content), expect=7)
    (step,) = re.findall(r"^error: step (\d+): loss .* wanted at most", told, re.M)
    assert f"that of step {(int(step) - 1) // 3 * 3};" in told
    assert [record["step"] for record in metrics(tmp_path / "stage.yaml")][-1] == int(step)


def altered(key: str, value: object) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda state: {**state, key: value}


TRAINING: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], str]] = {
    "begins later": (altered("stage_begin", 99), "the stage begins at 99, after iteration 2"),
    "another iteration": (altered("iteration", 1), "is of iteration 1, the checkpoint of 2"),
    "losses": (altered("losses", [float("nan")]), "losses.0: found nan, wanted a finite number"),
}


@pytest.mark.parametrize("case", TRAINING)
def test_a_training_state_that_cannot_be_is_refused(
    data: Path, begun: Path, tmp_path: Path, case: str
) -> None:
    change, message = TRAINING[case]
    stage = copied(begun, data, tmp_path / "run")
    file = tmp_path / "run" / "checkpoints" / "iter_0000002" / "flmgrow_training.json"
    file.write_text(json.dumps(with_sum(change(json.loads(file.read_text())))))
    told = train(stage, expect=3)
    assert told.startswith(f"error: {file}: ")
    assert message in told
    assert len(metrics(stage)) == STEPS


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("trackers", [1]),
        ("numpy", ["MT19937", [-1], 0, 0, 0.0]),
        ("python", [3, [2**70] * 625, None]),
        ("torch", "AAAA"),
    ],
)
def test_random_states_that_are_none_are_refused(
    data: Path, begun: Path, tmp_path: Path, key: str, value: object
) -> None:
    stage = copied(begun, data, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints" / "iter_0000002" / "random_states"
    file = folder / "rank_00000.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    told = train(stage, expect=3)
    assert told.startswith(f"error: {file}: not as the trainer wrote it: ")
    assert "Traceback" not in told


def test_metrics_are_written_over_nothing_else(data: Path, tmp_path: Path) -> None:
    victim = tmp_path / "notes.txt"
    victim.write_text("do not lose me\n")
    stage = write_stage(tmp_path / "run", stage_data(data, log={"metrics": str(victim)}))
    assert "notes.txt:1: holds no record" in train(stage, expect=3)
    assert victim.read_text() == "do not lose me\n"
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_a_closed_terminal_stops_it_as_a_request_does(
    data: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """Nobody reads what it tells, either: that alone is no reason to stop."""
    content = stage_data(data, training={"steps": 400}, log={"every": 1})
    stage = write_stage(tmp_path, {**content, "checkpoint": {}})
    reader = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process = subprocess.Popen(
        command(stage), env=environment(), stderr=reader.stdin,
        preexec_fn=partial(signal.signal, signal.SIGHUP, signal.SIG_DFL),
    )  # fmt: skip
    assert reader.stdin is not None
    reader.stdin.close()
    log = tmp_path / "metrics.jsonl"
    while not log.exists() or log.read_text().count("\n") < 4:
        time.sleep(0.05)
    assert reader.wait(300) == 0  # after one line
    before = log.read_text().count("\n")
    while log.read_text().count("\n") < before + 2:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(300) == 128 + number
    assert len(list((tmp_path / "checkpoints").glob("iter_*"))) == 1


def test_nohup_is_heeded(data: Path, tmp_path: Path) -> None:
    stage = write_stage(tmp_path, stage_data(data, training={"steps": 40}))
    process = subprocess.Popen(
        command(stage), env=environment(), stderr=subprocess.DEVNULL,
        preexec_fn=partial(signal.signal, signal.SIGHUP, signal.SIG_IGN),
    )  # fmt: skip
    log = tmp_path / "metrics.jsonl"
    while not log.exists() or log.read_text().count("\n") < 2:
        time.sleep(0.02)
    process.send_signal(signal.SIGHUP)
    assert process.wait(300) == 0
    assert len(metrics(stage)) == 40


def test_what_may_not_be_expected_is_told(data: Path, begun: Path, tmp_path: Path) -> None:
    """A Hugging Face folder has no optimizer state; and a long stage is saved at its end only."""
    exported = tmp_path / "exported"
    assert run(["export", str(begun / "checkpoints"), str(exported)]) == 0
    changes = {"checkpoint": {"load": str(exported)}, "training": {"steps": 2000}}
    content = stage_data(data, **changes, log={"every": 1})
    del content["checkpoint"]["every"]
    stage = write_stage(tmp_path / "run", content)
    process = subprocess.Popen(command(stage), env=environment(), stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    told = [process.stderr.readline() for _ in range(4)]
    process.kill()
    process.stderr.close()
    process.wait()
    summary = f"small  33,696 parameters  TP1 x PP1 x DP1  float32  begins with {exported}\n"
    assert told.pop(0) == summary
    assert told[0] == (
        f"note: of {exported} only weights are taken: Adam, data and iterations begin anew\n"
    )
    assert told[1].startswith("note: checkpoint.every is not given: 2,000 steps are saved")
    assert told[2].startswith("note: reads data.teacher: 30 samples an epoch, epochs 0.")
