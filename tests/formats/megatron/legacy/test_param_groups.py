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

import numpy as np
import pytest
import torch
from commands import accepted
from damage import edit, rank_files
from growing import grow_checkpoint
from optimizer_states import Content, inner, states
from pico import CONFIGS, even, make_checkpoint

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.megatron.legacy.adam import MASTERS
from flmgrow.model.config import Multipliers
from flmgrow.surgery.layout_request import LayoutRequest

TWICE = ("--hidden-size", 24, "--method", "copy")


def renumber(content: Content, order: tuple[int, ...]) -> None:
    """Put the groups in another order: parameters are numbered, and masters listed, by it."""
    state = inner(content)
    state["param_groups"] = [state["param_groups"][number] for number in order]
    before = [number for group in state["param_groups"] for number in group["params"]]
    state["state"] = {new: state["state"][old] for new, old in enumerate(before)}
    place = {old: new for new, old in enumerate(before)}
    for group in state["param_groups"]:
        group["params"] = [place[number] for number in group["params"]]
    if MASTERS in content["optimizer"]:
        masters = content["optimizer"][MASTERS]
        content["optimizer"][MASTERS] = [masters[number] for number in order]


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
    for group in (matrices, plain):
        group.update(max_lr=3e-4, eps=1e-8)
    if width == 1:
        return
    keys = [k for k, w in content["model"].items() if isinstance(w, torch.Tensor) and w.ndim == 2]
    hidden = [n for n, key in zip(matrices["params"], keys, strict=True) if ".layers." in key]
    own = {**matrices, "params": hidden, "max_lr": 3e-4 * (1 / width), "eps": 1e-8 * (1 / width)}
    matrices["params"] = [n for n in matrices["params"] if n not in hidden]
    state["param_groups"] = [matrices, own, plain]
    if MASTERS in content["optimizer"]:
        listed = [master for group in content["optimizer"][MASTERS] for master in group]
        own_masters = [[listed[n] for n in group["params"]] for group in state["param_groups"]]
        content["optimizer"][MASTERS] = own_masters
    renumber(content, (0, 1, 2))


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
    assert "param groups" not in out
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


BASES = {8: 3, 12: 3, 24: 2}
"""muP's base width of a model of width 12 that grows to 24, and the groups that 24 has by it."""


def settings(content: Content) -> list[dict[str, object]]:
    return [{**group, "params": None} for group in inner(content)["param_groups"]]


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_the_group_of_hidden_matrices_begins_and_ends_at_the_base_width(
    dtype: str, tmp_path: Path
) -> None:
    """What grew is what another base width's groups give, in settings and in every state."""
    config = replace(CONFIGS["tele"], multipliers=Multipliers(attention=1 / 4))
    grown = {}
    for base in BASES:
        source = make_checkpoint(
            tmp_path / f"{base}", config, even(config, 2), dtype=dtype, optimizer=True,
            use_mup=True, mup_base_hidden_size=base, softmax_scale=None,
        )  # fmt: skip
        for file in rank_files(source):
            edit(file, partial(divide, width=12 / base))
        out = tmp_path / f"{base} grown"
        told = accepted("expand", source, out, *TWICE).err
        assert "param groups" not in told
        assert (
            "note: muP's arguments, Megatron-LM does not take from a checkpoint: pass --mup-"
            in told
        )
        assert "with muP's settings for the new width" in accepted("verify", source, out).out
        grown[base] = states(out)
        for file in rank_files(out):
            found = settings(torch.load(file, weights_only=False))
            assert len(found) == BASES[base]
            assert [group["eps"] for group in found] == (
                [1e-8, 1e-8 * (1 / (24 / base)), 1e-8] if base != 24 else [1e-8, 1e-8]
            )
    for base in BASES:
        for state in grown[base]:
            for name, values in grown[base][state].items():
                assert np.array_equal(values, grown[8][state][name]), (base, state, name)


def test_groups_that_do_not_tell_hidden_matrices_are_told(tmp_path: Path) -> None:
    """megatron-core would look for three, and these say too little to be made into them."""
    source = make_checkpoint(tmp_path / "a", CONFIGS["tele"], optimizer=True, use_mup=True)
    told = accepted("expand", source, tmp_path / "b", *TWICE).err
    assert "note: muP: the param groups do not tell hidden matrices from the rest" in told
    assert "let its run begin without" in told
    contents = [
        torch.load(rank_files(tmp_path / name)[0], weights_only=False) for name in ("a", "b")
    ]
    assert settings(contents[0]) == settings(contents[1])


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
