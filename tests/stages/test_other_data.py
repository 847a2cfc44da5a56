"""A later stage reads what it brings: other corpora, longer texts, positions that fit them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from stage_runs import environment, make_data, schedule_data, write_schedule

from flmgrow.cli.app import run
from flmgrow.errors import UsageError
from flmgrow.formats.history.manifest import training_of
from flmgrow.formats.history.readings import Stretch
from flmgrow.formats.opening import open_checkpoint
from flmgrow.stages.planned_stage import PlannedStage
from flmgrow.stages.schedule import read_schedule


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus and a teacher's file, and another corpus beside them."""
    folder = make_data(tmp_path_factory.mktemp("data") / "data")
    texts = (json.dumps({"text": f"{n} " * 50 + "."}) for n in range(40))
    (folder / "late.jsonl").write_text("\n".join(texts))
    words = ["data", "prepare", str(folder / "late.jsonl"), str(folder / "late")]
    assert run([*words, "--tokenizer", "bytes", "--workers", "1"]) == 0
    return folder


def schedule(data: Path, folder: Path, late: dict[str, Any], **model: Any) -> Path:
    """A schedule of two stages of one model, of which the second has ``late`` data."""
    content = schedule_data(data)
    content["model"].pop("vocab_size")
    content["model"] |= {"vocab_size": 257}
    small, large = content["stages"]
    del large["growth"], large["layout"]
    content["stages"] = [small, {**large, "model": model, "data": late}]
    folder.mkdir(parents=True, exist_ok=True)
    return write_schedule(folder, content)


def planned(data: Path, folder: Path, late: dict[str, Any], **model: Any) -> PlannedStage:
    return read_schedule(schedule(data, folder, late, **model))[-1]


def test_what_a_stage_brings_holds_until_the_next_says_otherwise(
    data: Path, tmp_path: Path
) -> None:
    late = {"sequence_length": 64, "teacher": None}
    corpora = [{"path": str(data / "late")}]
    stage = planned(data, tmp_path, late | {"corpora": corpora}, rotary={"base": 5e4})
    assert (stage.config.rotary.base, stage.config.max_positions) == (5e4, 64)
    assert stage.stage.checkpoint.other_positions
    assert stage.stage.data.differs
    assert stage.stage.model.rotary.base == 5e4
    path = tmp_path / "schedule.yaml"
    content = yaml.safe_load(path.read_text())
    content["stages"].append({"name": "last", "training": {"steps": 2}})
    content["data"]["corpora"][0]["begin"] = "anew"
    write_schedule(tmp_path, content)
    last = read_schedule(path)[-1]
    assert (last.config.rotary.base, last.config.max_positions) == (5e4, 64)
    assert last.stage.data.sequence_length == 32
    assert not last.stage.checkpoint.other_positions
    assert last.stage.data.differs


def test_a_stage_with_the_same_data_asks_for_nothing(data: Path, tmp_path: Path) -> None:
    stage = planned(data, tmp_path, {})
    assert not stage.stage.data.differs
    assert not stage.stage.checkpoint.other_positions


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"sequence_length": 64}, "data.sequence_length is 32, now 64"),
        ({"seed": 7}, "data.seed is 1234, now 7"),
        ({"validation_share": 0}, "data.validation_share is 0.05, now 0"),
    ],
)
def test_texts_in_another_order_are_refused_before_the_first_stage(
    data: Path, tmp_path: Path, changed: dict[str, Any], told: str
) -> None:
    with pytest.raises(UsageError) as refusal:
        planned(data, tmp_path, changed)
    assert refusal.value.message.endswith(
        f"data.corpora.0: corpus is read in another order than before: {told}"
    )
    assert "say data.corpora.0.begin: anew" in str(refusal.value.hint)
    corpora = [{"path": str(data / "corpus"), "begin": "anew"}]
    assert planned(data, tmp_path, {**changed, "corpora": corpora}).stage.data.differs


def carried_out(path: Path, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "flmgrow", "run", str(path), "--out", str(path.parent / "run")],
        env=environment(), capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return done.stderr


def readings(folder: Path) -> list[Stretch]:
    with open_checkpoint(folder) as checkpoint:
        carried = training_of(checkpoint)
    assert carried is not None
    return carried.readings


@pytest.mark.slow
def test_a_run_whose_last_stage_reads_longer_texts_of_another_corpus(
    data: Path, tmp_path: Path
) -> None:
    """It is told, kept in the checkpoint through the growth between, and counted anew."""
    late: dict[str, Any] = {"sequence_length": 64, "teacher": None}
    late["corpora"] = [
        {"path": str(data / "late"), "weight": 3},
        {"path": str(data / "corpus"), "begin": "anew"},
    ]
    told = carried_out(schedule(data, tmp_path, late, num_layers=3, rotary={"base": 5e4}))
    assert "note: model.rotary.base is 50000.0, was 10000.0: another function from here on" in told
    assert "note: model.max_position_embeddings is 64, was 32\n" in told
    assert "data.sequence_length is 64 after step 6, was 32" in told
    ends = tmp_path / "run" / "02-large"
    small, large = readings(ends / "checkpoints")
    assert readings(ends / "start") == [small]
    assert [(c.name, c.end) for c in small.corpora] == [("data.teacher", 12), ("corpus", 36)]
    assert (small.sequence_length, large.sequence_length, large.begin) == (32, 64, 48)
    assert [(c.name, c.begin, c.end) for c in large.corpora] == [("late", 0, 36), ("corpus", 0, 12)]
    with open_checkpoint(ends / "checkpoints") as checkpoint:
        assert checkpoint.config.rotary.base == 5e4
        assert checkpoint.config.max_positions == 64
