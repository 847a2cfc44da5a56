"""A run whose schedule has its model grow in memory ends as one that grows over the disk."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import flmgrow
from in_place import SMALL, WIDE, weights
from stage_runs import make_data, prepared, write_schedule
from trained_here import carried_out

import flmgrow.cli.run as cli

ENDS = {"small": 4, "wide": 6, "deep": 8}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


def schedule(data: Path, folder: Path, **growth: Any) -> Path:
    """Write a schedule of three stages, which grow as ``growth`` says, too."""
    folder.mkdir()
    common = {
        "model": {**SMALL, "vocab_size": 257},
        "data": {"sequence_length": 32, "corpora": [{"path": str(data / "corpus")}]},
        "training": {"batch": 8, "micro_batch": 4},
        "learning_rate": {"peak": 3e-3, "warmup_samples": 8},
        "checkpoint": {"every": 2},
    }
    deep = {"num_layers": 4}
    later: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        ("wide", {**WIDE, "num_layers": 2}, {"ramp_steps": 1}),
        ("deep", deep, {"method": "zero", "seed": 2}),
    ]
    stages: list[dict[str, Any]] = [{"name": "small", "training": {"steps": 4}}]
    stages += [
        {"name": name, "model": model, "training": {"steps": 2}, "growth": {**how, **growth}}
        for name, model, how in later
    ]
    return write_schedule(folder, {**common, "stages": stages})


@pytest.mark.slow
def test_a_run_in_memory_ends_as_one_over_the_disk(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "launch", carried_out)
    runs = {}
    for name, growth in (("memory", {"in_place": True}), ("disk", {})):
        runs[name] = tmp_path / name / "run"
        path = schedule(data, tmp_path / name, **growth)
        done = flmgrow("run", path, "--out", runs[name])
        assert done.code == 0, done.err
    for number, (stage, end) in enumerate(ENDS.items(), start=1):
        mine, theirs = (runs[name] / f"{number:02d}-{stage}/stage.yaml" for name in runs)
        assert weights(mine, end) == weights(theirs, end)
        assert not (mine.parent / "start").exists()
    again = flmgrow("run", tmp_path / "memory" / "schedule.yaml", "--out", runs["memory"])
    assert again.code == 0, again.err


def test_one_command_trains_all_stages_that_grow_in_memory(data: Path, tmp_path: Path) -> None:
    folder, steps = prepared(schedule(data, tmp_path / "x", in_place=True), tmp_path / "run")
    last = folder.path / "03-deep" / "stage.yaml"
    assert [step.words for step in steps] == [("train", str(last))]
    printed = flmgrow(
        "run", tmp_path / "x" / "schedule.yaml", "--out", tmp_path / "run", "--print-commands"
    )
    assert "-m flmgrow.growing" in printed.out


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "ranks": ({"in_place": True}, {"layout": {"tp": 2}}, "layout.tp: is 2, after 1 in the stage"),
    "answer": ({"in_place": "yes"}, {}, "growth.in_place: is 'yes', wanted true or false"),
    "words": ({"in_place": True, "if_diverged": "hope"}, {}, "if_diverged: "),
    "disk": ({"if_diverged": "ungrown"}, {}, "growth.if_diverged: holds for a growth in memory"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_schedule_cannot_mean_is_refused(data: Path, tmp_path: Path, name: str) -> None:
    growth, changes, message = REFUSED[name]
    path = schedule(data, tmp_path / "x", **growth)
    content = yaml.safe_load(path.read_text())
    content["stages"][1].update(changes)
    path.write_text(yaml.safe_dump(content))
    done = flmgrow("run", path, "--out", tmp_path / "run", "--dry-run")
    assert done.code == 2
    assert message in done.err


def test_a_dry_run_shows_every_stage(data: Path, tmp_path: Path) -> None:
    path = schedule(data, tmp_path / "x", in_place=True)
    done = flmgrow("run", path, "--out", tmp_path / "run", "--dry-run")
    assert [line.split()[1] for line in done.out.splitlines() if line.startswith("stage ")] == [
        f"{name}," for name in ENDS
    ]
    assert done.out.count("; in memory") == 2
