"""Weights and states are the same model in whichever form megatron-core has had for them."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import accepted
from growing import grow_checkpoint
from optimizer_states import assert_same
from pico import CONFIGS
from pico_forms import LAYERS, make_form
from sampling import first

from flmgrow.errors import BadCheckpointError, UsageError
from flmgrow.formats.opening import open_checkpoint, with_optimizer
from flmgrow.operators.target import Target, parse_methods
from flmgrow.surgery.layout_request import LayoutRequest

CASES: list[Any] = [("llama", 2), ("gpt", 2)]
RARE = [pytest.mark.slow, pytest.mark.exhaustive]
CASES += [pytest.param(m, t, marks=RARE) for m, t in product(["qwen", "tele"], [1, 2])]
FORMS = [("plain", "local shards"), ("halves", "halves"), ("local shards", "local shards")]


@pytest.mark.parametrize(("weights", "moments"), FORMS)
@pytest.mark.parametrize(("model", "tp"), CASES)
def test_it_is_read_as_the_same_model(
    tmp_path: Path, model: str, weights: str, moments: str, tp: int
) -> None:
    plain = make_form(tmp_path / "a", model, tp)
    assert_same(plain, make_form(tmp_path / "b", model, tp, weights, moments))


@pytest.mark.parametrize(("weights", "moments"), first(1, FORMS))
def test_it_reshards_and_grows_and_is_written_in_todays_form(
    tmp_path: Path, weights: str, moments: str
) -> None:
    plain = make_form(tmp_path / "a", "llama", 2)
    old = make_form(tmp_path / "b", "llama", 2, weights, moments)
    target = Target(layers=6, hidden=20, ffn=32, methods=parse_methods("zero"))
    for name, source in (("plain", plain), ("old", old)):
        grow_checkpoint(source, tmp_path / f"r-{name}", request=LayoutRequest(1, 2))
        grow_checkpoint(source, tmp_path / f"g-{name}", target, LayoutRequest(2, 2, 1))
        grow_checkpoint(
            source, tmp_path / f"v-{name}", request=LayoutRequest(2, 2, 2), file_format="megatron"
        )
    for kind in "rgv":
        assert_same(tmp_path / f"{kind}-plain", tmp_path / f"{kind}-old")
    accepted("verify", old, tmp_path / "g-old")
    (common,) = (tmp_path / "r-old").rglob("common.pt")
    found = torch.load(common, weights_only=False)
    assert found["optimizer"]["param_state_sharding_type"] == "fully_reshardable"
    assert found["content_metadata"]["distrib_optim_sharding_type"] == "fully_reshardable"
    assert found["content_metadata"]["singleton_local_shards"] is False


def test_arrays_that_torch_saved_whole_are_read(tmp_path: Path) -> None:
    """One chunk for all layers, as a program that saved the arrays anew has it."""
    plain = make_form(tmp_path / "a", "llama", 2)

    def whole(state: dict[str, Any], boxes: dict[str, Any]) -> None:
        boxes.clear()

    assert_same(plain, make_form(tmp_path / "b", "llama", 2, change=whole))
    assert_same(plain, make_form(tmp_path / "c", "llama", 2, "local shards", "local shards", whole))


def refused(root: Path, says: str) -> None:
    with open_checkpoint(root) as opened, pytest.raises(BadCheckpointError, match=says):
        with_optimizer(opened)


NAME = f"optimizer.state.exp_avg.{LAYERS}self_attention.linear_qkv.weight"


def test_shards_through_a_group_or_of_no_parameter_are_refused(tmp_path: Path) -> None:
    groups = CONFIGS["llama"].kv_groups

    def finer(state: dict[str, Any], boxes: dict[str, Any]) -> None:
        layers, cuts, one, size = state[NAME].shape
        times = 2 * groups // cuts
        state[NAME] = state[NAME].reshape(layers, cuts * times, one, size // times)
        del boxes[NAME]

    def short(state: dict[str, Any], boxes: dict[str, Any]) -> None:
        state[NAME] = state[NAME][..., :-1].clone()
        del boxes[NAME]

    says = f"{NAME}: rows or columns .* cut through a kv_group index"
    refused(make_form(tmp_path / "a", "llama", 2, states="local shards", change=finer), says)
    says = f"{NAME}: shape .*, wanted"
    refused(make_form(tmp_path / "b", "llama", 2, states="local shards", change=short), says)


def test_one_half_is_not_both(tmp_path: Path) -> None:
    name = f"{LAYERS}0.mlp.linear_fc1.weight"

    def lone(state: dict[str, Any], boxes: dict[str, Any]) -> None:
        del state[f"{name}_v"], boxes[f"{name}_v"]

    with pytest.raises(BadCheckpointError, match=f"{name}_v: not there, though its other"):
        open_checkpoint(make_form(tmp_path, "llama", 2, "halves", "halves", change=lone))


def test_masters_of_two_kinds_are_refused(tmp_path: Path) -> None:
    def both(state: dict[str, Any], boxes: dict[str, Any]) -> None:
        key = "optimizer.state.param.decoder.final_layernorm.weight"
        state[key] = state[key.replace("param", "fp32_param")].reshape(-1).clone()

    root = make_form(tmp_path, "llama", 2, states="local shards", change=both)
    refused(root, "found param and fp32_param, wanted one of them")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("optimizer.state.momentum_buffer.x", "optimizer state of a kind that is not read"),
        ("chained_0.optimizer.state.exp_avg.x", "one of several optimizers, which are not read"),
    ],
)
def test_states_of_other_optimizers_are_named_or_left_out(
    tmp_path: Path, name: str, says: str
) -> None:
    def add(state: dict[str, Any], boxes: dict[str, Any]) -> None:
        state[name] = torch.zeros(3)

    root = make_form(tmp_path, "llama", 1, change=add)
    with open_checkpoint(root) as opened, pytest.raises(UsageError, match=f"{name}: {says}") as no:
        with_optimizer(opened)
    assert no.value.hint.endswith("no_optimizer=True goes on without")
    accepted("reshard", root, tmp_path / "out", "--no-optimizer")
