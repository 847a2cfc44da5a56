"""Grids of settings on a small model: what is tried, what is found, and how it goes on."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pico import CONFIGS
from searches import PEAK, STD, write_search
from stage_runs import environment, make_data

import flmgrow
from flmgrow.cli.app import run
from flmgrow.errors import UsageError
from flmgrow.searching.report import Report, moves, report_of
from flmgrow.searching.request import at_width, read_search
from flmgrow.searching.trials import SearchFolder, TrialOutcome
from flmgrow.stages import pool
from flmgrow.stages.pool import cores_of, share
from flmgrow.stages.trial_folder import TrialFolder, TrialState
from flmgrow.trainer.stage.file import stage_of
from flmgrow.trainer.stage.model import contradictions

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


GRID: dict[str, list[Any]] = {PEAK: [1e-3, 4e-3], STD: [0.01, 0.02, 0.04]}


def test_every_point_is_tried_with_every_seed(data: Path, tmp_path: Path) -> None:
    search = read_search(write_search(tmp_path, data, GRID, seeds=[1, 2]))
    found = {(t.stage.learning_rate.peak, t.stage.training.init_std, t.stage.training.seed)
             for t in search.trials}  # fmt: skip
    assert found == {(p, s, n) for p in GRID[PEAK] for s in GRID[STD] for n in (1, 2)}
    assert len({trial.name for trial in search.trials}) == len(search.trials) == 12


def test_a_model_that_is_loaded_is_described_by_its_checkpoint_alone(
    data: Path, tmp_path: Path
) -> None:
    """What the stage does not say of it, no trial's file says; what it says stays said."""
    file = write_search(tmp_path, data, {PEAK: [1e-3]})
    proxy = yaml.safe_load((tmp_path / "proxy.yaml").read_text())
    for model, differing in ({}, []), ({"num_layers": 5}, ["layers is 4, the stage file says 5"]):
        content = {**proxy, "model": model, "checkpoint": {"load": "hf", "begin": "anew"}}
        (tmp_path / "proxy.yaml").write_text(yaml.safe_dump(content))
        (trial,) = read_search(file).trials
        written = stage_of(TrialFolder(tmp_path, trial.stage, 0).content(), file)
        assert contradictions(written.model, CONFIGS["llama"]) == differing


@given(count=st.integers(1, 60), seed=st.integers(0, 1000))
def test_a_sample_of_a_grid_has_different_points_of_it(count: int, seed: int) -> None:
    from flmgrow.searching.request import _drawn

    grid = {"a.b": [1, 2, 3], "c.d": [4, 5], "e.f": list(range(10))}
    found = _drawn(grid, count, seed)
    assert len({json.dumps(each) for each in found}) == count
    assert all(each[key] in grid[key] for each in found for key in grid)
    assert found == _drawn(grid, count, seed)


