"""Studies that are trained: the same numbers however they are run, and as if an arm were alone."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from stage_runs import environment, make_data
from studies import MASK, SCRATCH, study_data, write_study

from flmgrow.cli.app import run
from flmgrow.errors import OutputExistsError, UsageError
from flmgrow.stages.trial_folder import TrialState
from flmgrow.storage.hidden import held
from flmgrow.studying.arms import schedule_of
from flmgrow.studying.folder import StudyFolder
from flmgrow.studying.measuring import outcome_of
from flmgrow.studying.rates import provisional
from flmgrow.studying.study import read

TIMES = ("seconds", "tokens_per_second", "model_tflops")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


def one_seed(data: Path, **changes: Any) -> dict[str, Any]:
    return study_data(data, seeds=[1], **changes)


def words(file: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "flmgrow", "study", str(file), "--out", str(out), *more]


def study(file: Path, out: Path, *more: str) -> str:
    done = subprocess.run(
        words(file, out, *more), env=environment(), capture_output=True, text=True, timeout=900,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def numbers(folder: Path) -> list[dict[str, Any]]:
    """What a folder's metrics say, but for times and for what legs are called."""
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in each.items() if key not in (*TIMES, "stage")}
            for each in records]  # fmt: skip


def told(out: Path) -> dict[str, list[dict[str, Any]]]:
    return {leg.name: numbers(leg) for leg in sorted((out / "legs").iterdir())}


@pytest.mark.slow
def test_a_study_gives_the_same_numbers_however_it_is_run(data: Path, tmp_path: Path) -> None:
    """Again; two legs at a time; killed and gone on with. What is common is trained once."""
    file = write_study(tmp_path, one_seed(data))
    first = study(file, tmp_path / "a")
    assert "scratch" in first
    legs = read(file).legs.every
    assert sorted(told(tmp_path / "a")) == sorted(leg.name for leg in legs)
    killed = subprocess.Popen(
        words(file, tmp_path / "b", "--parallel", "2"), env=environment(),
        stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    while not list((tmp_path / "b").glob("legs/*/checkpoints/latest*")) and killed.poll() is None:
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    done = list((tmp_path / "b").glob("legs/*/checkpoints/latest*"))
    before = {each: each.stat().st_mtime_ns for each in done}
    study(file, tmp_path / "b", "--parallel", "2")
    assert {each: each.stat().st_mtime_ns for each in done} == before
    assert told(tmp_path / "a") == told(tmp_path / "b")
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in "ab"]
    finals = [[(arm["name"], arm["losses"]) for arm in each["arms"]] for each in results]
    assert finals[0] == finals[1]
    assert [growth["arm"] for growth in results[0]["growths"]] == [MASK]
    assert abs(results[0]["growths"][0]["jump"]["value"]) < 1e-6
    assert {each["what"] for each in results[0]["findings"]} >= {"learning rate"}


@pytest.mark.slow
def test_an_arm_is_what_it_would_be_alone(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit what ``flmgrow run`` makes of its schedule, though others share its legs."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as the study's: sums have one order
    file = write_study(tmp_path, one_seed(data))
    planned, folder = read(file), StudyFolder(tmp_path / "out")
    study(file, folder.path)
    arm = next(arm for arm in planned.arms if arm.name == MASK)
    schedule = schedule_of(planned.file, arm.section, 1, provisional(planned.file))
    (tmp_path / "alone.yaml").write_text(yaml.safe_dump(schedule))
    assert run(["run", str(tmp_path / "alone.yaml"), "--out", str(tmp_path / "alone")]) == 0
    alone = [each for name in ("01-small", "02-large")
             for each in numbers(tmp_path / "alone" / name)]  # fmt: skip
    path = planned.legs.last[MASK, 1].path
    shared = [each for leg in path for each in numbers(folder.of(leg).path)]
    steps = [[each for each in records if each["kind"] == "step"] for records in (alone, shared)]
    assert steps[0] == steps[1]
    assert alone[-1] == shared[-1]
    outcome = outcome_of(arm, planned.legs, folder)
    assert outcome is not None
    assert outcome.final.loss == alone[-1]["validation_loss"]
    assert (outcome.final.tokens, outcome.final.flops) == (arm.tokens, arm.flops)
    assert [len(growth.around) for growth in outcome.growths] == [20]


@pytest.mark.slow
def test_an_arm_that_diverges_counts_and_ends_nothing_else(data: Path, tmp_path: Path) -> None:
    wild = {"like": MASK, "guard": {"spike": 1e-9, "window": 1}}
    arms = {**one_seed(data)["arms"], "wild": wild}
    file = write_study(tmp_path, one_seed(data, arms=arms))
    study(file, tmp_path / "out", "--parallel", "2")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    diverged = {arm["name"]: arm["diverged"] for arm in results["arms"]}
    assert diverged.pop("wild") == [1]
    assert not any(diverged.values())
    states = [StudyFolder(tmp_path / "out").of(leg).end() for leg in read(file).legs.every]
    assert sum(end is None for end in states) == 2
    assert sum(end is not None and end.state is TrialState.DIVERGED for end in states) == 1


@pytest.mark.slow
def test_rates_are_searched_for_each_size_first(data: Path, tmp_path: Path) -> None:
    content = one_seed(data)
    content["rates"] = {"grid": [1e-3, 8e-3], "tokens": 1536}
    content["arms"] = {MASK: content["arms"][MASK], SCRATCH: content["arms"][SCRATCH]}
    file, out = write_study(tmp_path, content), tmp_path / "out"
    assert [line.split()[:2] for line in study(file, out, "--print-commands").splitlines()] == [
        ["flmgrow", "search"], ["flmgrow", "search"],
    ]  # fmt: skip
    study(file, out, "--parallel", "2")
    assert sorted(each.name for each in (out / "rates").iterdir()) == ["large", "small"]
    stage = yaml.safe_load(next((out / "legs").glob("*/stage.yaml")).read_text())
    best = json.loads((out / "rates" / "large" / "results.json").read_text())["best"][0]
    assert stage["learning_rate"]["peak"] == best["settings"]["learning_rate.peak"]
    assert len(study(file, out, "--print-commands").splitlines()) == 0  # all is done


def test_two_studies_in_one_folder(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = write_study(tmp_path, one_seed(data)), tmp_path / "out"
    with held(out):
        assert run(["study", str(file), "--out", str(out)]) == OutputExistsError.exit_code
        assert f"another run (pid {os.getpid()} on " in capsys.readouterr().err
    assert run(["study", str(file), "--out", str(out), "--print-commands"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("# after") for line in printed) == 5
    assert [line.split()[1] for line in printed if line.startswith("flmgrow")] == [
        "expand", "verify",
    ]  # fmt: skip
    other = write_study(tmp_path, one_seed(data, base={"optimizer": {"beta2": 0.99}}))
    assert run(["study", str(other), "--out", str(out)]) == UsageError.exit_code
    assert "is of another study" in capsys.readouterr().err
