"""The legacy Adam state: its records find their parameters, and torch takes what is written."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import accepted, refused
from damage import Change, edit, edit_all, rank_files
from growing import grow_checkpoint
from pico import CONFIGS, even, make_checkpoint
from torch import Tensor

from flmgrow.formats.layout import Layout
from flmgrow.formats.megatron import open_megatron
from flmgrow.formats.megatron_optimizer import with_optimizer
from flmgrow.model.axes import full_box
from flmgrow.operators.target import Target, parse_methods
from flmgrow.surgery.plan import LayoutWish

GAIN = "decoder.layers.0.input_layernorm.weight"
Content = dict[str, Any]


def load(path: Path) -> list[Content]:
    """Every rank's content, as torch reads it."""
    return [torch.load(file, weights_only=False) for file in rank_files(path)]


def inner(content: Content) -> Content:
    """Torch's part of a rank's optimizer state."""
    state = content["optimizer"]
    found: Content = state.get("optimizer", state)
    return found


def parameters(content: Content) -> list[Tensor]:
    """A rank's weights in the order of its modules."""
    chunks = [content[key] for key in sorted(content) if key.startswith("model")]
    return [w for chunk in chunks for w in chunk.values() if isinstance(w, Tensor)]


LAYOUTS = {
    "one rank": Layout(1, 1, 1, (4,)),
    "uneven": Layout(2, 2, 1, (1, 3)),
    "virtual": Layout(2, 2, 2, (1, 1, 2, 0)),
    "a rank without layers": Layout(1, 4, 1, (2, 0, 1, 1)),
}


@pytest.mark.parametrize("naming", ["local", "fused"])
@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
@pytest.mark.parametrize("name", ["gpt", "llama"])
def test_every_record_finds_its_parameter(
    name: str, dtype: str, naming: str, tmp_path: Path
) -> None:
    """The factory makes moments from the weights: each must be read as that weight's moment."""
    config = CONFIGS[name]
    for number, layout in enumerate(LAYOUTS.values()):
        path = tmp_path / str(number)
        make_checkpoint(path, config, layout, dtype=dtype, naming=naming, optimizer=True)
        with with_optimizer(open_megatron(path)) as opened:
            readers = opened.readers
            for tensor in opened.reader.tensors:
                box = full_box(opened.reader.shape(tensor))
                found = {str(s): r.read(tensor, box).astype(float) for s, r in readers.items()}
                assert (found["exp_avg"] == found["weight"] / 8).all(), tensor
                assert (found["exp_avg_sq"] == found["weight"] ** 2).all(), tensor
                if dtype == "bfloat16":
                    assert (found["master"] == found["weight"] * (1 + 2**-12)).all(), tensor


@pytest.mark.parametrize("naming", ["local", "fused"])
@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_torch_takes_what_is_written(dtype: str, naming: str, tmp_path: Path) -> None:
    """As Megatron-LM would: parameters in module order, in its two groups, AdamW's own loading."""
    source = tmp_path / "a"
    layout = Layout(2, 2, 1, (1, 3))
    make_checkpoint(source, "gpt", layout, dtype=dtype, naming=naming, optimizer=True)
    target = Target(hidden=16, layers=5, ffn=24, methods=parse_methods("zero"))
    grow_checkpoint(
        source, tmp_path / "b", target, LayoutWish(tp=1, pp=2, vpp=1, pipeline_layers=(3, 2))
    )
    for content in load(tmp_path / "b"):
        model = content["model"]
        weights = {k: torch.nn.Parameter(w.float()) for k, w in model.items() if w is not None}
        plain = [p for k, p in weights.items() if p.ndim == 1 or k.endswith(".bias")]
        matrices = [p for k, p in weights.items() if not (p.ndim == 1 or k.endswith(".bias"))]
        optimizer = torch.optim.AdamW([{"params": matrices}, {"params": plain}])
        optimizer.load_state_dict(copy.deepcopy(inner(content)))
        for parameter in [*matrices, *plain]:
            state = optimizer.state[parameter]
            assert state["exp_avg"].shape == state["exp_avg_sq"].shape == parameter.shape
            assert state["step"] == 30
            parameter.grad = torch.zeros_like(parameter)
        for group in optimizer.param_groups:
            group.update({k: v for k, v in optimizer.defaults.items() if k not in group})
        optimizer.step()
        assert {float(optimizer.state[p]["step"]) for p in [*matrices, *plain]} == {31.0}


