"""A live mask changes under the modules that read it, but never between forward and backward."""

import numpy as np
import pytest
import torch
from pico import CONFIGS

from flmgrow.model.axes import Axis
from flmgrow.model.masks import Dimension, Mask
from flmgrow.trainer.megatron.live_masks import LiveMask, LiveMasks, multiplied

CONFIG = CONFIGS["llama"]  # four groups of two queries
HEADS = Mask(
    Dimension.HEADS, {Axis.KV_GROUP: np.array([3]), Axis.QUERY_PER_GROUP: np.array([1])}, 0.25
)
FFN = Mask(Dimension.FFN, {Axis.FFN: np.arange(16, 20)}, 0.5)


def live(mask: Mask, dtype: torch.dtype = torch.float64) -> LiveMask:
    return LiveMask(mask, CONFIG.sizes, dtype)


def test_units_are_in_megatrons_order() -> None:
    c = 0.25
    assert live(HEADS).units.tolist() == [1, c, 1, c, 1, c, c, c]


def test_a_rank_takes_its_part_of_every_units_entries() -> None:
    x = torch.ones(2, 1, 2 * 3)  # two heads of three entries
    assert multiplied(x, live(HEADS).part(3, 4))[0, 0].tolist() == [0.25] * 6
    assert multiplied(x, live(HEADS).part(0, 4))[1, 0].tolist() == [1] * 3 + [0.25] * 3


def test_moving_changes_what_modules_read_and_no_value_is_rounded() -> None:
    mask = live(FFN, torch.bfloat16)
    units = mask.units
    mask.move_to(0.999)
    assert units is mask.units
    assert units[-1].item() == pytest.approx(0.999, rel=1e-6)
    x = torch.full((20,), 1024.0, dtype=torch.bfloat16)
    assert multiplied(x, units)[-1] == torch.tensor(1024 * 0.999, dtype=torch.bfloat16)


def test_moving_before_the_backward_pass_is_an_error() -> None:
    mask = live(FFN, torch.float32)
    x = torch.ones(20, requires_grad=True)
    y = multiplied(x, mask.part(0, 1)).sum()
    mask.move_to(0.75)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(y, x)


def test_only_masks_below_1_live() -> None:
    masks = {Dimension.HEADS: HEADS, Dimension.FFN: FFN.at(1.0)}
    living = LiveMasks(masks, CONFIG, torch.float32)
    assert living.of(Dimension.FFN) is None
    assert living.of(Dimension.WIDTH) is None
    heads = living.of(Dimension.HEADS)
    assert heads is not None
    living.move_to({**masks, Dimension.HEADS: HEADS.at(0.75)})
    assert heads.value == 0.75
    assert heads.units.tolist() == [1, 0.75, 1, 0.75, 1, 0.75, 0.75, 0.75]
