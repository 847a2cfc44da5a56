"""Masks whose values can be moved while the model trains.

Masks rise while the model trains, and the modules they act in are built only once. So a module
holds no value: it holds a :class:`LiveMask` and reads the value there in every forward pass.
Between optimizer steps the training loop moves all of them; a move between a forward pass and its
backward pass is an error of torch's, as the multipliers are changed in place. Nothing here is a
parameter or a buffer, so masked models have the state keys of ordinary ones, and no cast of a model
to bfloat16 rounds a value near 1 to 1.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from flmgrow.model.axes import Sizes
from flmgrow.model.config import ModelConfig
from flmgrow.model.masks import Dimension, Mask


class LiveMask:
    """The mask of one dimension, with a multiplier for each of its units, fresh or not.

    ``units`` is flat, (units,), in logical order, which is also megatron-core's: heads group after
    group. It has at least float32's precision and lies on the current device.
    """

    def __init__(self, mask: Mask, sizes: Sizes, dtype: torch.dtype) -> None:
        self._mask, self._sizes = mask, sizes
        wide = torch.promote_types(dtype, torch.float32)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.units = torch.as_tensor(mask.values(sizes).reshape(-1), dtype=wide, device=device)

    @property
    def value(self) -> float:
        """What fresh units are multiplied by."""
        return self._mask.value

    def move_to(self, value: float) -> None:
        """Multiply fresh units by ``value`` from now on."""
        self._mask = self._mask.at(value)
        self.units.copy_(torch.from_numpy(self._mask.values(self._sizes).reshape(-1)))

    def is_fresh(self, unit: int) -> bool:
        """Whether the mask multiplies this unit by its value."""
        return bool(self._mask.at(0.0).values(self._sizes).reshape(-1)[unit] == 0.0)

    def part(self, part: int, parts: int) -> Tensor:
        """Return the multipliers of the units that tensor rank ``part`` holds: (units / parts,)."""
        return self.units.chunk(parts)[part]


def multiplied(x: Tensor, units: Tensor) -> Tensor:
    """Return ``x`` (..., entries) times what ``units`` (units,) say of its last axis.

    The result has the shape and precision of ``x``. A unit may have several entries, which lie side
    by side, as a head's do: ``entries`` is a multiple of ``units``.
    """
    return (torch.unflatten(x, -1, (len(units), -1)) * units[:, None]).flatten(-2).to(x.dtype)


class LiveMasks:
    """The masks of one model: those that are below 1, at values that can be moved."""

    def __init__(
        self, masks: Mapping[Dimension, Mask], config: ModelConfig, dtype: torch.dtype
    ) -> None:
        self._live = {
            dimension: LiveMask(mask, config.sizes, dtype)
            for dimension, mask in masks.items()
            if mask.value < 1.0
        }

    def of(self, dimension: Dimension) -> LiveMask | None:
        """Return the mask of a dimension, or None if none of its units is masked."""
        return self._live.get(dimension)

    def move_to(self, masks: Mapping[Dimension, Mask]) -> None:
        """Take the values of ``masks``, for example those of a later step (``ramped``)."""
        for dimension, live in self._live.items():
            live.move_to(masks[dimension].value)
