"""Checkpoints of Megatron's own FSDP are the models that they are in any other format.

Their names and cuts are those that megatron-core was seen to save (``test_real_fsdp.py``).
"""

import re
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import accepted, flmgrow, refused
from growing import grow_checkpoint, same_bits
from optimizer_states import assert_same, states
from pico_forms import make_form
from pico_fsdp import Boxes, State, make_fsdp, rows_of

from flmgrow.operators.target import Target, parse_methods
from flmgrow.surgery.layout_request import LayoutRequest

CASES: list[Any] = [("llama", 3, 1, "fused"), ("gpt", 5, 2, "local"), ("llama", 2, 2, "local")]
RARE = [pytest.mark.slow, pytest.mark.exhaustive]
CASES += [
    pytest.param(*case, marks=RARE)
    for case in product(["qwen", "tele"], [1, 4], [1, 2], ["fused", "local"])
]
as_dist = partial(grow_checkpoint, file_format="torch_dist")
QKV = "decoder.layers.1.self_attention.linear_qkv.weight"
FC1 = "decoder.layers.2.mlp.linear_fc1.weight"
STATE = "optimizer.state.module.module.module."


@pytest.mark.parametrize(("model", "ranks", "tp", "naming"), CASES)
def test_it_is_read_as_the_same_model(
    tmp_path: Path, model: str, ranks: int, tp: int, naming: str
) -> None:
    """Rows are cut through groups of heads, columns where tensor ranks share them."""
    plain = make_form(tmp_path / "a", model, tp)
    assert_same(plain, make_fsdp(tmp_path / "b", model, ranks, tp, naming=naming))


def test_a_group_is_cut() -> None:
    """Or these tests would show nothing of uneven shards."""
    (_, (rows, _)), *_ = rows_of(torch.Size((64, 12)), 3)
    assert rows % 16


def test_it_reshards_and_grows_as_the_same_model(tmp_path: Path) -> None:
    plain, fsdp = make_form(tmp_path / "a", "llama", 1), make_fsdp(tmp_path / "b", "llama")
    target = Target(layers=6, hidden=20, ffn=32, methods=parse_methods("zero"))
    for name, source in (("plain", plain), ("fsdp", fsdp)):
        as_dist(source, tmp_path / f"r-{name}", request=LayoutRequest(2, 2))
        as_dist(source, tmp_path / f"g-{name}", target, LayoutRequest(2, 1))
        grow_checkpoint(
            source, tmp_path / f"l-{name}", request=LayoutRequest(1, 2), file_format="megatron"
        )
    for kind in "rgl":
        assert_same(tmp_path / f"{kind}-plain", tmp_path / f"{kind}-fsdp")
    accepted("verify", fsdp, tmp_path / "g-fsdp")
    accepted("verify", fsdp, tmp_path / "l-fsdp")
    accepted("verify", tmp_path / "r-plain", fsdp)


def test_it_is_told_what_it_is(tmp_path: Path) -> None:
    fsdp = make_fsdp(tmp_path / "a", "llama")
    shown = accepted("inspect", fsdp)
    assert "Megatron (fsdp_dtensor), Transformer Engine names" in shown.out
    assert "weights are stored as the optimizer's, in float32" in shown.err + shown.out
    assert "random number state" in shown.out
    sums = flmgrow("verify", "--integrity", fsdp)
    assert re.findall(r"__0_\d.distcp +CRC32 matches", sums.out)
    assert "DAMAGED" not in sums.out
    accepted("export", fsdp, tmp_path / "c")
    accepted("verify", fsdp, tmp_path / "c")


def test_the_main_weights_can_be_read_as_they_are(tmp_path: Path) -> None:
    fsdp = make_fsdp(tmp_path / "a", "llama")
    wanted = states(fsdp)["master"]
    accepted(
        "reshard", fsdp, tmp_path / "b", "--set-arg", "params_dtype=torch.float32", "--no-optimizer"
    )
    found = states(tmp_path / "b")
    assert list(found) == ["weight"]
    for name, values in wanted.items():
        assert same_bits(found["weight"][name], values)


@pytest.mark.slow
def test_a_float32_run(tmp_path: Path) -> None:
    plain = make_fsdp(tmp_path / "a", "gpt", ranks=1, dtype="float32")
    cut = make_fsdp(tmp_path / "b", "gpt", ranks=4, dtype="float32")
    assert_same(plain, cut)
    for name, values in states(cut)["weight"].items():
        assert same_bits(values, states(cut)["master"][name])


def test_arguments_of_it_stand_for_those_of_another(tmp_path: Path) -> None:
    def without(state: State, boxes: Boxes) -> None:
        del state["args"]

    whole = make_fsdp(tmp_path / "a", "llama")
    root = make_fsdp(tmp_path / "b", "llama", change=without)
    refused(3, "has no args.*they tell num_layers=4", "inspect", root, place=tmp_path)
    accepted("reshard", root, tmp_path / "c", "--args-from", whole)
    found = states(tmp_path / "c")["weight"]
    for name, values in states(whole)["master"].items():  # which dtype it was, arguments say
        assert same_bits(found[name], values)


def test_without_an_optimizer(tmp_path: Path) -> None:
    def bare(state: State, boxes: Boxes) -> None:
        for name in [name for name in state if name.startswith(("optimizer.", "opt_param"))]:
            state.pop(name)
            boxes.pop(name, None)

    root = make_fsdp(tmp_path / "a", "llama", change=bare)
    accepted("reshard", root, tmp_path / "b")
    assert list(states(tmp_path / "b")) == ["weight"]


Change = Callable[[State, Boxes], object]


