"""How far a step moves old and fresh parameters, held against a hand's computation."""

import shutil
from collections.abc import Sequence
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import accepted
from hypothesis import given
from hypothesis import strategies as st
from sampling import first
from stage_runs import LARGE, make_data, metrics, train, write_stage
from trained_here import MODEL, small, trained, trained_in

import flmgrow
from flmgrow.formats.history.fresh import fresh_indices, fresh_of
from flmgrow.formats.history.training_state import read_training_state
from flmgrow.formats.opening import open_checkpoint
from flmgrow.model.axes import Axis
from flmgrow.trainer.megatron.updates import UpdateRatios, update_ratios

BIG = {
    **MODEL,
    "num_layers": 4,
    "hidden_size": 48,
    "ffn_hidden_size": 176,
    "num_attention_heads": 6,
}
LAYOUTS: dict[str, dict[str, Any]] = {
    "tp2": {"tp": 2},
    "pp2": {"pp": 2},
    "dp2 distributed": {"dp": 2, "distributed_optimizer": True},
    "dp2": {"dp": 2},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def before(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a small stage trained."""
    folder = tmp_path_factory.mktemp("before")
    trained_in(folder, small(data, training={"steps": 2}, checkpoint={"every": 2}))
    return folder / "checkpoints"


@pytest.fixture(scope="module", params=["mask", "copy"])
def start(
    before: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Path:
    """What that has grown into; a copy splits hidden channels, heads and layers."""
    folder = tmp_path_factory.mktemp("grown") / "start"
    accepted("expand", before, folder, *LARGE, "--method", request.param)
    return folder


def large(
    data: Path, start: Path, steps: int = 2, precision: str = "float32", **layout: Any
) -> dict[str, Any]:
    return small(
        data, name="large", model=BIG, log={"parts": True},
        training={"steps": steps, "precision": precision},
        checkpoint={"load": str(start), "every": 1}, layout=layout,
        learning_rate={"peak": 3e-3, "style": "constant", "warmup_samples": 0},
    )  # fmt: skip


def values(source: flmgrow.Source, name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """What the optimizer changes: masters where there are any, which 16-bit weights have."""
    try:
        found = source.tensor(name, state="master")
    except flmgrow.UsageError:
        found = source.tensor(name)
    return np.asarray(found.values, np.float64)


DIMENSIONS = {
    "width": ["hidden"], "heads": ["kv_group", "query_per_group"], "ffn": ["ffn"],
    "depth": ["layer"],
}  # fmt: skip


def squares(
    one: Path, other: Path, fresh: dict[str, list[int]], among: Sequence[str] | None = None
) -> dict[str, float]:
    """The ratios between two checkpoints, from logical tensors, one index after the other; of those
    ``among`` whose axes is one of these.
    """
    moved, size = {"old": 0.0, "fresh": 0.0}, {"old": 0.0, "fresh": 0.0}
    with flmgrow.open(one) as a, flmgrow.open(other) as b:
        for name in b.tensors:
            new, old = (values(each, name) for each in (b, a))
            is_new = np.zeros(new.shape, bool)
            axes = [str(axis) for axis in b.tensor(name).axes]
            if among is not None and not set(among) & set(axes):
                continue
            for place, axis in enumerate(axes):
                for index in fresh.get(axis, []) if among is None or axis in among else []:
                    is_new[(slice(None),) * place + (index,)] = True
            for part, where in (("old", ~is_new), ("fresh", is_new)):
                moved[part] += float(((new - old) ** 2)[where].sum())
                size[part] += float((new**2)[where].sum())
    return {part: sqrt(moved[part] / size[part]) for part in moved}


@pytest.mark.parametrize("precision", first(1, ["bfloat16", "float32"]))
def test_ratios_are_those_of_the_logical_tensors(
    data: Path, start: Path, tmp_path: Path, precision: str
) -> None:
    trained_in(tmp_path, large(data, start, precision=precision))
    with open_checkpoint(start) as opened:
        fresh = {str(axis): found.tolist() for axis, found in fresh_of(opened).items()}
    assert fresh["hidden"] == list(range(32, 48))
    assert len(fresh["layer"]) == 2
    saved = tmp_path / "checkpoints"
    places = [start, saved / "iter_0000003", saved / "iter_0000004"]
    for record, one, other in zip(
        metrics(tmp_path / "stage.yaml"), places, places[1:], strict=False
    ):
        wanted = squares(one, other, fresh)
        assert record["updates"] == pytest.approx(wanted, rel=1e-5)
        assert wanted["fresh"] != pytest.approx(wanted["old"], rel=1e-3)
        assert list(record["updates_by_dimension"]) == list(DIMENSIONS)
        for dimension, axes in DIMENSIONS.items():
            grown = [axis for axis in axes if axis in fresh]
            ratios = squares(one, other, fresh, grown)
            assert record["updates_by_dimension"][dimension] == pytest.approx(ratios, rel=1e-5)


def test_what_was_fresh_is_known_after_a_resume(data: Path, start: Path, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    trained_in(whole, large(data, start, steps=3))
    shutil.copytree(whole, broken)
    last = broken / "checkpoints" / "iter_0000005"
    shutil.rmtree(last)
    (broken / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("4")
    trained(broken / "stage.yaml")
    told = [[each["updates"] for each in metrics(folder / "stage.yaml")]
            for folder in (whole, broken)]  # fmt: skip
    assert told[0] == told[1]
    state = read_training_state(last)
    assert state is not None
    assert state.fresh[Axis.HIDDEN].tolist() == list(range(32, 48))


def test_a_model_that_never_grew_has_no_fresh_part(data: Path, tmp_path: Path) -> None:
    trained_in(tmp_path, small(data, training={"steps": 2}, log={"parts": True}))
    _, record = metrics(tmp_path / "stage.yaml")
    assert list(record["updates"]) == ["old"]
    assert 0 < record["updates"]["old"] < 0.1


def test_unasked_nothing_is_measured(data: Path, tmp_path: Path) -> None:
    trained_in(tmp_path, small(data, training={"steps": 1}))
    (record,) = metrics(tmp_path / "stage.yaml")
    assert record["updates"] == {}


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
def test_the_layout_makes_no_difference(
    data: Path, before: Path, tmp_path: Path, layout: dict[str, Any]
) -> None:
    start = tmp_path / "start"
    accepted("expand", before, start, *LARGE, "--method", "mask")
    trained_in(tmp_path / "one", large(data, start))
    stage = write_stage(tmp_path / "two", large(data, start, **layout))
    train(stage)
    for one, two in zip(metrics(tmp_path / "one" / "stage.yaml"), metrics(stage), strict=True):
        assert two["updates"] == pytest.approx(one["updates"], rel=1e-4)
        for dimension, ratios in one["updates_by_dimension"].items():
            assert two["updates_by_dimension"][dimension] == pytest.approx(ratios, rel=1e-4)


def runs_of(sources: Sequence[int]) -> list[dict[str, Any]]:
    """Return what a manifest says of an axis whose indices come from these, -1 being fresh."""
    return [
        {"new": [place, place + 1], **({"fresh": True} if old < 0 else {"old": old})}
        for place, old in enumerate(sources)
    ]


@given(st.lists(st.integers(-1, 5), max_size=12))
def test_fresh_is_what_has_no_source_or_not_the_first_one(sources: list[int]) -> None:
    wanted = [place for place, old in enumerate(sources) if old < 0 or old in sources[:place]]
    assert fresh_indices(runs_of(sources)).tolist() == wanted


def test_a_run_that_repeats_itself_is_a_copy_from_there_on() -> None:
    runs = [{"new": [0, 4], "old": 0}, {"new": [4, 6], "old": 2}, {"new": [6, 8], "fresh": True}]
    assert fresh_indices(runs).tolist() == [4, 5, 6, 7]


def test_a_part_without_weights_has_no_ratio() -> None:
    names = [("", "old"), ("", "fresh"), ("ffn", "old"), ("ffn", "fresh")]
    found = update_ratios(names, [1.0, 4.0, 0.0, 0.0, 0.0, 1.0, 9.0, 1.0])
    assert found == UpdateRatios({"old": 0.5}, {"ffn": {"old": 0.0, "fresh": 3.0}})
