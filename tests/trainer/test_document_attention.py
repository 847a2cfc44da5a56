"""A stage whose attention stops at documents trains, in any layout, and goes on to the same bits.

That a document in a sample is one alone is tested in ``data/test_corpora.py``.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from stage_runs import make_data, metrics, saved, stage_data, train, write_stage

from flmgrow.cli.app import run
from flmgrow.formats.history.training_state import read_training_state

pytestmark = pytest.mark.slow

STEPS = 4


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of short texts, several in a sample, and a teacher's file."""
    folder = make_data(tmp_path_factory.mktemp("data"))
    texts = (json.dumps({"text": f"{n}: a text" + " and more" * (n % 4)}) for n in range(400))
    (folder / "short.jsonl").write_text("\n".join(texts))
    shutil.rmtree(folder / "corpus")
    words = ["data", "prepare", str(folder / "short.jsonl"), str(folder / "corpus")]
    assert run([*words, "--tokenizer", "bytes", "--workers", "1"]) == 0
    return folder


def stage(data: Path, folder: Path, apart: bool = True, **changes: Any) -> Path:
    content = stage_data(data, data={"document_attention": apart}, **changes)
    content["training"]["steps"] = STEPS
    content["checkpoint"] = {"every": STEPS // 2}
    return write_stage(folder, content)


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = stage(data, tmp_path_factory.mktemp("whole"))
    train(found)
    return found


@pytest.fixture(scope="module")
def crossing(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = stage(data, tmp_path_factory.mktemp("crossing"), apart=False)
    train(found)
    return found


def halfway(whole: Path, folder: Path) -> Path:
    """Return a copy of a stage as it was when half of it was trained."""
    shutil.copytree(whole.parent, folder)
    checkpoints = folder / "checkpoints"
    shutil.rmtree(checkpoints / f"iter_{STEPS:07d}")
    (checkpoints / "latest_checkpointed_iteration.txt").write_text(str(STEPS // 2))
    return folder / "stage.yaml"


def test_it_is_taken_up_to_the_same_bits(whole: Path, tmp_path: Path) -> None:
    parts = halfway(whole, tmp_path / "parts")
    train(parts)
    assert saved(parts, STEPS) == saved(whole, STEPS)


def test_two_tensor_ranks_take_the_steps_of_one(whole: Path, tmp_path: Path) -> None:
    two = halfway(whole, tmp_path / "two")
    write_stage(two.parent, {**yaml.safe_load(two.read_text()), "layout": {"tp": 2}})
    train(two)
    pairs = list(zip(metrics(whole), metrics(two), strict=True))[STEPS // 2 :]
    for one, other in pairs:
        for name in ("loss", "language_loss", "teacher_loss"):
            assert other[name] == pytest.approx(one[name], rel=2e-6), one["step"]
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=2e-5), one["step"]


def test_it_is_the_language_signal_that_changes(whole: Path, crossing: Path) -> None:
    """The negative control: with the same fresh weights, texts that see each other are others."""
    first, other = metrics(whole)[0], metrics(crossing)[0]
    assert other["teacher_loss"] == pytest.approx(first["teacher_loss"], rel=1e-6)
    assert other["language_loss"] != pytest.approx(first["language_loss"], rel=1e-4)


def test_a_later_stage_may_begin_with_it(data: Path, crossing: Path, tmp_path: Path) -> None:
    """From where the one before left its corpora."""
    content = stage_data(data, data={"document_attention": True, "differs": True})
    content["checkpoint"] = {"load": str(crossing.parent / "checkpoints")}
    content["training"]["steps"] = 1
    later = write_stage(tmp_path, content)
    train(later)
    state = read_training_state(later.parent / "checkpoints" / f"iter_{STEPS + 1:07d}")
    assert state is not None
    first, second = state.carried.readings
    begins = [each.begin for each in second.corpora]
    assert begins == [each.end for each in first.corpora]
    assert min(begins) > 0