def test_steps_are_counted_apart(tmp_path: Path) -> None:
    """Torch counts up in place: steps that shared a storage would run ahead."""
    make_checkpoint(tmp_path / "a", "llama", even(CONFIGS["llama"], 2), optimizer=True)
    grow_checkpoint(tmp_path / "a", tmp_path / "b", wish=LayoutWish(tp=1))
    (content,) = load(tmp_path / "b")
    steps = [entry["step"] for entry in inner(content)["state"].values()]
    assert len({step.untyped_storage().data_ptr() for step in steps}) == len(steps)
    steps[0] += 1
    assert steps[1] == 30


def test_what_lies_beside_is_carried(tmp_path: Path) -> None:
    """The scheduler, a gradient scaler with a tensor in it, and what the groups say."""

    def scale(content: Content) -> None:
        content["optimizer"]["grad_scaler"] = {"scale": torch.tensor([2.0**16]), "tracker": 3}
        for group in inner(content)["param_groups"]:
            group.update(betas=(0.9, 0.95), max_lr=2e-4, is_decoupled_lr=False)

    make_checkpoint(tmp_path / "a", "llama", dtype="bfloat16", optimizer=True)
    edit_all(tmp_path / "a", scale)
    grow_checkpoint(tmp_path / "a", tmp_path / "b", Target(hidden=16), LayoutWish(tp=2, pp=2))
    for content in load(tmp_path / "b"):
        assert content["opt_param_scheduler"] == {"max_lr": 3e-4, "num_steps": 240}
        assert content["optimizer"]["grad_scaler"] == {
            "scale": torch.tensor([2.0**16]),
            "tracker": 3,
        }
        for group, wd_mult in zip(inner(content)["param_groups"], (1.0, 0.0), strict=True):
            assert group.pop("params")
            assert group == {
                "lr": 3e-4, "wd_mult": wd_mult, "betas": (0.9, 0.95), "max_lr": 2e-4,
                "is_decoupled_lr": False,
            }  # fmt: skip


def test_groups_with_a_rate_of_their_own(tmp_path: Path) -> None:
    """With a decoupled rate, embedding and head are in groups of their own."""

    def decouple(content: Content) -> None:
        state = inner(content)
        matrices, plain = state["param_groups"]
        tables = [
            number
            for number, (key, _) in enumerate(
                (k, w) for k, w in content["model"].items() if isinstance(w, Tensor) and w.ndim == 2
            )
            if key.startswith(("embedding.", "output_layer."))
        ]
        own = {**matrices, "is_decoupled_lr": True, "params": tables}
        matrices["params"] = [n for n in matrices["params"] if n not in tables]
        state["param_groups"] = [matrices, own, plain]

    make_checkpoint(tmp_path / "a", "tele", even(CONFIGS["tele"], 2, 2), optimizer=True)
    edit_all(tmp_path / "a", decouple)
    grow_checkpoint(tmp_path / "a", tmp_path / "b", wish=LayoutWish(tp=1, pp=1))
    (content,) = load(tmp_path / "b")
    model, state = content["model"], inner(content)
    assert [len(group["params"]) for group in state["param_groups"]] == [16, 2, 9]
    for number, key in zip(
        state["param_groups"][1]["params"],
        ("embedding.word_embeddings.weight", "output_layer.weight"),
        strict=True,
    ):
        torch.testing.assert_close(state["state"][number]["exp_avg"], model[key] / 8)


