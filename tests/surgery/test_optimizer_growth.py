"""What a growth does to Adam's moments and to masters, by hand and element by element."""

from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from commands import accepted
from growing import grow_checkpoint, same_bits
from optimizer_states import optimizers, states
from pico import CONFIGS, make_checkpoint

from flmgrow.operators.choices import Moments
from flmgrow.operators.target import Target, parse_methods
from flmgrow.surgery.layout_request import LayoutRequest

MOMENTS = ("exp_avg", "exp_avg_sq")


def test_copied_width_halves_and_quarters(tmp_path: Path) -> None:
    """By hand, for width x2 and a separate head: writers get half the gradient, readers all."""
    make_checkpoint(tmp_path / "a", "tele", optimizer=True)
    target = Target(hidden=24, methods=parse_methods("copy"))
    grow_checkpoint(tmp_path / "a", tmp_path / "b", target)
    old, new = states(tmp_path / "a"), states(tmp_path / "b")
    writers = {"embedding": 1, "attention_out": 1, "down": 1}
    gains = {"attention_norm.gain": 1, "ffn_norm.gain": 1, "final_norm.gain": 0}
    readers = {"query": -1, "key": -1, "value": -1, "gate": -1, "up": -1, "head": -1}
    for share, tensors in ((0.5, writers | gains), (1.0, readers)):
        for name, axis in tensors.items():
            for state, factor in (("exp_avg", share), ("exp_avg_sq", share**2)):
                twice = np.concatenate([old[state][name] * factor] * 2, axis)
                assert same_bits(new[state][name], twice), (state, name)


def test_tied_width_halves_what_the_final_norm_carries(tmp_path: Path) -> None:
    """A tied table is not scaled; the final gain is halved for it, and its gradient is the old."""
    make_checkpoint(tmp_path / "a", "llama", optimizer=True)
    grow_checkpoint(
        tmp_path / "a", tmp_path / "b", Target(hidden=24, methods=parse_methods("copy"))
    )
    old, new = states(tmp_path / "a"), states(tmp_path / "b")
    for name, share in (("embedding", 0.5), ("final_norm.gain", 1.0), ("ffn_norm.gain", 0.5)):
        for state, factor in (("exp_avg", share), ("exp_avg_sq", share**2)):
            grown = np.concatenate([old[state][name] * factor] * 2, -1)
            np.testing.assert_allclose(new[state][name], grown, rtol=1e-15)


@pytest.mark.parametrize("method", ["mask", "zero", "copy"])
def test_fresh_units_and_layers_start_at_zero(method: str, tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "a", "tele", optimizer=True)
    depth = method if method != "copy" else "zero"
    target = Target(layers=6, ffn=33, methods=parse_methods(f"ffn={method},depth={depth}"))
    grow_checkpoint(tmp_path / "a", tmp_path / "b", target)
    old, new = states(tmp_path / "a"), states(tmp_path / "b")
    for state in MOMENTS:
        assert not any(new[state][name][4:].any() for name in ("up", "down", "query"))
        assert same_bits(new[state]["query"][:4], old[state]["query"])
        if method == "copy":
            assert new[state]["up"][:4, 20:].all()
        else:
            assert not new[state]["up"][:4, 20:].any()
            assert same_bits(new[state]["up"][:4, :20], old[state]["up"])


GROWN = Target(layers=6, hidden=24, ffn=32, kv_groups=8, vocab=60, seed=2)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("method", ["mask", "zero", "copy"])
def test_weights_are_one_cast_of_the_grown_masters(method: str, dtype: str, tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "a", "tele", dtype=dtype, optimizer=True)
    before = states(tmp_path / "a")
    assert not same_bits(before["master"]["up"], before["weight"]["up"].astype(np.float32))
    target = replace(GROWN, methods=parse_methods(method))
    grow_checkpoint(tmp_path / "a", tmp_path / "b", target, LayoutRequest(tp=2))
    after = states(tmp_path / "b")
    cast = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16)}[dtype]
    for name, master in after["master"].items():
        assert master.dtype == np.float32
        assert same_bits(after["weight"][name], master.astype(cast)), name


