"""Putting masks into weights."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from growing import EXACT, carry_out, checkpoint_logits, grow_checkpoint, stored_arrays, tokens_for
from pico import CONFIGS, DictWeights, even, make_checkpoint
from torch import Tensor

from flmgrow.errors import UsageError
from flmgrow.formats.megatron.legacy.reader import open_megatron
from flmgrow.model.axes import Axis
from flmgrow.model.branches import UnitMasks
from flmgrow.model.config import ModelConfig
from flmgrow.model.forward import logits
from flmgrow.model.masks import Dimension, Mask
from flmgrow.operators.growth import Growth
from flmgrow.operators.masks import baking_maps
from flmgrow.operators.target import Target

CONFIG = CONFIGS["gpt"]


def fresh(axis: Axis, *indices: int) -> dict[Axis, np.ndarray[tuple[int], np.dtype[np.int64]]]:
    return {axis: np.array(indices, np.int64)}


def heads(groups: list[int], queries: list[int], value: float = 0.0) -> Mask:
    indices = {**fresh(Axis.KV_GROUP, *groups), **fresh(Axis.QUERY_PER_GROUP, *queries)}
    return Mask(Dimension.HEADS, indices, value)


def grown(tmp_path: Path, target: Target) -> tuple[Growth, dict[str, Tensor]]:
    source = make_checkpoint(tmp_path / "a", CONFIG, even(CONFIG, pp=2))
    growth = grow_checkpoint(source, tmp_path / "b", target).growth
    rows = growth.new.vocab
    weights = {
        name: torch.from_numpy(stored[:rows] if name in ("embedding", "head") else stored)
        for name, stored in stored_arrays(tmp_path / "b").items()
    }
    return growth, weights


def masked(growth: Growth, weights: dict[str, Tensor], value: float) -> Tensor:
    def at(dimension: Dimension) -> Tensor | None:
        mask = growth.masks.get(dimension)
        return torch.from_numpy(mask.at(value).values(growth.new.sizes)) if mask else None

    units = UnitMasks(*(at(dimension) for dimension in Dimension))
    return logits(growth.new, DictWeights(weights), tokens_for(growth.new.vocab), units)


def baked(growth: Growth, folder: Path, value: float) -> Tensor:
    model: ModelConfig = growth.new
    masks = {dimension: mask.at(value) for dimension, mask in growth.masks.items()}
    baking = Growth(model, model, baking_maps(masks, model))
    out = carry_out(folder / "b", folder / "baked", baking)
    return checkpoint_logits(out, tokens_for(model.vocab))


@pytest.mark.parametrize("value", [0.0, 0.37, 1.0])
@pytest.mark.parametrize(
    "target",
    [
        Target(ffn=26, layers=6, kv_groups=6, depth_placement="interleave"),
        Target(heads=8, kv_groups=4, ffn=21),
    ],
    ids=["groups", "queries"],
)
def test_baked_weights_compute_what_the_mask_did(
    target: Target, value: float, tmp_path: Path
) -> None:
    growth, weights = grown(tmp_path, target)
    wanted = masked(growth, weights, value)
    assert (baked(growth, tmp_path, value) - wanted).abs().max() <= EXACT
    if value:
        assert (masked(growth, weights, 0.0) - wanted).abs().max() > 1e-3


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_groups_and_queries_together_bake_at_the_ends(value: float, tmp_path: Path) -> None:
    growth, weights = grown(tmp_path, Target(heads=12, kv_groups=6))
    wanted = masked(growth, weights, value)
    assert (baked(growth, tmp_path, value) - wanted).abs().max() <= EXACT


def test_baking_refuses_what_no_ordinary_weights_can_say() -> None:
    width = Mask(Dimension.WIDTH, fresh(Axis.HIDDEN, 11), 0.5)
    with pytest.raises(UsageError, match="norms weigh channels"):
        baking_maps({Dimension.WIDTH: width}, CONFIG)
    assert baking_maps({Dimension.WIDTH: width.at(1.0)}, CONFIG) == {}
    with pytest.raises(UsageError, match="groups and queries"):
        baking_maps({Dimension.HEADS: heads([1], [0], 0.5)}, CONFIG)


def test_a_mask_at_one_is_no_mask(tmp_path: Path) -> None:
    growth, weights = grown(tmp_path, Target(hidden=20, ffn=26, layers=6, kv_groups=6))
    plain = logits(growth.new, DictWeights(weights), tokens_for(growth.new.vocab))
    assert (masked(growth, weights, 1.0) - plain).abs().max() <= 1e-13


def test_fresh_values_mean_nothing_while_masks_are_closed(tmp_path: Path) -> None:
    config = replace(CONFIG)
    growth, weights = grown(tmp_path, Target(hidden=20, ffn=26, layers=6, kv_groups=6))
    before = masked(growth, weights, 0.0)
    weights["up"][:, config.ffn :] = 7.0
    weights["attention_norm.gain"][:, config.hidden :] = -3.0
    weights["embedding"][:, config.hidden :] = 11.0
    weights["key"][:, config.kv_groups :] = 5.0
    weights["down.bias"][config.layers :] = 9.0
    assert (masked(growth, weights, 0.0) - before).abs().max() <= EXACT
    with open_megatron(tmp_path / "b") as opened:
        assert opened.config == growth.new
