"""The exp_avg_sq of fresh entries: the mean of the old ones beside them, where it is asked for."""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from commands import accepted, flmgrow, refused
from damage import edit_manifest
from growing import SmallBlocks, all_files, grow_checkpoint, same_bits
from growing_arrays import Arrays, grown
from hypothesis import given
from hypothesis import strategies as st
from optimizer_states import optimizers, states
from pico import CONFIGS, even, make_checkpoint
from strategies import Case, as_request, cases, examples

from flmgrow.formats.history.manifest import read_manifest
from flmgrow.formats.megatron.legacy.reader import open_megatron
from flmgrow.model.axes import Box
from flmgrow.model.tensors import logical_tensors
from flmgrow.operators.choices import FreshSecondMoment, Moments
from flmgrow.operators.moments import moment_growth
from flmgrow.operators.target import Target, grow, parse_methods
from flmgrow.surgery import statistics as statistics_module
from flmgrow.surgery.execution import Execution
from flmgrow.surgery.layout_request import LayoutRequest
from flmgrow.surgery.statistics import Statistics
from flmgrow.surgery.verify import Verification, verify

CLOSE = 1e-14


def seconds(
    name: str, methods: str = "mask", power: int = 2, **target: object
) -> tuple[Arrays, Arrays]:
    """A moment of an old model, all of it different, and what it grows to with means asked for."""
    config = CONFIGS[name]
    wanted = Target(
        methods=parse_methods(methods),
        copy_noise=0.0,
        fresh_second_moment=FreshSecondMoment.MEAN,
        **target,  # type: ignore[arg-type]
    )
    growth = grow(config, wanted, config.vocab, wanted.vocab or config.vocab)
    random = np.random.default_rng(1)
    old = {
        name: random.random(tensor.shape(config.sizes)) + 0.5
        for name, tensor in logical_tensors(config).items()
    }
    return old, grown(moment_growth(growth, power), old, shifted=False)


# --- by hand


def test_fresh_columns_rows_and_corners() -> None:
    old, new = seconds("llama", hidden=17, ffn=26)
    up, fresh = old["up"], new["up"]
    assert np.array_equal(fresh[:, :20, :12], up)
    for column in range(12, 17):
        np.testing.assert_allclose(fresh[:, :20, column], up.mean(2), rtol=CLOSE)
    for row in range(20, 26):
        np.testing.assert_allclose(fresh[:, row, :12], up.mean(1), rtol=CLOSE)
    corner = np.broadcast_to(up.mean((1, 2))[:, None, None], (4, 6, 5))
    np.testing.assert_allclose(fresh[:, 20:, 12:], corner, rtol=CLOSE)
    wanted = np.broadcast_to(old["final_norm.gain"].mean(), 5)
    np.testing.assert_allclose(new["final_norm.gain"][12:], wanted, rtol=CLOSE)


def test_fresh_heads_take_the_mean_of_heads() -> None:
    """Queries of their own group, keys and new groups of all groups; places in a head stay."""
    old, new = seconds("llama", kv_groups=5, heads=15)
    query, key, out = old["query"], old["key"], old["attention_out"]
    np.testing.assert_allclose(new["query"][:, :4, 2], query.mean(2), rtol=CLOSE)
    np.testing.assert_allclose(new["query"][:, 4, :2], query.mean(1), rtol=CLOSE)
    np.testing.assert_allclose(new["query"][:, 4, 2], query.mean((1, 2)), rtol=CLOSE)
    np.testing.assert_allclose(new["key"][:, 4], key.mean(1), rtol=CLOSE)
    np.testing.assert_allclose(new["attention_out"][:, :, 4, 2], out.mean((2, 3)), rtol=CLOSE)


@pytest.mark.parametrize("methods", ["mask", "zero"])
@pytest.mark.parametrize("new_layers", ["copy", "random"])
def test_fresh_layers_take_that_of_the_layer_before_them(methods: str, new_layers: str) -> None:
    """Branch writers, too: they start at zero, and have a gradient all the same."""
    old, new = seconds(
        "gpt", methods, layers=6, depth_placement="interleave", new_layers=new_layers
    )
    for name in ("up", "query.bias", "attention_out", "down", "down.bias", "ffn_norm.gain"):
        assert np.array_equal(new[name], old[name][[0, 1, 1, 2, 3, 3]]), name
    _, firsts = seconds("gpt", methods, 1, layers=6, depth_placement="interleave")
    assert not firsts["up"][[2, 5]].any()