@pytest.mark.parametrize("target", [Target(vocab=60), Target(ffn=30)])
def test_masters_grow_as_float32_weights_do(target: Target, tmp_path: Path) -> None:
    """Growing in 16 bits with masters is growing the float32 model, whose weights they are."""
    config = CONFIGS["tele"]
    make_checkpoint(tmp_path / "a", config, dtype="bfloat16", optimizer=True)
    masters = {n: torch.from_numpy(m.copy()) for n, m in states(tmp_path / "a")["master"].items()}
    cut = {n: m[: config.vocab] if n in ("embedding", "head") else m for n, m in masters.items()}
    make_checkpoint(tmp_path / "wide", config, dtype="float32", weights=cut)
    target = replace(target, methods=parse_methods("zero"))
    for name in ("a", "wide"):
        grow_checkpoint(tmp_path / name, tmp_path / f"{name}-grown", target)
    found, wanted = states(tmp_path / "a-grown"), states(tmp_path / "wide-grown")
    for name, master in found["master"].items():
        rows = target.vocab or config.vocab if name in ("embedding", "head") else None
        assert same_bits(master[:rows], wanted["weight"][name][:rows]), name


def test_baking_casts_the_masters_once(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "a", "tele", dtype="bfloat16", optimizer=True)
    grow_checkpoint(tmp_path / "a", tmp_path / "b", Target(ffn=30))
    accepted("bake", tmp_path / "b", tmp_path / "c", "--value", 0.3)
    found = states(tmp_path / "c")
    assert found["master"]["down"][..., 20:].any()
    for name, master in found["master"].items():
        assert same_bits(found["weight"][name], master.astype(ml_dtypes.bfloat16)), name


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_reset_moments_are_zero_and_count_from_zero(dtype: str, tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "a", "llama", dtype=dtype, optimizer=True)
    for how in (Moments.KEEP, Moments.RESET):
        target = replace(GROWN, methods=parse_methods("zero"), moments=how)
        grow_checkpoint(tmp_path / "a", tmp_path / how, target)
    kept, reset = states(tmp_path / "keep"), states(tmp_path / "reset")
    for state in kept:
        for name, values in reset[state].items():
            assert not values.any() if state in MOMENTS else same_bits(values, kept[state][name])
    for optimizer, _ in optimizers(tmp_path / "reset"):
        entries = optimizer.get("optimizer", optimizer)["state"].values()
        assert {float(entry["step"]) for entry in entries} == {0.0}


def test_asymmetric_moments_stay_with_the_first_copy(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "a", "tele", optimizer=True)
    methods = parse_methods("copy")
    for how in (Moments.KEEP, Moments.ASYMMETRIC):
        target = Target(hidden=24, ffn=40, methods=methods, moments=how)
        grow_checkpoint(tmp_path / "a", tmp_path / how, target)
    kept, lone = states(tmp_path / "keep"), states(tmp_path / "asymmetric")
    for name, weight in kept["weight"].items():
        assert same_bits(lone["weight"][name], weight)
    for state in MOMENTS:
        assert same_bits(lone[state]["down"][:, :12, :20], kept[state]["down"][:, :12, :20])
        assert not lone[state]["down"][:, 12:].any()
        assert not lone[state]["down"][..., 20:].any()
        assert kept[state]["down"].all()


def test_a_reset_that_grows_nothing_is_a_way_to_start_anew(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "a", "llama", optimizer=True)
    accepted("expand", tmp_path / "a", tmp_path / "b", "--tp", 2, "--optimizer", "reset")
    assert not any(m.any() for state in MOMENTS for m in states(tmp_path / "b")[state].values())