def test_the_same_model_at_other_widths() -> None:
    model = {"hidden_size": 64, "num_attention_heads": 4, "num_query_groups": 2,
             "ffn_hidden_size": 160}  # fmt: skip
    wide = at_width({"model": model}, 96)["model"]
    assert wide == {"hidden_size": 96, "num_attention_heads": 6, "num_query_groups": 3,
                    "ffn_hidden_size": 240, "kv_channels": 16}  # fmt: skip
    with pytest.raises(UsageError, match=r"num_attention_heads 4 of width 64 becomes 4\.5"):
        at_width({"model": model}, 72)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({"grid": {"learning_rate.peek": [1]}}, "learning_rate.peek: there is no such"),
    "wrong value": ({"grid": {PEAK: [-1.0]}}, "learning_rate.peak"),
    "no values": ({"grid": {PEAK: []}}, "grid.learning_rate.peak: has no values"),
    "twice": ({"grid": {PEAK: [1.0, 1.0]}}, "grid.learning_rate.peak: has a value twice"),
    "seed as axis": ({"grid": {"training.seed": [1, 2]}}, "grid.training.seed: is no axis"),
    "inside a number": ({"grid": {"training.batch.size": [1]}}, "batch is 8, wanted a section"),
    "the same number": ({"grid": {PEAK: [1.0, 1]}}, "grid.learning_rate.peak: has a value twice"),
    "a word for a number": ({"grid": {PEAK: [1, True]}}, "has a value twice"),
    "seeds twice": ({"grid": GRID, "seeds": [3, 3]}, "seeds: has a seed twice"),
    "seeds of a model that is there": (
        {"grid": {"checkpoint.load": ["before"]}, "seeds": [1, 2]},
        "seeds: are 2, but draw fresh weights alone",
    ),
    "its own folder": ({"grid": {"checkpoint.folder": ["a", "b"]}}, "checkpoint.folder: is no ax"),
    "its own name": ({"grid": {"name": ["a", "b"]}}, "grid.name: is no axis"),
    "no grid": ({"grid": {}}, "grid"),
    "too many": (
        {"grid": {f"model.k{i}": list(range(50)) for i in range(3)}},
        "has 125,000 points and 1 seeds, wanted at most 10,000 trials",
    ),
    "unknown section": ({"grid": GRID, "repeat": 3}, "repeat: there is no such key"),
    "a schedule": ({"grid": GRID, "stage": str(ROOT / "configs" / "tiny.yaml")}, "is no stage"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_stage_can_be_is_refused_before_anything_is_trained(
    name: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, told = REFUSED[name]
    more = {key: value for key, value in content.items() if key != "grid"}
    file = write_search(tmp_path, data, content["grid"], **more)
    assert run(["search", str(file), "--out", str(tmp_path / "out")]) == UsageError.exit_code
    assert told in capsys.readouterr().err.splitlines()[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"ffn_hidden_size": "abc"}, "model.ffn_hidden_size: found 'abc'"),
        (3, "model: found 3"),
    ],
)
def test_a_model_that_is_none_has_no_widths(
    model: Any, told: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_search(tmp_path, data, GRID)
    proxy = yaml.safe_load((tmp_path / "proxy.yaml").read_text())
    proxy["model"] = {**proxy["model"], **model} if isinstance(model, dict) else model
    (tmp_path / "proxy.yaml").write_text(yaml.safe_dump(proxy))
    assert run(["search", str(file), "--transfer", "32,64", "--dry-run"]) == UsageError.exit_code
    assert told in capsys.readouterr().err.splitlines()[0]


def test_points_that_read_alike_are_told_apart(data: Path, tmp_path: Path) -> None:
    """1.0000001 and 1.0000002 are both shown as 1."""
    search = read_search(write_search(tmp_path, data, {PEAK: [1.0000001, 1.0000002]}))
    assert len(search.points) == 2
    found = [TrialOutcome(trial, TrialState.DONE, 8, loss)
             for trial, loss in zip(search.trials, (3.0, 2.0), strict=True)]  # fmt: skip
    report = report_of(search, found)
    assert [each.loss for each in report.results] == [2.0, 3.0]
    assert report.best[0].result.point.settings == {PEAK: 1.0000002}


def test_what_cannot_be_drawn_is_told_before_anything_is_trained(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match="the package matplotlib"):
        flmgrow.search(write_search(tmp_path, data, GRID), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("out", "told"),
    [
        ("points.csv", "points.csv: is no folder"),
        ("s3://bucket/runs", "runs: is in an object store"),
    ],
)
def test_results_need_a_folder_of_this_machine(
    out: str, told: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("points.csv").touch()
    file = write_search(tmp_path, data, GRID)
    schedule = str(ROOT / "configs" / "flm-101b.yaml")
    for words in (("search", str(file)), ("run", schedule), ("run", schedule, "--dry-run")):
        assert run([*words, "--out", out]) == UsageError.exit_code
        assert told in capsys.readouterr().err.splitlines()[0]
    assert not Path("s3:").exists()


def test_training_cores_and_devices_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert [cores_of(slot, 3) for slot in range(3)] == [[0, 1], [2, 3], [4, 5]]
    assert cores_of(0, 9) == []
    assert share(1, 2, 2) == {"OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": "2,3"}
    assert "CUDA_VISIBLE_DEVICES" not in share(0, 3, 2)
    monkeypatch.setattr(pool, "usable_cores", lambda: 2)  # as a container allows
    assert share(1, 2, 1)["OMP_NUM_THREADS"] == "1"


def searched(file: Path, out: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "flmgrow", "search", str(file), "--out", str(out), *words],
        env=environment(), capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip


def test_a_search_is_trained_reported_and_written(data: Path, tmp_path: Path) -> None:
    """One point diverges, the others are ranked, and the best is a part of a stage file."""
    file = write_search(tmp_path, data, {PEAK: [1e-3, 1e-2, 1e30]})
    out, best = tmp_path / "out", tmp_path / "best.yaml"
    done = searched(file, out, "--parallel", "2", "--write-best", str(best), "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    page = (ROOT / "docs" / "reference" / "json.md").read_text(encoding="utf-8")
    section = page.partition("\n## search\n")[2].partition("\n## ")[0]
    assert list(told) == re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    states = [(each["settings"][PEAK], each["state"]) for each in told["points"]]
    assert states == [(1e-2, "done"), (1e-3, "done"), (1e30, "diverged")]
    assert told["points"][0]["loss"] < told["points"][1]["loss"]
    assert yaml.safe_load(best.read_text()) == {"learning_rate": {"peak": 0.01}}
    assert "diverged" in (out / "report.md").read_text()
    assert (out / "search.png").read_bytes().startswith(b"\x89PNG")
    # The same command finds all of it done, and says the same.
    again = searched(file, out, "--json")
    assert json.loads(again.stdout) == told
    assert again.stderr == ""
    # From Python, too.
    assert flmgrow.search(file, out).to_json() == told
    # Other settings in the same folder are refused.
    write_search(tmp_path, data, {PEAK: [2e-3, 1e-2, 1e30]})
    refused = searched(file, out)
    assert refused.returncode == UsageError.exit_code
    assert "learning_rate.peak is 0.001, the search says 0.002" in refused.stderr


@pytest.mark.slow
def test_a_search_that_was_stopped_goes_on(data: Path, tmp_path: Path) -> None:
    file = write_search(tmp_path, data, {PEAK: [1e-3, 2e-3, 4e-3]})
    whole = searched(file, tmp_path / "whole", "--json")
    process = subprocess.Popen(
        [sys.executable, "-m", "flmgrow", "search", str(file), "--out",
         str(tmp_path / "parted"), "--parallel", "2"],
        env=environment(), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    while not list((tmp_path / "parted").glob("trials/2*/metrics.jsonl")):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(300) in (143, -signal.SIGTERM)
    parted = searched(file, tmp_path / "parted", "--json")
    assert parted.returncode == 0, parted.stderr
    assert json.loads(parted.stdout) == json.loads(whole.stdout)


@pytest.mark.slow
def test_halving_stops_the_worse_half(data: Path, tmp_path: Path) -> None:
    file = write_search(tmp_path, data, {PEAK: [1e-5, 1e-4, 1e-3, 1e-2]})
    proxy = yaml.safe_load((tmp_path / "proxy.yaml").read_text())
    proxy["training"]["steps"] = steps = 400  # long enough to be stopped in the middle
    (tmp_path / "proxy.yaml").write_text(yaml.safe_dump(proxy))
    done = searched(file, tmp_path / "out", "--halving", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert {each["settings"][PEAK]: each["state"] for each in told["points"]} == {
        1e-2: "done", 1e-3: "done", 1e-4: "stopped", 1e-5: "stopped",
    }  # fmt: skip
    assert told["halved"]
    assert all(each["steps"] < steps for each in told["points"][2:])
    assert "one may have won later" in (tmp_path / "out" / "report.md").read_text()


def test_commands_for_a_scheduler(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_search(tmp_path, data, {PEAK: [1e-3, 1e-2]})
    words = ["search", str(file), "--out", str(tmp_path / "out"), "--print-commands"]
    assert run([*words, "--launcher", "srun"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all("srun --nodes=1 --ntasks=1" in line and "stage.yaml" in line for line in lines)
    assert (tmp_path / "out" / "trials" / "1-seed1234" / "stage.yaml").is_file()


def test_the_papers_search_can_be_carried_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["search", str(ROOT / "configs" / "flm-101b-search.yaml"), "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith("60 points, 60 trials, 508,620 steps in all")


def transferred(data: Path, folder: Path, mup: bool) -> Report:
    """Return a search of learning rates at three widths, with muP and without."""
    rates = [2.0**-power for power in range(9, 3, -1)]
    file = write_search(folder, data, {PEAK: rates}, seeds=[1, 2, 3])
    proxy = yaml.safe_load((folder / "proxy.yaml").read_text())
    proxy["training"].update(steps=60, batch=16, micro_batch=16)
    proxy["learning_rate"]["warmup_samples"] = 80
    proxy["log"] = {"validation_every": 60, "validation_samples": 128}
    if not mup:
        del proxy["model"]["multipliers"]
    (folder / "proxy.yaml").write_text(yaml.safe_dump(proxy))
    return flmgrow.search(file, folder / "out", parallel=2, transfer=(32, 64, 128))


@pytest.mark.slow
@pytest.mark.long
def test_with_mup_the_best_rate_stays(data: Path, tmp_path: Path) -> None:
    """Over a factor of four in width it moves by a step of the grid at most; without, it moves."""
    with_mup = transferred(data, tmp_path / "mup", True)
    without = transferred(data, tmp_path / "plain", False)
    assert abs(sum(move.steps for move in moves(with_mup))) <= 1
    assert sum(move.steps for move in moves(without)) <= -1


def test_folders_know_what_is_open(data: Path, tmp_path: Path) -> None:
    file = write_search(tmp_path, data, {PEAK: [1e-3]})
    folder = SearchFolder(tmp_path / "out", read_search(file))
    folder.prepare(file)
    (outcome,) = folder.outcomes()
    assert (outcome.state, outcome.steps) == (TrialState.OPEN, 0)
