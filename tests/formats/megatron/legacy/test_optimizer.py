"""The legacy Adam state: its records find their parameters, and torch takes what is written."""

import copy
from pathlib import Path

import pytest
import torch
from damage import edit_all, rank_files
from growing import grow_checkpoint
from optimizer_states import Content, inner
from pico import CONFIGS, even, make_checkpoint
from torch import Tensor

from flmgrow.formats.layout.placements import Layout
from flmgrow.formats.megatron.legacy.reader import open_megatron
from flmgrow.formats.opening import with_optimizer
from flmgrow.model.axes import full_box
from flmgrow.operators.target import Target, parse_methods
from flmgrow.surgery.layout_request import LayoutRequest


def load(path: Path) -> list[Content]:
    """Every rank's content, as torch reads it."""
    return [torch.load(file, weights_only=False) for file in rank_files(path)]


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
        source, tmp_path / "b", target, LayoutRequest(tp=1, pp=2, vpp=1, pipeline_layers=(3, 2))
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
    grow_checkpoint(tmp_path / "a", tmp_path / "b", request=LayoutRequest(tp=1))
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
    grow_checkpoint(tmp_path / "a", tmp_path / "b", Target(hidden=16), LayoutRequest(tp=2, pp=2))
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
    grow_checkpoint(tmp_path / "a", tmp_path / "b", request=LayoutRequest(tp=1, pp=1))
    (content,) = load(tmp_path / "b")
    model, state = content["model"], inner(content)
    assert [len(group["params"]) for group in state["param_groups"]] == [16, 2, 9]
    for number, key in zip(
        state["param_groups"][1]["params"],
        ("embedding.word_embeddings.weight", "output_layer.weight"),
        strict=True,
    ):
        torch.testing.assert_close(state["state"][number]["exp_avg"], model[key] / 8)
