"""Optimizer state that does not fit its weights, or is of a kind that is not understood."""

from pathlib import Path

import pytest
import torch
from commands import accepted, refused
from damage import Change, edit, edit_all, rank_files
from optimizer_states import Content, inner
from pico import CONFIGS, even, make_checkpoint
from torch import Tensor

GAIN = "decoder.layers.0.input_layernorm.weight"


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
    "an entry missing": (
        lambda content: inner(content)["state"].pop(2), "state of 12 parameters .* 13"
    ),
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
    "other groups": (single_group, "has 1 param groups, wanted those of 2 in .*mp_rank_00_000"),
    "another rate": (
        lambda content: inner(content)["param_groups"][0].update(lr=1.0),
        "a param group has lr 1.0, wanted 0.0003 as in .*mp_rank_00_000",
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
