"""What a growth in memory made trains alone: masks open meanwhile, and a later growth makes it old.

Compared with stop, expand and start is all that the last checkpoint holds, as in ``test_in_place``;
and what was there before the growth is followed from checkpoint to checkpoint.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from in_place import AT, END, MASK, assert_same, between, history, stages, weights
from numpy.typing import NDArray
from old_entries import old_entries
from stage_runs import make_data, write_stage
from trained_here import trained

import flmgrow

Values = dict[str, NDArray[Any]]

UNFROZEN: dict[str, Any] = {"freeze": "old", "unfreeze_at": 2}
EACH: dict[str, Any] = {"every": 1}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


def values(stage: Path, iteration: int) -> Values:
    folder = stage.parent / "checkpoints" / f"iter_{iteration:07d}"
    with flmgrow.open(folder) as source:
        return {name: np.array(source.tensor(name).values) for name in source.tensors}


def opened(stage: Path, iteration: int) -> dict[str, float]:
    """Return the values of the masks of a checkpoint that are not open yet."""
    return {name: mask["value"] for name, mask in history(stage, iteration)["masks"].items()}


def assert_old_is(before: Values, after: Values, old: dict[str, NDArray[np.bool_]]) -> None:
    """Insist that what is ``old`` in a grown model is all that there was, to the last bit."""
    for name, known in before.items():
        assert np.array_equal(after[name][old[name]], known.reshape(-1)), name


@pytest.fixture(scope="module")
def masked(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A stage that grows by masks, which open while its old part is frozen for two steps."""
    folder = tmp_path_factory.mktemp("masked")
    pair = stages(data, folder, MASK, large_training=UNFROZEN, checkpoint=EACH)
    told = trained(pair[1])
    assert "do not train, until step 6; " in told
    assert told.count("grown in memory") == 1
    return pair


@pytest.mark.slow
def test_masks_open_over_what_is_frozen_as_over_the_disk(
    masked: tuple[Path, Path], tmp_path: Path
) -> None:
    first, second = masked
    assert_same(second, between(first, second, tmp_path))
    grown, last = values(second, AT + 2), values(second, END)
    old = old_entries(second.parent / "checkpoints")
    assert_old_is(values(first, AT), grown, old)
    assert opened(second, AT + 1) == pytest.approx(
        dict.fromkeys(("depth", "heads", "width"), 1 / 3)
    )
    early = values(second, AT + 1)
    assert any((early[name] != grown[name]).any() for name in grown)
    assert all((last[name] != grown[name])[old[name]].any() for name in ("query", "embedding"))


@pytest.mark.slow
@pytest.mark.parametrize("kept", [AT + 1, AT + 2])
def test_a_kill_before_and_after_unfreezing_changes_no_bit(
    masked: tuple[Path, Path], tmp_path: Path, kept: int
) -> None:
    """With masks half open, and the parameters that are new to the optimizer among them."""
    _, second = masked
    again = Path(shutil.copytree(second.parent, tmp_path / "large")) / "stage.yaml"
    content = yaml.safe_load(second.read_text())
    write_stage(again.parent, content)
    place = again.parent / "checkpoints"
    for number in range(kept + 1, END + 1):
        shutil.rmtree(place / f"iter_{number:07d}")
    (place / "latest_checkpointed_iteration.txt").write_text(f"{kept}")
    assert f"goes on from step {kept}" in trained(again)
    assert weights(again, END) == weights(second, END)
    assert history(again, END) == history(second, END)


@pytest.mark.slow
@pytest.mark.long
def test_masks_open_in_turn_over_what_is_frozen(data: Path, tmp_path: Path) -> None:
    """What is frozen begins to train in the second of four turns; kills in each change no bit."""
    growth = {**MASK, "ffn_hidden_size": 176, "ramp_steps": 2}
    training = {"freeze": "old", "unfreeze_at": 3, "steps": 9}
    end = AT + 9
    first, second = stages(
        data, tmp_path / "here", growth, large_training=training, checkpoint=EACH,
        masks={"in_turn": True},
    )  # fmt: skip
    trained(second)
    assert opened(second, AT + 3) == {"ffn": 0.5, "heads": 0.0, "width": 0.0}
    assert_same(second, between(first, second, tmp_path / "between"), end)
    for kept in (AT + 1, AT + 3, AT + 4, AT + 7):
        again = Path(shutil.copytree(second.parent, tmp_path / f"{kept}")) / "stage.yaml"
        for number in range(kept + 1, end + 1):
            shutil.rmtree(again.parent / "checkpoints" / f"iter_{number:07d}")
        (again.parent / "checkpoints" / "latest_checkpointed_iteration.txt").write_text(f"{kept}")
        trained(again)
        assert weights(again, end) == weights(second, end), kept


@pytest.fixture(scope="module")
def twice(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A stage that grows by masks and trains the new part, and one that grows out of its middle."""
    folder = tmp_path_factory.mktemp("twice")
    growth = {**MASK, "ramp_steps": 2}
    long: dict[str, Any] = {"freeze": "old", "steps": 4}
    _, wide = stages(data, folder / "one", growth, large_training=long, checkpoint=EACH)
    (folder / "deep.yaml").write_text(yaml.safe_dump({"num_layers": 4, "method": "zero"}))
    content = yaml.safe_load(wide.read_text()) | {"name": "deep"}
    content["training"] |= {"freeze": "old", "steps": 2}
    content["growth"] = {"after": str(wide), "to": str(folder / "deep.yaml"), "at": AT + 2}
    deep = write_stage(folder / "two" / "deep", content)
    assert trained(deep).count("grown in memory") == 2
    return wide, deep


@pytest.mark.slow
def test_a_second_growth_freezes_what_the_first_one_made(twice: tuple[Path, Path]) -> None:
    """What trained alone until then stands still from there on."""
    wide, deep = twice
    grown, last = values(wide, AT + 2), values(deep, AT + 4)
    made = old_entries(wide.parent / "checkpoints" / f"iter_{AT + 2:07d}")
    assert sum(int((~found).sum()) for found in made.values()) > 10_000
    old = old_entries(deep.parent / "checkpoints")
    assert_old_is(grown, last, old)
    assert history(deep, AT + 4)["fresh"].keys() == {"layer"}
    assert last["query"].shape[0] == grown["query"].shape[0] + 1
    first = values(deep, AT + 3)
    assert all((first[name] != last[name])[~old[name]].any() for name in ("query", "up"))


@pytest.mark.slow
def test_the_bits_of_a_second_growth_are_those_of_expand(
    twice: tuple[Path, Path], tmp_path: Path
) -> None:
    wide, deep = twice
    assert_same(deep, between(wide, deep, tmp_path), AT + 4)