def drop(name: str) -> Change:
    def change(state: State, boxes: Boxes) -> None:
        del state[name]
        boxes.pop(name, None)

    return change


def put(name: str, value: object) -> Change:
    return lambda state, boxes: state.update({name: value})


def arguments(**given: object) -> Change:
    def change(state: State, boxes: Boxes) -> None:
        for name, value in given.items():
            setattr(state["args"], name, value)

    return change


WEIGHT = torch.zeros(1)
REFUSALS: dict[str, tuple[Change, str]] = {
    "a half": (drop(f"model.module.{FC1}_v"), f"{FC1}_v: not there, though its other half is"),
    "a weight": (drop(f"model.module.{QKV}"), f"{QKV}: not there.*hint: the args"),
    "another prefix": (put("model.decoder.x", WEIGHT), "model.decoder.x: no such parameter"),
    "another parameter": (put("model.module.decoder.x", WEIGHT), "decoder.x: no such parameter"),
    "another object": (put("app.x", {"y": 1}), "app.x.y: an object that flmgrow does not know"),
    "experts": (
        put("model.module.decoder.layers.0.mlp.experts.linear_fc1.weight0_w", WEIGHT),
        "a mixture of experts, which flmgrow does not read",
    ),
    "stages": (arguments(pipeline_model_parallel_size=2), "found 2, wanted 1.*hint: Megatron-FSDP"),
    "torch's FSDP": (arguments(ckpt_format="torch_dcp"), r"torch's FSDP \(--ckpt-format torch_dcp"),
    "both namings": (
        put("model.module.decoder.layers.0.input_layernorm.weight", torch.zeros(12)),
        "found model.module.*layer_norm_weight and model.module.*input_layernorm.weight",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_is_refused(tmp_path: Path, case: str) -> None:
    change, says = REFUSALS[case]
    root = make_fsdp(tmp_path, "llama", change=change)
    refused(3, says, "inspect", root, place=tmp_path)


def without_rows(state: State, boxes: Boxes) -> None:
    boxes[f"model.module.{QKV}"].pop()


def twice(state: State, boxes: Boxes) -> None:
    at, (rows, columns) = boxes[f"model.module.{QKV}"][0]
    boxes[f"model.module.{QKV}"][0] = (at, (rows + 1, columns))


@pytest.mark.parametrize("change", [without_rows, twice])
def test_shards_that_leave_a_hole_or_overlap(
    tmp_path: Path, change: Change, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "torch.distributed.checkpoint.default_planner._validate_global_plan", lambda *_: []
    )
    root = make_fsdp(tmp_path, "llama", change=change)
    refused(3, f"model.module.{QKV}: found .*hint: ", "inspect", root, place=tmp_path)


OPTIMIZER: dict[str, tuple[int, Change, str]] = {
    "another state": (
        2,
        put(f"{STATE}{QKV}.master_param", WEIGHT),
        "master_param: optimizer state of a kind that is not read.*hint: .*--no-optimizer",
    ),
    "a moment": (3, drop(f"{STATE}{QKV}.exp_avg"), f"exp_avg.{QKV}: not there"),
    "a moment's half": (3, drop(f"{STATE}{FC1}_w.exp_avg_sq"), f"{FC1}_w: not there, though"),
    "steps": (
        3,
        put(f"{STATE}{QKV}.step", torch.tensor(29.0)),
        "counts (29|30) steps, wanted (30|29) as optimizer.state",
    ),
}


@pytest.mark.parametrize("case", OPTIMIZER)
def test_states_that_are_refused(tmp_path: Path, case: str) -> None:
    code, change, says = OPTIMIZER[case]
    root = make_fsdp(tmp_path, "llama", change=change)
    accepted("inspect", root)
    refused(code, says, "reshard", root, tmp_path / "out", place=tmp_path)
    accepted("reshard", root, tmp_path / "out", "--no-optimizer")


def test_without_settings_or_a_step(tmp_path: Path) -> None:
    def without(part: str) -> Change:
        def change(state: State, boxes: Boxes) -> None:
            for name in [name for name in state if part in name]:
                del state[name]

        return change

    for part, says in ((".param_to_group_meta.", "has no param_to_"), (".step", "has no step")):
        root = make_fsdp(tmp_path / part, "llama", change=without(part))
        refused(3, f"optimizer: {says}", "reshard", root, tmp_path / "out", place=tmp_path)


def test_a_step_may_be_a_setting(tmp_path: Path) -> None:
    """As with Transformer Engine's Adam, which counts for a param group."""

    def counted(state: State, boxes: Boxes) -> None:
        for name in [name for name in state if name.endswith(".step")]:
            del state[name]
        for name in [name for name in state if name.endswith(".wd_mult")]:
            state[name.replace("wd_mult", "step")] = 30

    a, b = make_fsdp(tmp_path / "a", "llama"), make_fsdp(tmp_path / "b", "llama", change=counted)
    assert_same(a, b)


def test_weights_of_16_bits_are_no_masters(tmp_path: Path) -> None:
    def half(state: State, boxes: Boxes) -> None:
        for name in [name for name in state if name.startswith("model.")]:
            state[name] = state[name].bfloat16()

    root = make_fsdp(tmp_path / "a", "llama", change=half)
    says = "weights of bfloat16 are the optimizer's own.*hint: --no-optimizer"
    refused(2, says, "reshard", root, tmp_path / "out", place=tmp_path)
    accepted("reshard", root, tmp_path / "out", "--no-optimizer")
    found, wanted = states(tmp_path / "out"), states(make_form(tmp_path / "b", "llama", 1))
    for name, values in wanted["weight"].items():
        assert same_bits(found["weight"][name], values)