# --- refusals


def of_first(change: Change) -> Change:
    """Change the state of a rank's first parameter."""
    return lambda content: change(inner(content)["state"][0])


def shorten(content: Content) -> None:
    inner(content)["param_groups"][0]["params"].pop()


def merge_decay(content: Content) -> None:
    for group in inner(content)["param_groups"]:
        group["wd_mult"] = 1.0


def single_group(content: Content) -> None:
    first, second = inner(content)["param_groups"]
    first["params"] += second["params"]
    inner(content)["param_groups"] = [first]


def set_step(content: Content) -> None:
    inner(content)["state"][3]["step"] += 1


def set_all_steps(content: Content) -> None:
    for entry in inner(content)["state"].values():
        entry["step"] += 1


def drift(content: Content) -> None:
    model = content["model"]
    group = [k for k, w in model.items() if isinstance(w, Tensor) and w.ndim == 1]
    number = inner(content)["param_groups"][1]["params"][group.index(GAIN)]
    inner(content)["state"][number]["exp_avg"][1] += 1


BAD: dict[str, tuple[Change, str]] = {
    "state missing": (
        lambda content: inner(content).pop("state"), "has no state: .*--no-optimizer"
    ),
    "no optimizer": (lambda content: content.pop("optimizer"), "the whole: is no dict, but None"),
    "an entry missing": (lambda content: inner(content)["state"].pop(2), "state of 12 parameters .* 13"),
    "an entry too many": (
        lambda content: inner(content)["state"].update({99: {}}), "state of 14 parameters .* 13"
    ),
    "another entry": (
        lambda content: inner(content)["state"].update({99: inner(content)["state"].pop(1)}),
        "state of .*: is no dict, but None",
    ),
    "a moment missing": (of_first(lambda entry: entry.pop("exp_avg")), "exp_avg of .*None, wanted"),
    "another shape": (
        of_first(lambda entry: entry.update(exp_avg_sq=torch.zeros(3, 3))),
        r"exp_avg_sq of embedding.*: \(3, 3\), wanted \(32, 12\)",
    ),
    "no tensor": (
        of_first(lambda entry: entry.update(exp_avg=[1.0, 2.0])), r"exp_avg of .*\[1.0, 2.0\]"
    ),
    "transposed": (
        of_first(lambda entry: entry.update(exp_avg=torch.zeros(12, 32).T)), "is not contiguous"
    ),
    "two dtypes": (
        of_first(lambda entry: entry.update(exp_avg=entry["exp_avg"].float())),
        "dtype float32, elsewhere float64",
    ),
    "whole numbers": (
        of_first(lambda entry: entry.update(exp_avg=torch.zeros(32, 12, dtype=torch.int64))),
        "dtype int64",
    ),
    "another optimizer's state": (
        of_first(lambda entry: entry.update(max_exp_avg_sq=entry["exp_avg"])),
        "max_exp_avg_sq of embedding.*flmgrow does not know what it is",
    ),
    "another part": (
        lambda content: inner(content).update(extra=torch.zeros(2)),
        "extra: flmgrow does not know what it is",
    ),
    "a parameter too few": (shorten, "a param group has 8 parameters, wanted 9"),
    "a number twice": (
        lambda content: inner(content)["param_groups"][0]["params"].__setitem__(1, 0),
        "13 parameters for 12 numbers, wanted 13",
    ),
    "numbers that are none": (
        lambda content: inner(content)["param_groups"][0]["params"].__setitem__(1, [2]),
        "a param group numbers them",
    ),
    "no numbers": (
        lambda content: inner(content)["param_groups"][0].pop("params"), "has no parameters"
    ),
    "unknown groups": (merge_decay, "fits 2 of the optimizer's 2 param groups"),
    "no groups": (lambda content: inner(content).pop("param_groups"), "has no param_groups"),
    "a group that is none": (
        lambda content: inner(content).update(param_groups=[3]), "param group: is no dict, but 3"
    ),
    "a list": (lambda content: inner(content).update(state=[1]), r"state: is no dict, but \[1\]"),
    "one step ahead": (set_step, "2 different step counts"),
    "steps that differ between ranks": (set_all_steps, "another step count than .*mp_rank_00_000"),
    "other groups": (single_group, "param groups are unlike those of .*mp_rank_00_000"),
    "another rate": (
        lambda content: inner(content)["param_groups"][0].update(lr=1.0),
        "param groups are unlike those of .*mp_rank_00_000",
    ),
    "moments that drifted": (
        drift, r"layers.0.input_layernorm.*exp_avg of 1 of 12 entries differ, by up to 1\b"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("change", "says"), BAD.values(), ids=BAD)
def test_a_state_that_does_not_fit_is_refused(change: Change, says: str, tmp_path: Path) -> None:
    """Damage in the third of four ranks is found, named, and nothing is written."""
    config = CONFIGS["llama"]
    source = make_checkpoint(tmp_path / "a", config, even(config, 2, 2), optimizer=True)
    edit(rank_files(source)[2], change)
    pattern = f"mp_rank_01_000/model_optim_rng.pt.*{says}"
    refused(3, pattern, "reshard", source, tmp_path / "b", "--tp", 1, place=tmp_path)
    accepted("reshard", source, tmp_path / "b", "--tp", 1, "--no-optimizer")


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["optimizer"].pop("fp32_from_fp16_params"),
        lambda content: content["optimizer"].update(fp32_from_fp16_params=None),
        lambda content: content["optimizer"].update(fp32_from_fp16_params=[3, 4]),
        lambda content: content["optimizer"]["fp32_from_fp16_params"].pop(),
        lambda content: content["optimizer"]["fp32_from_fp16_params"][1].pop(),
        lambda content: content["optimizer"]["fp32_from_fp16_params"][0].insert(0, torch.ones(1)),
        lambda content: content["optimizer"]["fp32_from_fp16_params"][0].reverse(),
    ],
)
def test_masters_that_do_not_fit_are_refused(change: Change, tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "a", "llama", dtype="bfloat16", optimizer=True)
    edit(rank_files(source)[0], change)
    pattern = "mp_rank_00/model_optim_rng.pt: optimizer: (fp32_from_fp16_params|master of)"
    refused(3, pattern, "reshard", source, tmp_path / "b", "--tp", 2, place=tmp_path)


