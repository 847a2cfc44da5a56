"""The context in which linear layers multiply numbers of 8 bits."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..common.recipe import Float8CurrentScaling

FORWARD, BACKWARD = torch.float8_e4m3fn, torch.float8_e5m2


class FP8GlobalStateManager:
    """Whether the context is on, and by which recipe."""

    recipe: Any = None

    @classmethod
    def is_fp8_enabled(cls) -> bool:
        """Whether linear layers round now."""
        return cls.recipe is not None

    @classmethod
    def get_fp8_recipe(cls) -> Any:
        """Return the recipe of the context, or None."""
        return cls.recipe


@contextmanager
def fp8_autocast(enabled: bool, fp8_recipe: Any = None, fp8_group: Any = None) -> Iterator[None]:
    """Let linear layers round what they multiply, if ``enabled``."""
    assert not enabled or isinstance(fp8_recipe, Float8CurrentScaling), "not in the stand-in"
    before = FP8GlobalStateManager.recipe
    FP8GlobalStateManager.recipe = fp8_recipe if enabled else None
    try:
        yield
    finally:
        FP8GlobalStateManager.recipe = before


def fp8_model_init(**_: Any) -> Any:
    """Make parameters of 8 bits; the stand-in has none."""
    raise NotImplementedError


def rounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``values`` (any shape) as they are once 8 bits have held them."""
    largest = values.detach().abs().max()
    scale = torch.where(largest > 0, torch.finfo(dtype).max / largest.double(), 1.0)
    return ((values.double() * scale).to(dtype).double() / scale).to(values.dtype)
