"""Training only what is new: what is frozen stays bit for bit, and has no optimizer state."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import accepted
from numpy.typing import NDArray
from old_entries import old_entries
from sampling import first
from stage_runs import LARGE, make_data, metrics, saved, train, write_stage
from trained_here import small, trained, trained_in

import flmgrow
from flmgrow.formats.history.fresh import fresh_of
from flmgrow.formats.opening import open_checkpoint, with_optimizer
from flmgrow.model.frozen import FrozenPart, old_axes
from flmgrow.trainer.megatron.held import HeldEntries

Values = dict[str, NDArray[Any]]

DEEP = ("--num-layers", 4, "--method", "zero")
WIDE = ("--ffn-hidden-size", 176, "--num-attention-heads", 6, "--method", "copy")
OUTER = ["embedding", "final_norm.gain", "final_norm.bias"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def before(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a small stage trained."""
    folder = tmp_path_factory.mktemp("before")
    trained_in(folder, small(data, training={"steps": 2}, checkpoint={"every": 2}))
    return folder / "checkpoints"


@pytest.fixture(scope="module")
def deep(before: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("grown") / "deep"
    accepted("expand", before, folder, *DEEP)
    return folder


@pytest.fixture(scope="module")
def wide(before: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("grown") / "wide"
    accepted("expand", before, folder, *WIDE)
    return folder


@pytest.fixture(params=["deep", "wide"])
def start(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(request.param)
    return found


def frozen(
    data: Path, start: Path, steps: int = 2, every: int = 1, **training: Any
) -> dict[str, Any]:
    """Return a stage that begins with ``start``, at a constant rate, with decay."""
    return small(
        data,
        name="large",
        model={},
        training={"steps": steps, "freeze": "old", **training},
        checkpoint={"load": str(start), "every": every},
        optimizer={"weight_decay": 0.1},
        learning_rate={"peak": 3e-3, "style": "constant", "warmup_samples": 0},
    )


def values(path: Path, state: str = "weight") -> Values:
    with flmgrow.open(path) as source:
        return {name: np.array(source.tensor(name, state=state).values) for name in source.tensors}


def moved(one: Values, other: Values, where: dict[str, NDArray[np.bool_]]) -> int:
    """Return how many of these entries differ in any bit."""
    return sum(
        int((one[name].view(np.uint32) != other[name].view(np.uint32))[where[name]].sum())
        for name in one
    )


def states_in(folder: Path) -> dict[str, list[Any]]:
    """Return what is stored beside weights, by the name of the state."""
    with open_checkpoint(folder) as opened:
        whole = with_optimizer(opened)
        assert whole.optimizer is not None
        lags = dict(whole.optimizer.lags)
    return {"absent": sorted({name for (name, _), lag in lags.items() if lag is None})}


def test_old_stays_bit_for_bit_and_all_that_is_fresh_trains(
    data: Path, start: Path, tmp_path: Path
) -> None:
    told = trained_in(tmp_path, frozen(data, start))
    old = old_entries(start)
    at_first, at_last = values(start), values(tmp_path / "checkpoints")
    assert moved(at_first, at_last, old) == 0
    fresh = {name: ~where for name, where in old.items()}
    real = sum(int(where.sum()) for where in fresh.values())
    # Biases of keys shift all scores of a query alike, so that they have no gradient.
    assert moved(at_first, at_last, fresh) > 0.95 * real
    count = sum(int(where.sum()) for where in old.values())
    assert f"training.freeze: {count:,} of " in told


def test_all_that_masks_open_trains_and_nothing_else(
    data: Path, before: Path, tmp_path: Path
) -> None:
    """While a mask is shut nothing moves at all: what is behind it is held, too."""
    start = tmp_path / "start"
    accepted("expand", before, start, *LARGE, "--method", "mask", "--ramp-steps", "1")
    trained_in(tmp_path / "run", frozen(data, start, steps=3))
    saves = [tmp_path / "run" / "checkpoints" / f"iter_{n:07d}" for n in (3, 5)]
    begin, shut, opened = values(start), *(values(each) for each in saves)
    old = old_entries(start)
    assert all(np.array_equal(begin[name], shut[name]) for name in begin)
    assert moved(begin, opened, old) == 0
    fresh = {name: ~where for name, where in old.items()}
    assert moved(begin, opened, fresh) > 0.95 * sum(int(each.sum()) for each in fresh.values())


def test_metrics_say_that_old_stands_still(data: Path, start: Path, tmp_path: Path) -> None:
    trained_in(tmp_path, {**frozen(data, start, steps=1), "log": {"parts": True}})
    (record,) = metrics(tmp_path / "stage.yaml")
    assert record["updates"]["old"] == 0
    assert record["updates"]["fresh"] > 1e-4


def test_without_freezing_old_moves(data: Path, start: Path, tmp_path: Path) -> None:
    """The negative control: that would be seen."""
    trained_in(tmp_path, frozen(data, start, freeze=None))
    old = old_entries(start)
    count = sum(int(where.sum()) for where in old.values())
    assert moved(values(start), values(tmp_path / "checkpoints"), old) > 0.9 * count


def test_decay_alone_would_move_what_is_held(
    data: Path, wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another negative control: without gradients, but not put back."""
    original = HeldEntries.__init__

    def forgetful(self: HeldEntries, *arguments: Any) -> None:
        original(self, *arguments)
        self._frozen = []

    monkeypatch.setattr(HeldEntries, "__init__", forgetful)
    trained_in(tmp_path, frozen(data, wide))
    assert moved(values(wide), values(tmp_path / "checkpoints"), old_entries(wide)) > 0


def test_what_is_frozen_as_a_whole_has_no_state_and_what_is_in_part_has_zeros(
    data: Path, start: Path, tmp_path: Path
) -> None:
    trained_in(tmp_path, frozen(data, start))
    old = old_entries(start)
    whole = {name for name, where in old.items() if where.all()}
    assert {"embedding", "final_norm.gain"} <= whole
    absent = states_in(tmp_path / "checkpoints")["absent"]
    assert whole <= set(absent)
    first, second = (values(tmp_path / "checkpoints", s) for s in ("exp_avg", "exp_avg_sq"))
    for name, where in old.items():
        assert not first[name][where].any(), name
        assert not second[name][where].any(), name
    assert sum(int((found > 0).sum()) for found in second.values()) > 1000
    smaller = (tmp_path / "checkpoints").rglob("*.distcp")
    trained_in(tmp_path / "all", frozen(data, start, freeze=None))
    larger = (tmp_path / "all" / "checkpoints").rglob("*.distcp")
    sizes = [sum(path.stat().st_size for path in found) for found in (smaller, larger)]
    assert sizes[0] < 0.8 * sizes[1]


def test_the_norm_that_clipping_looks_at_is_that_of_what_trains(
    data: Path, wide: Path, tmp_path: Path
) -> None:
    """It is smaller than that of all, and the steps are those of the same gradients."""
    trained_in(tmp_path / "part", frozen(data, wide, steps=1))
    trained_in(tmp_path / "all", frozen(data, wide, steps=1, freeze=None))
    part, everything = (metrics(tmp_path / n / "stage.yaml")[0] for n in ("part", "all"))
    assert part["loss"] == everything["loss"]
    assert 0 < part["grad_norm"] < 0.9 * everything["grad_norm"]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["megatron", "torch_dist"])
def test_states_that_are_missing_stay_so_through_every_conversion(
    data: Path, deep: Path, tmp_path: Path, form: str
) -> None:
    content = frozen(data, deep)
    content["checkpoint"]["format"] = form
    trained_in(tmp_path, content)
    source = tmp_path / "checkpoints"
    other = "torch_dist" if form == "megatron" else "megatron"
    accepted("reshard", source, tmp_path / "a", "--tp", 2, "--pp", 2)
    accepted("reshard", tmp_path / "a", tmp_path / "b", "--format", other)
    accepted("reshard", tmp_path / "b", tmp_path / "c", "--tp", 1, "--pp", 1, "--format", form)
    accepted("verify", tmp_path / "a", tmp_path / "b")
    for name in "abc":
        assert states_in(tmp_path / name) == states_in(source)
        for state in ("exp_avg", "exp_avg_sq"):
            one, two = values(source, state), values(tmp_path / name, state)
            assert all(np.array_equal(one[each], two[each]) for each in one)
    accepted("expand", tmp_path / "b", tmp_path / "grown", "--hidden-size", 48,
             "--num-attention-heads", 6, "--num-layers", 6, "--method", "copy")  # fmt: skip
    accepted("verify", tmp_path / "b", tmp_path / "grown")
    assert states_in(tmp_path / "grown") == states_in(source)
    accepted("expand", tmp_path / "b", tmp_path / "anew", *WIDE, "--optimizer", "reset")
    accepted("verify", tmp_path / "b", tmp_path / "anew")
    assert states_in(tmp_path / "anew") == states_in(source)


def test_a_second_growth_makes_old_what_the_first_one_made(
    data: Path, deep: Path, tmp_path: Path
) -> None:
    trained_in(tmp_path / "one", frozen(data, deep))
    accepted("expand", tmp_path / "one" / "checkpoints", tmp_path / "grown", *WIDE)
    trained_in(tmp_path / "two", {**frozen(data, tmp_path / "grown"), "name": "larger"})
    at_first, at_last = values(tmp_path / "grown"), values(tmp_path / "two" / "checkpoints")
    old = old_entries(tmp_path / "grown")
    assert old["up"].any()
    assert not old["up"].all()
    assert moved(at_first, at_last, old) == 0


def test_what_is_unfrozen_counts_from_zero(data: Path, deep: Path, tmp_path: Path) -> None:
    """Adam's first step moves each entry by the rate, if it is corrected for a first step."""
    content = frozen(data, deep, steps=3, unfreeze_at=2)
    content["optimizer"] = {"weight_decay": 0.0, "clip_grad": 0}
    told = trained_in(tmp_path, content)
    saves = [tmp_path / "checkpoints" / f"iter_{n:07d}" for n in (3, 4, 5)]
    one, two, three = (values(each) for each in saves)
    old = old_entries(deep)
    assert "until step 4" in told
    assert moved(one, two, old) == 0
    steps = np.abs(three["embedding"].astype(np.float64) - two["embedding"])
    read = steps[steps > 0]
    assert len(read) > 100
    assert np.quantile(read, 0.5) == pytest.approx(3e-3, rel=1e-3)
    with open_checkpoint(saves[2]) as opened:
        state = with_optimizer(opened).optimizer
        assert state is not None
        assert state.step_count == 5
        assert state.lags["embedding", None] == 4
        assert ("query", 3) not in state.lags or ("query", 0) not in state.lags


@pytest.mark.parametrize("kept", first(1, [3, 4, 5]))
@pytest.mark.parametrize("form", first(1, ["torch_dist", "megatron"]))
def test_a_kill_before_and_after_unfreezing_changes_no_bit(
    data: Path, wide: Path, tmp_path: Path, kept: int, form: str
) -> None:
    content = frozen(data, wide, steps=4, unfreeze_at=0.5)
    content["checkpoint"]["format"] = form
    trained_in(tmp_path / "whole", content)
    shutil.copytree(tmp_path / "whole", tmp_path / "broken")
    place = tmp_path / "broken" / "checkpoints"
    for number in range(kept + 1, 7):
        shutil.rmtree(place / f"iter_{number:07d}")
    (place / "latest_checkpointed_iteration.txt").write_text(str(kept))
    trained(tmp_path / "broken" / "stage.yaml")
    one, two = (saved(tmp_path / name / "stage.yaml", 6) for name in ("whole", "broken"))
    assert one == two
    state = json.loads(one["flmgrow_training.json"])
    assert {lag["steps"] for lag in state["lags"]} == {4}


@pytest.mark.slow
def test_lags_outlive_a_growth(data: Path, deep: Path, tmp_path: Path) -> None:
    """What began later counts less, also on other ranks, in another format, and larger."""
    trained_in(tmp_path, frozen(data, deep, steps=3, unfreeze_at=2))
    source = tmp_path / "checkpoints"
    accepted("reshard", source, tmp_path / "a", "--format", "megatron", "--tp", 2)
    accepted("expand", tmp_path / "a", tmp_path / "b", "--num-layers", 6, "--method", "copy")
    accepted("verify", tmp_path / "a", tmp_path / "b")
    for folder in (source, tmp_path / "a", tmp_path / "b"):
        with open_checkpoint(folder) as opened:
            state = with_optimizer(opened).optimizer
            assert state is not None
            assert state.step_count == 5
            assert state.lags["embedding", None] == 4
            assert state.lags["query", 0] == 4


LAYOUTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "a stage of a pipeline without anything to train":
        ([{"layers": "0-1"}, {"tensors": OUTER}], {"pp": 2}),
    "the same at the end, and distributed":
        ([{"layers": "2-3"}, {"tensors": OUTER}], {"pp": 2, "distributed_optimizer": True}),
    "tensor ranks": ("old", {"tp": 2, "sequence_parallel": True}),
    "replicas": ("old", {"dp": 2, "distributed_optimizer": True}),
}  # fmt: skip
RUNS: list[Any] = [(name, "float32") for name in LAYOUTS] + [
    pytest.param(name, "bfloat16", marks=() if "distributed" in name else pytest.mark.long)
    for name in LAYOUTS
]


def named_in(weights: Values, rules: list[dict[str, Any]]) -> dict[str, NDArray[np.bool_]]:
    """Return which entries are in the layers of the first rule, or the tensors of the second."""
    first, last = map(int, rules[0]["layers"].split("-"))
    found = {name: np.full(held.shape, name in OUTER) for name, held in weights.items()}
    for name in found.keys() - set(OUTER):
        found[name][first : last + 1] = True
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("name", "precision"), RUNS)
def test_layouts_freeze_the_same(data: Path, deep: Path, wide: Path, tmp_path: Path, name: str,
                                 precision: str) -> None:  # fmt: skip
    rules, layout = LAYOUTS[name]
    begin = wide if rules == "old" else deep
    if precision == "bfloat16":
        accepted("reshard", begin, tmp_path / "half", "--dtype", "bfloat16", "--no-optimizer")
        begin = tmp_path / "half"
    content = frozen(data, begin, freeze=rules, precision=precision)
    trained_in(tmp_path / "one", content)
    train(write_stage(tmp_path / "two", {**content, "layout": layout}))
    one, two = (values(tmp_path / which / "checkpoints") for which in ("one", "two"))
    at_first = values(begin)
    still = old_entries(begin) if rules == "old" else named_in(at_first, rules)
    for each, where in still.items():
        assert np.array_equal(at_first[each][where], two[each][where]), each
        assert np.array_equal(at_first[each][where], one[each][where]), each
        if precision == "float32":  # rounded gradients differ, and Adam's first steps with them
            assert np.abs(one[each] - two[each]).max() < 1e-5
    assert any((two[each] != at_first[each]).any() for each in two)
    ours, theirs = ([m["grad_norm"] for m in metrics(tmp_path / which / "stage.yaml")]
                    for which in ("one", "two"))  # fmt: skip
    if precision == "float32":
        assert theirs == pytest.approx(ours, rel=1e-5)
    else:  # after Adam's first step the weights are no longer the same
        assert theirs[0] == pytest.approx(ours[0], rel=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_what_is_computed_again_still_trains(
    data: Path, deep: Path, tmp_path: Path, recompute: str
) -> None:
    """Below the first layer nothing needs a gradient; megatron-core would then give none to it."""
    rules = [{"layers": "1-3"}, {"tensors": OUTER}]
    trained_in(tmp_path / "one", frozen(data, deep, freeze=rules))
    trained_in(tmp_path / "two", frozen(data, deep, freeze=rules, recompute=recompute))
    one, two = (values(tmp_path / which / "checkpoints") for which in ("one", "two"))
    assert all(np.abs(one[name] - two[name]).max() < 1e-6 for name in one)
    assert not np.array_equal(two["query"][0], values(deep)["query"][0])


def test_a_bias_trains_beside_a_frozen_weight(data: Path, deep: Path, tmp_path: Path) -> None:
    """megatron-core gives it no gradient beside a weight that has none: so that has one, unused."""
    rules = {"tensors": ["query", "key", "value"]}
    trained_in(tmp_path, frozen(data, deep, freeze=rules))
    at_first, at_last = values(deep), values(tmp_path / "checkpoints")
    assert all(np.array_equal(at_first[name], at_last[name]) for name in rules["tensors"])
    moved_ones = at_first["query.bias"] != at_last["query.bias"]
    assert moved_ones.mean() > 0.9
    assert not set(states_in(tmp_path / "checkpoints")["absent"]) & set(rules["tensors"])


def test_old_is_what_has_no_fresh_index(deep: Path) -> None:
    with open_checkpoint(deep) as opened:
        sizes = opened.config.sizes
        part = FrozenPart(old_axes(fresh_of(opened), sizes))
        tensors = opened.reader.tensors
    wanted = old_entries(deep)
    for name, where in wanted.items():
        box = tensors[name].box({axis: (0, size) for axis, size in sizes.items()})
        assert np.array_equal(part.entries(tensors[name], box), where)
        assert part.covers(tensors[name], box) == bool(where.all())
        assert part.count(tensors[name], box) == where.sum()


def test_old_is_refused_where_nothing_is_new(data: Path, before: Path, tmp_path: Path) -> None:
    said = trained_in(tmp_path, frozen(data, before), expect=2)
    assert "nothing says what is new: the model has not grown" in said
