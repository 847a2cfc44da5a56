"""Modules of megatron-core with a mask: row-parallel projections and branches.

megatron-core knows no masks: small modules bring them in through its layer specs. Each derives from
the plain module it replaces, adds no parameter, and does what that module does once its mask is 1.
A norm weighs its statistics (:mod:`flmgrow.trainer.megatron.norms`). Here a row-parallel projection
masks what it reads, which is heads in attention and units in the FFN, and a branch is scaled before
it joins the residual.

Tensor parallelism cuts heads and units, and a projection takes the part of the mask that belongs to
its rank. Hidden channels are never cut, not even by sequence parallelism, which cuts positions.
Where the model multiplies all branches by a constant, the mask comes on top of that.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from flmgrow.trainer.megatron.compiling import compiled
from flmgrow.trainer.megatron.core import (
    RowParallelLinear,
    get_bias_dropout_add,
    get_pg_rank,
    get_pg_size,
)
from flmgrow.trainer.megatron.live_masks import LiveMask, multiplied

_multiplied = compiled(multiplied)


class MaskedRowParallelLinear(RowParallelLinear):  # type: ignore[misc]
    """The projection that reads heads or FFN units, of which some are masked."""

    def __init__(self, *sizes: int, mask: LiveMask, **settings: Any) -> None:
        super().__init__(*sizes, **settings)
        self._mask = mask

    def forward(self, x: Tensor) -> Any:
        """Return what the stock projection does for ``x``, masked: its output and its bias.

        ``x`` is (positions, batch, this rank's entries), the output (positions, batch, hidden).
        """
        part, parts = get_pg_rank(self.tp_group), get_pg_size(self.tp_group)
        if self._mask.value < 1.0:
            x = _multiplied(x, self._mask.part(part, parts))
        return super().forward(x)


def scaled_branch(multiplier: float, mask: LiveMask | None) -> Callable[..., Any]:
    """Return what adds a layer's branches, times ``multiplier``, to the residual stream.

    Those of a fresh layer have a ``mask`` as well. As megatron-core's ``get_bias_dropout_add``, it
    takes a branch and the residual stream, both (positions, batch, hidden), with the branch's bias
    (hidden,) or None, and returns their sum.
    """

    def bias_dropout_add(training: bool, fused: bool) -> Callable[..., Any]:
        add = get_bias_dropout_add(training, fused)

        def scaled(branch: tuple[Tensor, Tensor | None], residual: Tensor, prob: float) -> Any:
            factor = multiplier if mask is None else multiplier * mask.value
            if factor != 1.0:
                output, bias = branch
                branch = (output * factor, None if bias is None else bias * factor)
            return add(branch, residual, prob)

        return scaled

    return bias_dropout_add
