"""Param groups made for muP: read by the kind they name, and moved to the new width."""

from pathlib import Path

import pytest
import torch
from commands import accepted, flmgrow, refused
from damage import edit_all, rank_files
from growing import same_bits
from optimizer_states import Content, inner, states
from pico import CONFIGS, even, make_checkpoint

from flmgrow.model.config import ModelConfig
from flmgrow.model.mup import KIND, Kind, kind_of
from flmgrow.model.tensors import logical_tensors

GROUPS = [(Kind.HIDDEN, 2.0), (Kind.HEAD, 1.0), (Kind.VECTOR, 1.0), (Kind.VECTOR, 0.0)]
HIDDEN = ("linear_qkv.weight", "linear_proj.weight", "linear_fc1.weight", "linear_fc2.weight")
GROW = ("--hidden-size", 24, "--method", "copy")


def group_of(key: str) -> int:
    """The group of a parameter of an untied model, by its name alone."""
    if key.endswith(HIDDEN):
        return 0
    if key == "output_layer.weight":
        return 1
    return 2 if key.startswith("embedding.") else 3


def regroup(content: Content) -> None:
    """Sort the two groups of a rank into those of a trainer with muP."""
    keys = [key for key, value in content["model"].items() if isinstance(value, torch.Tensor)]
    plain = [key.endswith(".bias") or "norm" in key for key in keys]
    order = [k for k, p in zip(keys, plain, strict=True) if not p]
    order += [k for k, p in zip(keys, plain, strict=True) if p]
    old = dict(zip(order, inner(content)["state"].values(), strict=True))
    entries: list[object] = []
    groups: list[object] = []
    for number, (kind, decay) in enumerate(GROUPS):
        own = [old[key] for key in keys if group_of(key) == number]
        settings = {"lr": 3e-4, "max_lr": 3e-3, "eps": 1e-8, "weight_decay": 0.1 * decay}
        params = list(range(len(entries), len(entries) + len(own)))
        groups.append({**settings, "wd_mult": decay, KIND: str(kind), "params": params})
        entries += own
    inner(content)["state"] = dict(enumerate(entries))
    inner(content)["param_groups"] = groups


def make(path: Path, config: ModelConfig) -> Path:
    make_checkpoint(path, config, even(config, 2), optimizer=True)
    return path


@pytest.mark.parametrize("file_format", ["megatron", "torch_dist"])
def test_settings_follow_the_width_and_moments_their_weights(
    file_format: str, tmp_path: Path
) -> None:
    """The very moments that Megatron-LM's two groups give, and muP's table at twice the width."""
    config = CONFIGS["tele"]
    for name in ("two", "four"):
        make(tmp_path / name, config)
    edit_all(tmp_path / "four", regroup)
    for name in ("two", "four"):
        out = tmp_path / f"{name}-grown"
        accepted("expand", tmp_path / name, out, *GROW, "--format", file_format)
    two, four = states(tmp_path / "two-grown"), states(tmp_path / "four-grown")
    for state, name in ((kind, name) for kind in two for name in two[kind]):
        assert same_bits(two[state][name], four[state][name]), (state, name)
    (file, *_) = sorted((tmp_path / "four-grown").rglob("*.pt"))
    found = inner(torch.load(file, weights_only=False))["param_groups"]
    settings = [(g["lr"], g["max_lr"], g["eps"], g["weight_decay"], g["wd_mult"]) for g in found]
    wanted = [
        (1.5e-4, 1.5e-3, 5e-9, 0.4, 4.0),
        (1.5e-4, 1.5e-3, 1e-8, 0.2, 2.0),
        (3e-4, 3e-3, 5e-9, 0.1, 1.0),
        (3e-4, 3e-3, 5e-9, 0.0, 0.0),
    ]
    assert settings == [pytest.approx(row, rel=1e-15) for row in wanted]
    outcome = accepted("verify", tmp_path / "four", tmp_path / "four-grown")
    assert "4 param groups with muP's settings for the new width" in outcome.out


def test_verify_sees_settings_that_did_not_follow(tmp_path: Path) -> None:
    make(tmp_path / "a", CONFIGS["tele"])
    edit_all(tmp_path / "a", regroup)
    accepted("expand", tmp_path / "a", tmp_path / "b", *GROW)

    def back(content: Content) -> None:
        inner(content)["param_groups"][0]["lr"] = 3e-4

    edit_all(tmp_path / "b", back)
    outcome = flmgrow("verify", tmp_path / "a", tmp_path / "b")
    assert outcome.code == 1
    assert "lr of param group 0 is 0.0003, wanted 0.00015" in outcome.out


def test_growing_no_width_leaves_them(tmp_path: Path) -> None:
    make(tmp_path / "a", CONFIGS["tele"])
    edit_all(tmp_path / "a", regroup)
    options = ("--ffn-hidden-size", 40, "--method", "copy")
    accepted("expand", tmp_path / "a", tmp_path / "b", *options)
    groups = [
        [g | {"params": None} for g in inner(torch.load(f, weights_only=False))["param_groups"]]
        for f in (rank_files(tmp_path / "a")[0], rank_files(tmp_path / "b")[0])
    ]
    assert groups[0] == groups[1]


def test_a_mup_model_with_ordinary_groups_is_told(tmp_path: Path) -> None:
    make(tmp_path / "a", CONFIGS["flm"])
    options = ("--hidden-size", 24, "--method", "copy")
    outcome = accepted("expand", tmp_path / "a", tmp_path / "b", *options)
    assert "muP: the param groups do not tell hidden matrices from the rest" in outcome.err


def test_a_setting_that_is_no_number_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "a", CONFIGS["tele"])

    def as_tensor(content: Content) -> None:
        regroup(content)
        for group in inner(content)["param_groups"]:
            group["lr"] = torch.tensor(3e-4)

    edit_all(tmp_path / "a", as_tensor)
    pattern = "lr of the param group of hidden parameters is .*wanted a number"
    refused(2, pattern, "expand", tmp_path / "a", tmp_path / "b", *GROW, place=tmp_path)


@pytest.mark.parametrize("name", CONFIGS)
def test_kinds_follow_from_roles(name: str, tmp_path: Path) -> None:
    config = CONFIGS[name]
    kinds = {tensor.name: kind_of(tensor) for tensor in logical_tensors(config).values()}
    matrices = {"query", "key", "value", "attention_out", "gate", "up", "down"} & kinds.keys()
    assert {n for n, kind in kinds.items() if kind is Kind.HIDDEN} == matrices
    head = {"final_norm.gain", "final_norm.bias"} & kinds.keys() if config.tied else {"head"}
    assert {n for n, kind in kinds.items() if kind is Kind.HEAD} == head
    shared = {n for n in kinds if n.startswith(("query_norm", "key_norm"))}
    assert {n for n, kind in kinds.items() if kind is Kind.SHARED} == shared
