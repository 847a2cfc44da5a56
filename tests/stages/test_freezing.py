"""A schedule may train only what is new: planned, costed, and carried out."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from commands import accepted, flmgrow
from stage_runs import make_data, metrics, write_schedule
from trained_here import carried_out

import flmgrow as library
from flmgrow.cli import run as cli
from flmgrow.costing.memory import memory_of
from flmgrow.stages.alone import read_stages
from flmgrow.stages.schedule import read_schedule

FREEZE = {"steps": 4, "freeze": "old", "unfreeze_at": 0.5}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


def schedule(data: Path, folder: Path, *, first: Any = None, **training: Any) -> Path:
    """Write a schedule of a small stage, and one with two layers more that freezes what was."""
    content = {
        "model": {
            "num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "vocab_size": 257,
        },
        "data": {"sequence_length": 32, "corpora": [{"path": str(data / "corpus")}]},
        "training": {"batch": 8, "micro_batch": 4},
        "learning_rate": {"peak": 1e-3},
        "checkpoint": {"every": 1},
        "stages": [
            {"name": "small", "training": {"steps": 2, **(first or {})}},
            {
                "name": "large", "model": {"num_layers": 4}, "growth": {"method": "zero"},
                "training": training,
            },
        ],
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    return write_schedule(folder, content)


def test_what_trains_decides_on_memory_and_on_the_size_of_checkpoints(
    data: Path, tmp_path: Path
) -> None:
    trainings: dict[str, dict[str, Any]] = {
        "all": {},
        "new": {"freeze": "old"},
        "late": {"freeze": "old", "unfreeze_at": 2},
    }
    plans = {
        name: read_schedule(schedule(data, tmp_path / name, steps=4, **training))[-1]
        for name, training in trainings.items()
    }
    held = {name: memory_of(plan)[0] for name, plan in plans.items()}
    assert held["new"].weights == held["all"].weights
    assert held["new"].optimizer < 0.5 * held["all"].optimizer
    assert held["new"].gradients * 2 == held["new"].optimizer
    assert held["late"] == held["all"]
    assert plans["new"].flops < plans["late"].flops < plans["all"].flops
    words = {name: ("run", tmp_path / name / "schedule.yaml", "--dry-run") for name in plans}
    sizes = {
        name: json.loads(accepted(*words[name], "--json").out)["stages"][1]["checkpoint_bytes"]
        for name in plans
    }
    assert sizes["new"] < 0.7 * sizes["all"]
    told = accepted(*words["late"]).out
    assert "33,696 of 59,104 parameters do not train, until step 4; 33,696 of them have no" in told
    accepted("cost", tmp_path / "new" / "schedule.yaml")


@pytest.mark.parametrize(
    ("first", "later", "told"),
    [
        ({"freeze": "old"}, {}, "stage small: training.freeze: is old, but nothing says"),
        ({}, {"freeze": {"layers": 4}}, "stage large: training.freeze: layers: 4 is named"),
        ({}, {"unfreeze_at": 2}, "unfreeze_at without freeze: nothing is frozen"),
        ({}, {"freeze": {}}, "names nothing: give old, layers, tensors or axes"),
        ({}, {"freeze": {"layers": "3-1"}}, "'3-1' is no range of indices"),
        ({}, {"freeze": "new"}, "training.freeze"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_a_step(
    data: Path, tmp_path: Path, first: Any, later: Any, told: str
) -> None:
    path = schedule(data, tmp_path, first=first, steps=4, **later)
    outcome = flmgrow("run", path, "--dry-run")
    assert outcome.code == 2
    assert told in outcome.err
    assert outcome.err.count("error: ") == 1


@pytest.mark.parametrize("in_place", [False, True])
def test_a_run_freezes_what_was_there_before_the_growth_and_lets_it_go(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_place: bool
) -> None:
    monkeypatch.setattr(cli, "launch", carried_out)
    path = schedule(data, tmp_path, **FREEZE)
    if in_place:
        path.write_text(path.read_text().replace("method: zero", "{in_place: true, method: zero}"))
    accepted("run", path, "--out", tmp_path / "run")
    (large,) = (tmp_path / "run").glob("02-large*")
    saves = {n: large / "checkpoints" / f"iter_{n:07d}" for n in range(3, 7)}

    def embedding(iteration: int) -> Any:
        with library.open(saves[iteration]) as source:
            return np.array(source.tensor("embedding").values)

    small = tmp_path / "run" / "01-small" / "checkpoints"
    with library.open(small) as source:
        assert np.array_equal(np.array(source.tensor("embedding").values), embedding(4))
    assert not np.array_equal(embedding(4), embedding(5))
    lags = json.loads((saves[6] / "flmgrow_training.json").read_bytes())["lags"]
    assert {lag["steps"] for lag in lags} == {4}
    told = metrics(large / "stage.yaml")[-1]["flops"]
    assert told == sum(planned.flops for planned in read_schedule(path))
    assert flmgrow("run", path, "--out", tmp_path / "run").code == 0


def test_a_stage_file_alone_says_nothing_of_what_is_old(data: Path, tmp_path: Path) -> None:
    """Its checkpoint is not read for its cost; that is counted as if all of it trained."""
    content = yaml.safe_load(schedule(data, tmp_path).read_text())
    del content["stages"]
    content["name"] = "alone"
    held, flops = [], []
    for frozen in (None, "old", {"layers": 0}):
        content["training"] |= {"steps": 4, "freeze": frozen}
        (tmp_path / "stage.yaml").write_text(yaml.safe_dump(content))
        accepted("cost", tmp_path / "stage.yaml")
        (planned,) = read_stages(tmp_path / "stage.yaml")
        held.append(memory_of(planned)[0])
        flops.append(planned.flops)
    assert held[0] == held[1]
    assert held[2].optimizer < held[0].optimizer
    assert flops[2] < flops[1] == flops[0]