def test_a_state_of_several_dtypes_is_refused(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "a", "tele", optimizer=True)
    edit_all(source, of_first(lambda entry: entry.update(exp_avg=entry["exp_avg"].float())))
    says = "mp_rank_00/.*exp_avg is float64, that of .*word_embeddings.weight is float32"
    refused(3, says, "reshard", source, tmp_path / "b", "--tp", 2, place=tmp_path)


def test_a_state_on_some_ranks_alone_is_not_dropped_in_silence(tmp_path: Path) -> None:
    config = CONFIGS["llama"]
    source = make_checkpoint(tmp_path / "a", config, even(config, 2), optimizer=True)
    edit(rank_files(source)[0], lambda content: content.pop("optimizer"))
    says = "mp_rank_00/.*optimizer: the whole: is no dict"
    refused(3, says, "reshard", source, tmp_path / "b", "--tp", 1, place=tmp_path)


@pytest.mark.parametrize(("stored", "wanted"), [("bfloat16", "float32"), ("float64", "bfloat16")])
def test_a_cast_must_not_part_weights_and_masters(stored: str, wanted: str, tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "a", "llama", dtype=stored, optimizer=True)
    command = ("reshard", source, tmp_path / "b", "--dtype", wanted)
    says = f"--dtype {wanted}: the optimizer state of {stored} weights .*--no-optimizer"
    refused(2, says, *command, place=tmp_path)
    accepted(*command, "--no-optimizer")
