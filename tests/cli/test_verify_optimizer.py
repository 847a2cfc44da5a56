"""Step counts and param groups are no elements of a tensor: verify derives them, too.

Each damage is done consistently, and all sums made right again, so that no other check can tell.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commands import accepted, flmgrow
from damage import Change, correct_sums, edit, edit_all, rank_files
from optimizer_states import Content, inner
from pico import CONFIGS, even, make_checkpoint
from sampling import sample

Store = Callable[[float], object]
"""How a step is kept: Megatron-LM's versions and optimizers differ."""

STORES: dict[str, Store] = {
    "tensor": torch.tensor,
    "whole tensor": lambda step: torch.tensor(int(step)),
    "number": float,
    "in the group": int,
}


def set_step(store: str, step: float) -> Change:
    def change(content: Content) -> None:
        state = inner(content)
        entries = state["state"].values()
        for holder in state["param_groups"] if store == "in the group" else entries:
            holder["step"] = STORES[store](step)
        if store == "in the group":
            for entry in entries:
                entry.pop("step", None)

    return change


def set_decay(content: Content) -> None:
    inner(content)["param_groups"][0]["weight_decay"] = 0.02


def with_settings(content: Content) -> None:
    """Settings as they may come: plain, nested, and as tensors of one number or several."""
    for group in inner(content)["param_groups"]:
        group |= {"weight_decay": 0.01, "betas": (0.9, 0.95), "lr": torch.tensor(3e-4)}
        group["history"] = torch.arange(3.0)


def optimizer_line(source: Path, grown: Path) -> tuple[int, str]:
    """What verify says of the optimizer; everything else must be as it should."""
    outcome = flmgrow("verify", source, grown)
    lines = {line.split(None, 2)[1]: line for line in outcome.out.splitlines()[:-1]}
    line = lines.pop("optimizer")
    assert all(other.startswith("ok") for other in lines.values()), outcome.out
    assert line.startswith("DIFFERENT" if outcome.code else "ok"), outcome.out
    return outcome.code, line.split(None, 2)[2]


def grown(tmp_path: Path, change: Change, *options: object) -> tuple[Path, Path]:
    source = make_checkpoint(tmp_path / "a", "llama", optimizer=True)
    edit_all(source, change)
    accepted(
        "expand", source, tmp_path / "b", "--ffn-hidden-size", 24, "--method", "zero", *options
    )
    return source, tmp_path / "b"


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("how", sample(["keep", "reset", "asymmetric"], "keep"))
def test_steps_and_groups_are_the_sources(store: str, how: str, tmp_path: Path) -> None:
    """And a step that is neither the source's nor, after a reset, zero is found."""
    source, result = grown(tmp_path, set_step(store, 30.0), "--optimizer", how)
    step = f"{0 if how == 'reset' else 30}{'' if 'whole' in store or 'group' in store else '.0'}"
    if how == "reset" and store == "whole tensor":
        step = "0.0"
    assert optimizer_line(source, result) == (0, f"step {step}, 2 param groups as in the source")
    edit_all(result, set_step(store, 31.0))
    code, says = optimizer_line(source, result)
    assert code == 1
    assert says.startswith(f"step{' of param group 0' if store == 'in the group' else ''} is 31")
    assert f"wanted {step}" in says


def nothing(_: Content) -> None:
    pass


def forget_history(content: Content) -> None:
    inner(content)["param_groups"][1]["history"][2] = 7.0


CHANGES: dict[str, tuple[Change, str]] = {
    "weight decay": (set_decay, "weight_decay of param group 0 is 0.02, wanted 0.01"),
    "a nested setting": (
        lambda content: inner(content)["param_groups"][1].update(betas=(0.9, 0.999)),
        "betas of param group 1 is [0.9, 0.999], wanted [0.9, 0.95]",
    ),
    "a number kept as a tensor": (
        lambda content: inner(content)["param_groups"][0].update(lr=torch.tensor(2.0)),
        "lr of param group 0 is 2.0, wanted 0.000",
    ),
    "several kept as a tensor": (forget_history, "history of param group 1 is ('float32', (3,)"),
    "a setting too few": (
        lambda content: inner(content)["param_groups"][0].pop("lr"),
        "lr of param group 0 is not there, wanted 0.000",
    ),
    "a setting too many": (
        lambda content: inner(content)["param_groups"][0].update(maximize=True),
        "maximize of param group 0 is True, wanted not there",
    ),
    "nothing": (nothing, "step 30.0, 2 param groups as in the source"),
}


@pytest.mark.parametrize(("change", "says"), CHANGES.values(), ids=CHANGES)
def test_a_setting_that_was_changed_is_found(change: Change, says: str, tmp_path: Path) -> None:
    source, result = grown(tmp_path, with_settings)
    edit_all(result, change)
    code, found = optimizer_line(source, result)
    assert code == (0 if change is nothing else 1)
    assert says in found


def scale(content: Content) -> None:
    content["optimizer"]["grad_scaler"] = {"scale": torch.tensor([1024.0])}


def test_a_loss_scaler_is_compared_too(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "a", "llama", dtype="float16", optimizer=True)
    edit_all(source, scale)
    accepted("expand", source, tmp_path / "b", "--ffn-hidden-size", 24, "--method", "zero")
    assert optimizer_line(source, tmp_path / "b")[0] == 0
    edit_all(tmp_path / "b", lambda c: c["optimizer"]["grad_scaler"]["scale"].mul_(2))
    code, says = optimizer_line(source, tmp_path / "b")
    assert (code, says) == (1, "grad_scaler is ['scale', 2048.0], wanted ['scale', 1024.0]")


@pytest.mark.parametrize("store", ["tensor", "in the group"])
@pytest.mark.parametrize("what", sample(["step", "weight decay", "lr"], "step"))
def test_one_rank_of_several_is_found_as_well(store: str, what: str, tmp_path: Path) -> None:
    """Ranks that do not agree are no optimizer at all: the file is named and nothing compared."""
    layout = even(CONFIGS["llama"], 2, 2)
    source = make_checkpoint(tmp_path / "a", "llama", layout, optimizer=True)
    edit_all(source, with_settings)
    edit_all(source, set_step(store, 30.0))
    accepted("reshard", source, tmp_path / "b", "--tp", 4, "--pp", 1)
    assert optimizer_line(source, tmp_path / "b")[0] == 0
    change = {
        "step": set_step(store, 31.0),
        "weight decay": set_decay,
        "lr": lambda content: inner(content)["param_groups"][0]["lr"].mul_(2),
    }[what]
    edit(rank_files(tmp_path / "b")[2], change)
    correct_sums(tmp_path / "b")
    outcome = flmgrow("verify", source, tmp_path / "b")
    assert outcome.code == 3
    assert "mp_rank_02/model_optim_rng.pt: optimizer: " in outcome.err


def test_without_elements_it_is_looked_at_all_the_same(tmp_path: Path) -> None:
    source, result = grown(tmp_path, nothing)
    edit_all(result, set_step("tensor", 31.0))
    outcome = flmgrow("verify", source, result, "--skip-elements", "--skip-checksums")
    assert outcome.code == 1
    assert "DIFFERENT  optimizer" in outcome.out


def test_no_optimizer_no_line(tmp_path: Path) -> None:
    source, result = grown(tmp_path, nothing, "--no-optimizer")
    assert " optimizer " not in accepted("verify", source, result).out
