"""Adam's param groups stand in whatever order a rank made them in; they are told by what they say.

megatron-core up to 0.15 makes groups as a rank's own parameters come, so that a later pipeline
rank, which begins with a norm, has the one without weight decay first, and a rank without embedding
and head lacks the groups for these.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import permutations
from pathlib import Path

import pytest
import torch
from commands import accepted
from damage import edit, rank_files
from growing import grow_checkpoint
from optimizer_states import Content, inner
from pico import CONFIGS, even, make_checkpoint

from flmgrow.errors import BadCheckpointError
from flmgrow.model.config import Multipliers
from flmgrow.surgery.layout_request import LayoutRequest


def renumber(content: Content, order: tuple[int, ...]) -> None:
    """Put the groups in another order: parameters are numbered, and masters listed, by it."""
    state = inner(content)
    state["param_groups"] = [state["param_groups"][number] for number in order]
    before = [number for group in state["param_groups"] for number in group["params"]]
    state["state"] = {new: state["state"][old] for new, old in enumerate(before)}
    place = {old: new for new, old in enumerate(before)}
    for group in state["param_groups"]:
        group["params"] = [place[number] for number in group["params"]]
    if "fp32_from_fp16_params" in content["optimizer"]:
        masters = content["optimizer"]["fp32_from_fp16_params"]
        content["optimizer"]["fp32_from_fp16_params"] = [masters[number] for number in order]


def decouple(content: Content) -> None:
    """Give embedding and head a group of their own, where a rank has any of them."""
    state = inner(content)
    matrices, plain = state["param_groups"]
    weights = [(k, w) for k, w in content["model"].items() if isinstance(w, torch.Tensor)]
    keys = [k for k, w in weights if w.ndim == 2] + [k for k, w in weights if w.ndim == 1]
    tables = [n for n, key in enumerate(keys) if key.startswith(("embedding.", "output_layer."))]
    own = {**matrices, "is_decoupled_lr": True, "params": tables}
    matrices["params"] = [n for n in matrices["params"] if n not in tables]
    state["param_groups"] = [matrices, own, plain] if tables else [matrices, plain]


def saved_bytes(path: Path) -> list[bytes]:
    return [file.read_bytes() for file in rank_files(path)]


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_the_order_on_a_rank_does_not_matter(dtype: str, tmp_path: Path) -> None:
    config = CONFIGS["llama"]
    source = make_checkpoint(
        tmp_path / "a", config, even(config, 2, 2), dtype=dtype, optimizer=True
    )
    grow_checkpoint(source, tmp_path / "wanted", request=LayoutRequest(tp=1, pp=1))
    for file in rank_files(source)[1:]:
        edit(file, lambda content: renumber(content, (1, 0)))
    grow_checkpoint(source, tmp_path / "b", request=LayoutRequest(tp=1, pp=1))
    assert saved_bytes(tmp_path / "b") == saved_bytes(tmp_path / "wanted")


def test_a_group_that_no_parameter_of_a_rank_is_in_may_lack_there(tmp_path: Path) -> None:
    """In the middle of a pipeline there is no table: three groups on the ends, two between."""
    config = CONFIGS["llama"]
    for number, order in enumerate(permutations(range(3))):
        source = make_checkpoint(
            tmp_path / f"a{number}", config, even(config, 1, 4), optimizer=True
        )
        for file in rank_files(source):
            edit(file, decouple)
        edit(rank_files(source)[0], partial(renumber, order=order))
        edit(rank_files(source)[1], lambda content: renumber(content, (1, 0)))
        grow_checkpoint(source, tmp_path / f"b{number}", request=LayoutRequest(tp=1, pp=1))
        (file,) = rank_files(tmp_path / f"b{number}")
        content = torch.load(file, weights_only=False)
        numbers = {n for group in inner(content)["param_groups"] for n in group["params"]}
        assert len(numbers) == sum(isinstance(w, torch.Tensor) for w in content["model"].values())
        for group in inner(content)["param_groups"]:
            weights = [w for w in content["model"].values() if isinstance(w, torch.Tensor)]
            for n in group["params"]:
                moment = inner(content)["state"][n]["exp_avg"]
                assert any(w.shape == moment.shape and torch.equal(moment, w / 8) for w in weights)


def divide(content: Content, width: float = 1.5) -> None:
    """Give hidden matrices a group of their own, as megatron-core's muP does."""
    state = inner(content)
    matrices, plain = state["param_groups"]
    keys = [k for k, w in content["model"].items() if isinstance(w, torch.Tensor) and w.ndim == 2]
    hidden = [n for n, key in zip(matrices["params"], keys, strict=True) if ".layers." in key]
    own = {**matrices, "params": hidden, "max_lr": 3e-4 * (1 / width), "eps": 1e-8 * (1 / width)}
    matrices["params"] = [n for n in matrices["params"] if n not in hidden]
    for group in (matrices, plain):
        group.update(max_lr=3e-4, eps=1e-8)
    renumber_as_listed(state, [matrices, own, plain])