def test_the_mean_takes_the_factors_of_what_is_beside_it() -> None:
    """Width x2 and a rest of 7 by copying: writers, gains and the fresh of both get a quarter."""
    old, new = seconds("llama", "copy", hidden=31)
    np.testing.assert_allclose(new["down"][:, :12], old["down"] / 4, rtol=CLOSE)
    for row in range(24, 31):
        np.testing.assert_allclose(new["down"][:, row], old["down"].mean(1) / 4, rtol=CLOSE)
    gain = old["ffn_norm.gain"] / 4 * 31 / 24
    np.testing.assert_allclose(new["ffn_norm.gain"][:, 12:24], gain, rtol=CLOSE)
    np.testing.assert_allclose(new["ffn_norm.gain"][:, 30], gain.mean(1), rtol=CLOSE)


def test_copies_without_moments_keep_the_second() -> None:
    _, kept = seconds("llama", "copy", hidden=24, ffn=33)
    _, lone = seconds("llama", "copy", hidden=24, ffn=33, moments="asymmetric")
    _, firsts = seconds("llama", "copy", 1, hidden=24, ffn=33, moments="asymmetric")
    for name, values in kept.items():
        assert np.array_equal(lone[name], values), name
    assert not firsts["up"][:, 20:].any()
    assert not firsts["up"][..., 12:].any()
    assert firsts["up"][:, :20, :12].all()


def test_behind_a_closed_gate_the_second_moment_stays(tmp_path: Path) -> None:
    """Masks that are baked as they are made: fresh readers are zero and get a gradient."""
    make_checkpoint(tmp_path / "a", "llama", optimizer=True)
    options = ("--ffn-hidden-size", 24, "--bake", "--fresh-second-moment", "mean")
    accepted("expand", tmp_path / "a", tmp_path / "b", *options)
    down = states(tmp_path / "b")["exp_avg_sq"]["down"]
    np.testing.assert_allclose(down[..., 23], down[..., :20].mean(-1), rtol=CLOSE)
    accepted("verify", tmp_path / "a", tmp_path / "b")


def test_the_first_moment_of_fresh_entries_is_zero() -> None:
    _, new = seconds("llama", power=1, hidden=17, ffn=26, kv_groups=5, layers=5, vocab=60)
    assert not new["up"][:, 20:].any()
    assert not new["up"][..., 12:].any()
    assert not new["up"][4].any()
    assert not new["embedding"][51:].any()


@pytest.mark.parametrize("multiple", [8, 64])
def test_fresh_vocabulary_takes_the_mean_of_the_true_one(multiple: int, tmp_path: Path) -> None:
    """However many rows of padding there are, and whatever lies in them."""
    make_checkpoint(tmp_path / "a", "tele", multiple=multiple, optimizer=True)
    target = Target(vocab=60, hidden=20, fresh_second_moment=FreshSecondMoment.MEAN)
    grow_checkpoint(tmp_path / "a", tmp_path / "b", target)
    old, new = (states(tmp_path / path)["exp_avg_sq"] for path in "ab")
    for name in ("embedding", "head"):
        true, table = old[name][:51], new[name]
        for row in range(51, 60):
            np.testing.assert_allclose(table[row, :12], true.mean(0), rtol=CLOSE)
            np.testing.assert_allclose(table[row, 12:], np.full(8, true.mean()), rtol=CLOSE)
        np.testing.assert_allclose(table[:51, 15], true.mean(1), rtol=CLOSE)
        stored = len(old[name])  # what the source has of padding is kept, the rest is zero
        np.testing.assert_array_equal(table[60:stored, :12], old[name][60:])
        assert not table[max(60, stored) :].any()


# --- by nobody's hand


