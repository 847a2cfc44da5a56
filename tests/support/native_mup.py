"""Stock runs of megatron-core 0.19 with its own muP, and the settings that a growth asks for."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from newer_megatron import answer_of
from pico import CONFIGS
from stage_runs import NEWER

from flmgrow.formats.opening import open_checkpoint
from flmgrow.model.axes import Axis, Role
from flmgrow.model.mup import Kind, kind_of
from flmgrow.model.tensors import LogicalTensor

Told = dict[str, Any]
Settings = dict[str, dict[str, float]]

WITHOUT = "FLMGROW_MEGATRON_019 names no folder with a wheel in it"
NEEDED = [pytest.mark.long, pytest.mark.slow, pytest.mark.skipif(not NEWER, reason=WITHOUT)]
"""Marks of tests that ask megatron-core 0.19."""

COPY = ("--method", "copy", "--copy-noise", 0)
UNTIED = replace(CONFIGS["tele"], positions="none")
TIED = replace(CONFIGS["gpt"], positions="none", tied=True)
RATE, FLOOR = 3e-3, 3e-4


def told_by_megatron(jobs: list[dict[str, Any]], tp: int = 1, pp: int = 1) -> list[Told]:
    """Let megatron-core 0.19 do some training."""
    asked = {"tp": tp, "pp": pp, "jobs": jobs}
    found: list[Told] = answer_of("stock_training.py", asked, ranks=tp * pp)
    return found


def going_on(folder: Path, **more: Any) -> dict[str, Any]:
    """Return the job that trains on what is in a folder, for four steps."""
    return {"load": str(folder), "optimizer": True, "steps": 4, "seed": 2, **more}


def fresh(folder: Path) -> dict[str, Any]:
    """Return the job that tells the settings which an optimizer begins with."""
    return {**going_on(folder), "optimizer": False, "steps": 0}


def tensors(folder: Path) -> dict[str, LogicalTensor]:
    """Return a logical tensor in each parameter, by its key in the legacy format."""
    with open_checkpoint(folder) as opened:
        arrays = opened.reader.arrays
        return {array.placement.key: array.placement.parts[0] for array in arrays}


def followed(
    settings: Settings, of: dict[str, LogicalTensor], ratios: Mapping[Axis, float]
) -> Settings:
    """Return the settings with which a model whose axes grew by ``ratios``, in equal copies, keeps
    to the small one.

    A weight that reads an axis, or carries the reader's scale, is so much smaller, and moves by so
    much less; the gradient of any other that has this axis is so much smaller.
    """
    found = {}
    for name, own in settings.items():
        rate = epsilon = 1.0
        for axis, roles in zip(of[name].axes, of[name].roles, strict=True):
            if roles & {Role.READS, Role.CARRIES}:
                rate /= ratios.get(axis, 1)
            else:
                epsilon /= ratios.get(axis, 1)
        found[name] = {
            "max_lr": own["max_lr"] * rate, "min_lr": own["min_lr"] * rate, "lr": own["lr"] * rate,
            "eps": own["eps"] * epsilon, "wd_mult": own["wd_mult"] / rate,
            "weight_decay": own["weight_decay"] / rate,
        }  # fmt: skip
    return found


def check_settings(
    small: Settings, large: Settings, made: Settings, of: dict[str, LogicalTensor], ratio: float
) -> None:
    """What was loaded is what megatron-core makes for the width, which grew by ``ratio``; only
    hidden matrices move, and with them those of layers that were not there.
    """
    assert large.keys() == made.keys() >= small.keys()
    for name, own in large.items():
        for key in ("max_lr", "min_lr", "eps", "wd_mult"):
            assert own[key] == made[name][key], (name, key)
        before = small.get(name)
        if before is None:
            continue
        assert own["weight_decay"] == before["weight_decay"]
        moved = own["eps"] / before["eps"]
        assert own["lr"] / before["lr"] == pytest.approx(moved, rel=1e-12)
        assert own["max_lr"] / before["max_lr"] == pytest.approx(moved, rel=1e-12)
        hidden = kind_of(of[name.rpartition(" ")[2]]) is Kind.HIDDEN
        assert moved == pytest.approx(1 / ratio if hidden else 1, rel=1e-12), name
