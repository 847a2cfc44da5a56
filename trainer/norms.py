"""Norms over hidden channels, of which some may be masked; and over a head's entries, never masked.

The plain ones are torch's. megatron-core's own, without Apex or Transformer Engine, are the same
but refuse sequence parallelism, though that only cuts positions: all it takes is the flag by which
the gradients of their parameters are summed over the tensor ranks. So the kernels are alike on
every machine, whatever is installed, before, while and after masks are open.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from flmgrow.trainer.compiling import compiled
from flmgrow.trainer.masks import LiveMask


class PlainNorm:
    """What makes torch's own norm of megatron-core's settings, as its layer specs ask for one."""

    def __new__(cls, config: Any, hidden_size: int, eps: float = 1e-5, **_: Any) -> Any:
        """Return a LayerNorm or RMSNorm over ``hidden_size`` entries."""
        kind = torch.nn.RMSNorm if config.normalization == "RMSNorm" else torch.nn.LayerNorm
        norm = kind(hidden_size, eps=eps)
        _mark_for_sequence_parallelism(norm, config)
        return norm


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


@compiled
def _normalised(x: Tensor, share: Tensor, eps: float, centred: bool) -> tuple[Tensor, Tensor]:
    x = x.to(share.dtype)
    if centred:
        x = x - _weighted(x, share)
    inverse = torch.rsqrt(_weighted(x.square(), share) + eps)
    return x * inverse, inverse


@compiled
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


@compiled
def _affine(y: Tensor, gain: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    return (y * gain if bias is None else torch.addcmul(bias, y, gain)).to(dtype)


def _weighted(x: Tensor, share: Tensor) -> Tensor:
    """Return the sum over channels with weights; on a CPU a product with a vector is quicker."""
    return (x * share).sum(-1, keepdim=True) if x.is_cuda else (x @ share)[..., None]


def _mark_for_sequence_parallelism(norm: torch.nn.Module, config: Any) -> None:
    # By this flag finalize_model_grads sums what each tensor rank saw of the positions.
    for parameter in norm.parameters():
        setattr(parameter, "sequence_parallel", config.sequence_parallel)  # noqa: B010