@pytest.mark.parametrize("axis", [0, 1])
def test_means_do_not_depend_on_how_much_is_read_at_once(
    axis: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of axes that are longer than what is summed at once, too."""
    config = replace(CONFIGS["llama"], vocab=300, hidden=300, layers=1)
    make_checkpoint(tmp_path / "a", config)
    found = []
    with open_megatron(tmp_path / "a") as opened:
        whole = Box(((0, 300), (0, 300)))
        for block in (1 << 20, 5000, 301, 7):
            monkeypatch.setattr(statistics_module, "BLOCK", block)
            statistics = Statistics(opened.reader)
            box = Box(((5, 8), (0, 300)) if axis else ((0, 300), (5, 8)))
            found.append(statistics.mean("embedding", box, axis))
            found.append(statistics.mean("embedding", whole, 0, 1))
        table = opened.reader.read("embedding", whole)
    assert all(same_bits(mean, found[i % 2]) for i, mean in enumerate(found))
    wanted = table[5:8].mean(1, keepdims=True) if axis else table[:, 5:8].mean(0, keepdims=True)
    np.testing.assert_allclose(found[0], wanted, atol=1e-16)
    np.testing.assert_allclose(found[1], [[table.mean()]], atol=1e-16)


@pytest.mark.slow
@examples(5)
@given(cases(), st.sampled_from(["keep", "asymmetric"]))
def test_any_growth_into_any_layout_and_blocks(case: Case, how: Moments) -> None:
    """Growing into another layout is growing and then resharding, and verify derives it again."""
    if case.refused:
        return
    target = replace(case.target, moments=how, fresh_second_moment=FreshSecondMoment.MEAN)
    layers = target.layers or case.config.layers
    with TemporaryDirectory() as folder:
        a, one, once, moved = (Path(folder, name) for name in ("a", "one", "once", "moved"))
        make_checkpoint(a, case.config, case.layout, optimizer=True)
        grow_checkpoint(a, moved, request=LayoutRequest(1, 1, 1, (case.config.layers,)))
        grow_checkpoint(moved, one, target, LayoutRequest(1, 1, 1, (layers,)))
        blocks = SmallBlocks(elements=40, workers=2)
        grow_checkpoint(a, once, target, as_request(case.new_layout), blocks)
        wanted, found = states(one), states(once)
        vocab = target.vocab or case.config.vocab
        for state, name in ((kind, name) for kind in found for name in found[kind]):
            rows = vocab if name in ("embedding", "head") else None
            assert same_bits(found[state][name][:rows], wanted[state][name][:rows]), (state, name)
        with open_megatron(a) as source, open_megatron(once) as result:
            checks = {check.name: check for check in verify(source, result, Verification())}
        assert checks["elements"].passed, checks["elements"].detail


def test_workers_and_memory_do_not_change_a_byte(tmp_path: Path) -> None:
    config = CONFIGS["flm"]
    make_checkpoint(tmp_path / "a", config, even(config, 2, 2), dtype="bfloat16", optimizer=True)
    target = Target(
        hidden=31,
        ffn=28,
        heads=12,
        layers=5,
        vocab=60,
        untie=True,
        fresh_second_moment=FreshSecondMoment.MEAN,
    )
    outputs = []
    for number, execution in enumerate((Execution(), SmallBlocks(elements=50, workers=3))):
        out = tmp_path / str(number)
        grow_checkpoint(tmp_path / "a", out, target, LayoutRequest(tp=1, pp=1), execution)
        outputs.append(all_files(out))
    assert outputs[0] == outputs[1]


# --- what it is for


def largest_step(choice: str, beta2: float) -> tuple[float, float]:
    """The largest of 200 updates, in learning rates, of fresh and of old entries.

    Every row has had a constant gradient of its own for so long that both means are full, and its
    fresh entries get the same gradient from now on. torch's own AdamW takes the steps.
    """
    config = CONFIGS["llama"]
    target = Target(hidden=17, fresh_second_moment=choice)  # type: ignore[arg-type]
    growth = grow(config, target, config.vocab, config.vocab)
    rows = torch.rand(4, 20, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    rows = rows + 0.1
    old = {
        power: {
            name: np.zeros(tensor.shape(config.sizes))
            for name, tensor in logical_tensors(config).items()
        }
        | {"up": (rows.numpy() ** power).repeat(12, 2)}
        for power in (1, 2)
    }
    first, second = (
        torch.from_numpy(grown(moment_growth(growth, power), old[power], shifted=False)["up"])
        for power in (1, 2)
    )
    weight = torch.zeros(4, 20, 17, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.AdamW([weight], 1.0, (0.9, beta2), eps=1e-15, weight_decay=0.0)
    adam.state[weight] = {"step": torch.tensor(1e6), "exp_avg": first, "exp_avg_sq": second}
    fresh = settled = 0.0
    for _ in range(200):
        before = weight.detach().clone()
        weight.grad = rows.expand(4, 20, 17).clone()
        adam.step()
        update = (weight.detach() - before).abs()
        fresh = max(fresh, float(update[..., 12:].max()))
        settled = max(settled, float(update[..., :12].max()))
    return fresh, settled


@pytest.mark.parametrize(("beta2", "worst"), [(0.999, 6.57), (0.99, 2.13), (0.95, 1.10)])
def test_no_first_step_is_larger_than_the_learning_rate(beta2: float, worst: float) -> None:
    zero, mean = largest_step("zero", beta2), largest_step("mean", beta2)
    assert zero == pytest.approx((worst, 1.0), rel=5e-3)
    assert mean[0] <= 1.0 + 1e-9
    assert mean == pytest.approx((1.0, 1.0), rel=1e-6)


# --- asking for it


def test_it_is_an_option_a_key_and_on_record(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "a", "llama", optimizer=True)
    (tmp_path / "target.yaml").write_text("hidden_size: 17\nfresh_second_moment: mean\n")
    accepted("expand", tmp_path / "a", tmp_path / "b", "--to", tmp_path / "target.yaml")
    options = ("--hidden-size", 17, "--fresh-second-moment", "mean")
    accepted("expand", tmp_path / "a", tmp_path / "c", *options)
    accepted("expand", tmp_path / "a", tmp_path / "d", "--hidden-size", 17)
    manifest = read_manifest(tmp_path / "b")
    assert manifest is not None
    assert manifest.growth.request["fresh_second_moment"] == "mean"
    by_file, by_option, without = (states(tmp_path / path) for path in "bcd")
    assert same_bits(by_file["exp_avg_sq"]["up"], by_option["exp_avg_sq"]["up"])
    assert by_file["exp_avg_sq"]["up"].all()
    assert not without["exp_avg_sq"]["up"][..., 12:].any()
    ((optimizer, _),) = optimizers(tmp_path / "c")
    assert optimizer["state"][0]["step"] == 30


def say(root: Path, choice: str) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["growth"]["request"]["fresh_second_moment"] = choice

    edit_manifest(root, change)


def test_verify_goes_by_the_manifest(tmp_path: Path) -> None:
    """A choice that is not the one made, or none at all, does not explain the values."""
    make_checkpoint(tmp_path / "a", "llama", optimizer=True)
    options = ("--hidden-size", 17, "--fresh-second-moment", "mean")
    accepted("expand", tmp_path / "a", tmp_path / "b", *options)
    accepted("verify", tmp_path / "a", tmp_path / "b")
    say(tmp_path / "b", "zero")
    outcome = flmgrow("verify", tmp_path / "a", tmp_path / "b")
    assert outcome.code == 1
    assert "exp_avg_sq of" in outcome.out
    say(tmp_path / "b", "drawn")
    outcome = flmgrow("verify", tmp_path / "a", tmp_path / "b")
    assert outcome.code == 3
    assert "growth request is malformed" in outcome.err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--fresh-second-moment median", "wanted zero or mean"),
        ("--fresh-second-moment mean --optimizer reset", "reset makes every moment zero"),
        ("--fresh-second-moment mean --no-optimizer", "--no-optimizer leaves all moments out"),
    ],
)
def test_what_it_cannot_go_with_is_refused(options: str, says: str, tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "a", "llama", optimizer=True)
    command = ("expand", tmp_path / "a", tmp_path / "b", "--hidden-size", 17, *options.split())
    refused(2, says, *command, place=tmp_path)


def test_without_optimizer_state_it_means_nothing(tmp_path: Path) -> None:
    """One target file serves checkpoints with and without."""
    make_checkpoint(tmp_path / "a", "llama")
    options = ("--hidden-size", 17, "--fresh-second-moment", "mean")
    accepted("expand", tmp_path / "a", tmp_path / "b", *options)
    accepted("verify", tmp_path / "a", tmp_path / "b")
