"""A model that grows in memory goes on as one that stopped, was expanded, and started again."""

import re
from pathlib import Path
from typing import Any

import pytest
from commands import flmgrow
from in_place import END, MASK, WIDE, assert_same, between, stages, weights
from sampling import first
from stage_runs import make_data
from trained_here import trained

from flmgrow.errors import StorageError, UsageError
from flmgrow.growing.in_place import GrowthInPlace
from flmgrow.trainer.checkpoint.saving import Saving
from flmgrow.trainer.metrics.log import read_metrics
from flmgrow.trainer.metrics.records import MemoryGrowthRecord
from flmgrow.trainer.stage.file import read_stage
from flmgrow.trainer.training import train as train_alone

GROWTHS: dict[str, dict[str, Any]] = {
    "mask": MASK,
    "copy": {**WIDE, "method": "copy", "seed": 3, "hidden_size": 64},
    "zero": {"num_layers": 4, "ffn_hidden_size": 192, "method": "zero", "seed": 3},
    "reset": {**MASK, "optimizer": "reset"},
    "all at once": {
        "num_layers": 4,
        "hidden_size": 64,
        "ffn_hidden_size": 192,
        "num_attention_heads": 6,
        "vocab_size": 300,
        "method": {"width": "copy", "ffn": "zero", "heads": "mask", "depth": "copy"},
        "depth_placement": "interleave",
        "new_layers": "random",
        "untie": True,
        "fresh_second_moment": "mean",
        "seed": 9,
    },
}
OFTEN, *RARE = GROWTHS


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a large stage that was trained after its model grew by masks."""
    _, second = stages(data, tmp_path_factory.mktemp("undisturbed"), MASK)
    assert "has grown out of small at step 4" in trained(second)
    return second


@pytest.mark.parametrize("name", [OFTEN, *(pytest.param(n, marks=pytest.mark.slow) for n in RARE)])
def test_the_bits_are_those_of_expand(data: Path, tmp_path: Path, name: str) -> None:
    first, second = stages(data, tmp_path / "here", GROWTHS[name])
    trained(second)
    grown = grown_as(second)
    adds_ids = "vocab_size" in GROWTHS[name]  # which take a share of every softmax
    assert (grown.loss_after == pytest.approx(grown.loss_before, abs=1e-5)) != adds_ids
    assert_same(second, between(first, second, tmp_path / "between"))


@pytest.mark.slow
def test_what_is_frozen_grows_as_over_the_disk(data: Path, tmp_path: Path) -> None:
    rules = [{"layers": 0}, {"tensors": "embedding"}, {"layers": 1, "axes": {"ffn": "0-63"}}]
    training: dict[str, Any] = {"freeze": rules}
    first, second = stages(data, tmp_path / "here", GROWTHS["zero"], training=training)
    assert "training.freeze: " in trained(second)
    assert_same(second, between(first, second, tmp_path / "between"))


def test_another_seed_draws_other_values(data: Path, tmp_path: Path, undisturbed: Path) -> None:
    """So equal bits are no matter of course."""
    _, second = stages(data, tmp_path, {**MASK, "seed": 4})
    trained(second)
    assert weights(second, END) != weights(undisturbed, END)


@pytest.mark.slow
def test_a_stage_is_left_where_its_model_shall_grow(data: Path, tmp_path: Path) -> None:
    """The learning rate of the small stage falls towards its own end all the same."""
    early: dict[str, Any] = {"checkpoint": {"every": 2}, "place": {"at": 2}}
    first, second = stages(data, tmp_path / "here", MASK, **early)
    trained(second)
    assert_same(second, between(first, second, tmp_path / "between"), END - 2)


@pytest.mark.parametrize("when", first(1, ["growth", "the small one saves", "the large one saves"]))
def test_a_run_that_broke_off_takes_the_same_steps(
    data: Path, tmp_path: Path, undisturbed: Path, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, second = stages(data, tmp_path, MASK)
    save = Saving.save

    def broken(*_: object) -> None:
        raise StorageError("no space left", "free some")

    def save_but_large(saving: Saving, state: Any, *rest: Any) -> Any:
        if state.iteration == END:
            raise StorageError("no space left", "free some")
        return save(saving, state, *rest)

    with monkeypatch.context() as patch:
        if when == "growth":
            patch.setattr(GrowthInPlace, "grow", broken)
        else:
            patch.setattr(Saving, "save", broken if "small" in when else save_but_large)
        trained(second, StorageError.exit_code)
    trained(second)
    assert_same(second, undisturbed)


def grown_as(stage: Path) -> MemoryGrowthRecord:
    """Return what metrics say of a growth."""
    first, *rest = read_metrics(stage.parent / "metrics.jsonl")
    assert isinstance(first, MemoryGrowthRecord)
    assert not any(isinstance(record, MemoryGrowthRecord) for record in rest)
    return first


def test_metrics_say_that_it_grew(undisturbed: Path) -> None:
    grown = grown_as(undisturbed)
    assert (grown.step, grown.stage, grown.stage_before) == (5, "large", "small")
    assert grown.methods == dict.fromkeys(("depth", "heads", "width"), "mask")
    assert 0 < grown.parameters_before < grown.parameters
    assert grown.loss_before is not None
    assert grown.loss_after == pytest.approx(grown.loss_before, abs=1e-5)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "other ranks": ({"large_layout": {"tp": 2}}, "tp: is 2, after 1 .*stays on its ranks"),
    "beyond the end": ({"place": {"at": 5}}, "growth.at: is 5, the stage small ends at 4"),
    "no such size": ({"growth": {"hidden_size": 16}}, "hidden"),
    "another layout": ({"growth": {**MASK, "tp": 2}}, "growth.to: tp is 2, in the stage 1"),
    "both begins": ({"checkpoint": {"load": "x"}}, "either growth or checkpoint.load"),
}


def test_what_trains_a_stage_alone_does_not_grow_it(data: Path, tmp_path: Path) -> None:
    _, second = stages(data, tmp_path, MASK)
    with pytest.raises(UsageError, match="knows no growth") as refused:
        train_alone(read_stage(second), second)
    assert "-m flmgrow.growing" in refused.value.hint
    search = tmp_path / "search.yaml"
    search.write_text(f"stage: {second}\ngrid: {{learning_rate.peak: [1.0e-3]}}\n")
    done = flmgrow("search", search, "--out", tmp_path / "out")
    assert (done.code, "growth: each trial" in done.err) == (2, True)


def told_by(stage: Path) -> str:
    """Return what a stage that is refused is told, be it before or after the ranks have met."""
    try:
        return trained(stage, UsageError.exit_code)
    except UsageError as error:
        return str(error)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_grow_in_place_is_refused_before_the_first_step(
    data: Path, tmp_path: Path, name: str
) -> None:
    changes, message = REFUSED[name]
    first, second = stages(data, tmp_path, **{"growth": MASK, **changes})
    assert re.search(message, told_by(second))
    assert not (first.parent / "checkpoints").exists()
