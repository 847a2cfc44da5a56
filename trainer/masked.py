"""megatron-core knows no masks: four small modules bring them in through its layer specs.

Each derives from the stock module it replaces, adds no parameter, and does what that module does
once its mask is 1. A norm weighs its statistics; a row-parallel projection masks what it reads,
which is heads in attention and units in the FFN; a branch is scaled before it joins the residual.

Tensor parallelism cuts heads and units, and a projection takes the part of the mask that belongs to
its rank. Hidden channels are never cut, not even by sequence parallelism, which cuts positions.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from flmgrow.trainer import cpu
from flmgrow.trainer.masks import LiveMask, multiplied

cpu.install()

from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add  # noqa: E402
from megatron.core.jit import jit_fuser  # noqa: E402
from megatron.core.tensor_parallel import RowParallelLinear  # noqa: E402
from megatron.core.utils import get_pg_rank, get_pg_size  # noqa: E402

Function = TypeVar("Function", bound=Callable[..., Any])


def _compiled(function: Function) -> Function:
    """Let a function become one kernel where there is a compiler for the device.

    megatron-core does so with its own elementwise functions. On a CPU it stays as it is.
    """
    compiled: Function = jit_fuser(function)
    return compiled


class MaskedLayerNorm(torch.nn.LayerNorm):
    """LayerNorm over hidden channels of which some are masked."""

    def __init__(self, config: Any, hidden_size: int, eps: float, mask: LiveMask) -> None:
        super().__init__(hidden_size, eps=eps)
        _mark_for_sequence_parallelism(self, config)
        self._mask = mask

    def forward(self, x: Tensor) -> Tensor:
        """Return the norm of ``x`` (positions, batch, hidden)."""
        if self._mask.value == 1.0:
            return super().forward(x)
        mask = self._mask.units
        y = _normalise(x, mask, self.eps, centred=True)
        return _affine(y, self.weight * mask, self.bias * mask, x.dtype)


class MaskedRMSNorm(torch.nn.RMSNorm):
    """RMSNorm over hidden channels of which some are masked."""

    def __init__(self, config: Any, hidden_size: int, eps: float, mask: LiveMask) -> None:
        super().__init__(hidden_size, eps=eps)
        _mark_for_sequence_parallelism(self, config)
        self._mask, self._eps = mask, eps

    def forward(self, x: Tensor) -> Tensor:
        """Return the norm of ``x`` (positions, batch, hidden)."""
        if self._mask.value == 1.0:
            return super().forward(x)
        mask = self._mask.units
        y = _normalise(x, mask, self._eps, centred=False)
        return _affine(y, self.weight * mask, None, x.dtype)


class MaskedRowParallelLinear(RowParallelLinear):  # type: ignore[misc]
    """The projection that reads heads or FFN units, of which some are masked."""

    def __init__(self, *sizes: int, mask: LiveMask, **settings: Any) -> None:
        super().__init__(*sizes, **settings)
        self._mask = mask

    def forward(self, x: Tensor) -> Any:
        """Return what the stock projection does for ``x`` (..., this rank's entries), masked."""
        part, parts = get_pg_rank(self.tp_group), get_pg_size(self.tp_group)
        if self._mask.value < 1.0:
            x = _multiplied(x, self._mask.part(part, parts))
        return super().forward(x)


def masked_branch(mask: LiveMask) -> Callable[..., Any]:
    """Return what adds the branches of a fresh layer to the residual stream."""

    def bias_dropout_add(training: bool, fused: bool) -> Callable[..., Any]:
        add = get_bias_dropout_add(training, fused)

        def masked(branch: tuple[Tensor, Tensor | None], residual: Tensor, prob: float) -> Any:
            if mask.value < 1.0:
                output, bias = branch
                branch = (output * mask.value, None if bias is None else bias * mask.value)
            return add(branch, residual, prob)

        return masked

    return bias_dropout_add


def _normalise(x: Tensor, mask: Tensor, eps: float, *, centred: bool) -> Tensor:
    """Return ``x``, centred if asked for, over its root mean square; both weigh with ``mask``.

    The result has the mask's precision, which is at least float32's.
    """
    normalised: Tensor = _Normalise.apply(  # type: ignore[no-untyped-call]
        x, mask / mask.sum(), eps, centred
    )
    return normalised


class _Normalise(torch.autograd.Function):
    """``_normalise`` with its gradient written out: autograd's own takes three times as long.

    With shares s, y = (x - sum(s x)) / r and r^2 = sum(s (x - sum(s x))^2) + eps, the gradient is
    g -> (g - s (sum(g) + y sum(g y))) / r, where ``sum(g)`` is there only if y is centred.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, share: Tensor, eps: float, centred: bool) -> Tensor:
        y, inverse = _normalised(x, share, eps, centred)
        ctx.save_for_backward(y, inverse, share)
        ctx.centred, ctx.dtype = centred, x.dtype
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        y, inverse, share = ctx.saved_tensors
        result = _gradient(gradient, y, inverse, share, ctx.centred, ctx.dtype)
        return result, None, None, None


_multiplied = _compiled(multiplied)


@_compiled
def _normalised(x: Tensor, share: Tensor, eps: float, centred: bool) -> tuple[Tensor, Tensor]:
    x = x.to(share.dtype)
    if centred:
        x = x - _weighted(x, share)
    inverse = torch.rsqrt(_weighted(x.square(), share) + eps)
    return x * inverse, inverse


@_compiled
def _gradient(
    gradient: Tensor,
    y: Tensor,
    inverse: Tensor,
    share: Tensor,
    centred: bool,
    dtype: torch.dtype,
) -> Tensor:
    common = y * (gradient * y).sum(-1, keepdim=True)
    if centred:
        common += gradient.sum(-1, keepdim=True)
    return (torch.addcmul(gradient, common, share, value=-1) * inverse).to(dtype)


@_compiled
def _affine(y: Tensor, gain: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    return (y * gain if bias is None else torch.addcmul(bias, y, gain)).to(dtype)


def _weighted(x: Tensor, share: Tensor) -> Tensor:
    """Return the sum over channels with weights; on a CPU a product with a vector is quicker."""
    return (x * share).sum(-1, keepdim=True) if x.is_cuda else (x @ share)[..., None]


def _mark_for_sequence_parallelism(norm: torch.nn.Module, config: Any) -> None:
    # By this flag finalize_model_grads sums what each tensor rank saw of the positions.
    for parameter in norm.parameters():
        setattr(parameter, "sequence_parallel", config.sequence_parallel)  # noqa: B010