def renumber_as_listed(state: Content, groups: list[Content]) -> None:
    state["param_groups"] = groups
    renumber({"optimizer": state}, tuple(range(len(groups))))


def test_groups_of_megatrons_own_mup_follow_the_width(tmp_path: Path) -> None:
    """Learning rate and epsilon of hidden matrices, and no weight decay; in any layout."""
    config = replace(CONFIGS["tele"], multipliers=Multipliers(attention=1 / 4))
    source = make_checkpoint(
        tmp_path / "a", config, even(config, 2), optimizer=True, use_mup=True,
        mup_base_hidden_size=8, softmax_scale=None,
    )  # fmt: skip
    for file in rank_files(source):
        edit(file, divide)
    out = accepted("expand", source, tmp_path / "b", "--hidden-size", 24, "--tp", 1,
                   "--method", "copy").err  # fmt: skip
    assert "muP" not in out
    accepted("verify", source, tmp_path / "b")
    (file,) = rank_files(tmp_path / "b")
    tables, hidden, plain = inner(torch.load(file, weights_only=False))["param_groups"]
    assert (hidden["max_lr"], hidden["eps"]) == (3e-4 * (1 / 3), 1e-8 * (1 / 3))
    assert (tables["max_lr"], plain["max_lr"], tables["eps"]) == (3e-4, 3e-4, 1e-8)
    assert len(tables["params"]) == 2
    before = inner(torch.load(rank_files(source)[0], weights_only=False))["param_groups"]
    for group, old in zip((tables, hidden, plain), before, strict=True):
        assert group.get("weight_decay") == old.get("weight_decay")
        assert group["wd_mult"] == old["wd_mult"]


def test_growing_to_the_base_width_is_told(tmp_path: Path) -> None:
    """There megatron-core makes fewer groups, and would not find these."""
    source = make_checkpoint(
        tmp_path / "a", CONFIGS["tele"], optimizer=True, use_mup=True, mup_base_hidden_size=24
    )
    edit(rank_files(source)[0], partial(divide, width=0.5))
    words = ("expand", source, tmp_path / "b", "--hidden-size", 24, "--method", "copy")
    assert "note: muP: at the base width megatron-core makes no param group" in accepted(*words).err


WRONG: dict[str, Callable[[Content], object]] = {
    "a setting": lambda content: inner(content)["param_groups"][0].update(wd_mult=0.5),
    "a setting more": lambda content: inner(content)["param_groups"][1].update(lr_mult=3.0),
    "the other group's decay": lambda content: [
        group.update(wd_mult=1.0 - group["wd_mult"]) for group in inner(content)["param_groups"]
    ],
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_groups_of_another_run_are_still_refused(
    change: Callable[[Content], object], tmp_path: Path
) -> None:
    config = CONFIGS["llama"]
    source = make_checkpoint(tmp_path / "a", config, even(config, 1, 2), optimizer=True)
    edit(rank_files(source)[1], change)
    with pytest.raises(BadCheckpointError, match=r"mp_rank_00_001.*param group .*, wanted"):
        grow_checkpoint(source, tmp_path / "b", request=LayoutRequest(tp=1, pp=1))
