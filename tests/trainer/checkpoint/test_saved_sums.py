"""What a run saves is listed with its sums, so that a bit that rots in it is found."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from commands import flmgrow, refused
from stage_runs import make_data, stage_data, train, write_stage
from trained_here import small, trained_in

from flmgrow.storage.content_sum import with_sum

ITERATION = "iter_0000001"
STATE = "flmgrow_training.json"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def saved(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints of a stage of one step, in torch_dist."""
    folder = tmp_path_factory.mktemp("stage")
    content = small(data, training={"steps": 1}, checkpoint={"format": "torch_dist"})
    trained_in(folder, content)
    return folder / "checkpoints"


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copied"))


def files_of(checkpoints: Path) -> set[str]:
    folder = checkpoints / ITERATION
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def listed(checkpoints: Path) -> list[str]:
    state = json.loads((checkpoints / ITERATION / STATE).read_text())
    return [each["path"] for each in state["files"]]


def test_every_file_is_listed_and_proven(saved: Path) -> None:
    assert set(listed(saved)) == files_of(saved) - {STATE}
    outcome = flmgrow("verify", "--integrity", saved)
    assert (outcome.code, outcome.out.splitlines()[-1]) == (0, "intact"), outcome
    assert "unproven" not in outcome.out


@pytest.mark.parametrize("of", [".metadata", "metadata.json", "random_states", ".distcp"])
def test_a_bit_that_rots_is_found(copied: Path, of: str) -> None:
    name = next(each for each in sorted(listed(copied)) if of in each)
    path = copied / ITERATION / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    outcome = flmgrow("verify", "--integrity", copied)
    if of in (".metadata", "metadata.json"):  # may be unreadable by now
        assert outcome.code in (1, 3)
    else:
        assert (outcome.code, outcome.out.splitlines()[-1]) == (1, "DAMAGED")
        assert f"DIFFERENT  {ITERATION}/{name}" in outcome.out
    assert flmgrow("verify", copied, copied, "--no-receipt").code in (1, 3)


def test_a_file_that_is_missing_is_found(copied: Path) -> None:
    (copied / ITERATION / "random_states" / "rank_00000.json").unlink()
    outcome = flmgrow("verify", "--integrity", copied)
    assert outcome.code == 1
    (line,) = (each for each in outcome.out.splitlines() if "random_states" in each)
    assert f"missing, {STATE} says" in line


BAD: dict[str, dict[str, Any]] = {
    "is outside the folder": {"path": "../../secret"},
    "xxh3_128": {"xxh3_128": "no sum"},
    "size": {"size": -1},
}


@pytest.mark.parametrize("says", BAD)
def test_a_list_that_cannot_be_is_refused(copied: Path, says: str) -> None:
    path = copied / ITERATION / STATE
    state = json.loads(path.read_text())
    state["files"][0] |= BAD[says]
    path.write_text(json.dumps(with_sum(state)))
    refused(3, f"{STATE}: files.*{says}", "inspect", copied, place=copied)


def test_a_state_of_an_earlier_version_lists_nothing(copied: Path) -> None:
    path = copied / ITERATION / STATE
    state = json.loads(path.read_text())
    del state["files"]
    path.write_text(json.dumps(with_sum({**state, "training_version": 2})))
    outcome = flmgrow("verify", "--integrity", copied)
    assert outcome.code == 9
    assert "no checksum covers it" in outcome.out


@pytest.mark.slow
def test_files_of_all_ranks_are_listed(data: Path, tmp_path: Path) -> None:
    """Data-parallel ranks write nothing but their random states."""
    content = stage_data(
        data, training={"steps": 1}, layout={"tp": 2}, checkpoint={"format": "megatron"}
    )
    train(write_stage(tmp_path, content))
    checkpoints = tmp_path / "checkpoints"
    names = listed(checkpoints)
    assert set(names) == files_of(checkpoints) - {STATE}
    assert {f"random_states/rank_{rank:05d}.json" for rank in range(2)} <= set(names)
    assert flmgrow("verify", "--integrity", checkpoints).code == 0
