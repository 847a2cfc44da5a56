"""Norms over hidden channels, of which some may be masked; and over a head's entries, never masked.

Shapes: ``x`` is (positions, batch, hidden), or has any axes before its last, which is what the norm
runs over; gain, bias, mask and shares are (hidden,); statistics are (positions, batch, 1).

The plain ones are torch's. megatron-core's own, without Apex or Transformer Engine, are the same
but refuse sequence parallelism, though that only cuts positions: all it takes is the flag by which
the gradients of their parameters are summed over the tensor ranks. So the kernels are alike on
every machine, whatever is installed, before, while and after masks are open.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from flmgrow.trainer.megatron.compiling import compiled
from flmgrow.trainer.megatron.live_masks import LiveMask


class PlainNorm:
    """What makes torch's own norm of megatron-core's settings, as its layer specs ask for one."""

    def __new__(cls, config: Any, hidden_size: int, eps: float = 1e-5, **_: Any) -> Any:
        """Return a LayerNorm or RMSNorm over ``hidden_size`` entries."""
        kind = RMSNorm if config.normalization == "RMSNorm" else LayerNorm
        return kind(config, hidden_size, eps)


class LayerNorm(torch.nn.LayerNorm):
    """torch's LayerNorm, whose ``weight`` may be the gain less one."""

    def __init__(self, config: Any, hidden_size: int, eps: float) -> None:
        super().__init__(hidden_size, eps=eps)
        self._shift = _prepare(self, config)

    @property
    def gain(self) -> Tensor:
        """What is multiplied with, (hidden,)."""
        return self.weight + 1.0 if self._shift else self.weight

    def forward(self, x: Tensor) -> Tensor:
        """Return the norm of ``x`` (..., hidden)."""
        return functional.layer_norm(x, self.normalized_shape, self.gain, self.bias, self.eps)


class RMSNorm(torch.nn.RMSNorm):
    """torch's RMSNorm, whose ``weight`` may be the gain less one."""

    def __init__(self, config: Any, hidden_size: int, eps: float) -> None:
        super().__init__(hidden_size, eps=eps)
        self._shift = _prepare(self, config)

    @property
    def gain(self) -> Tensor:
        """What is multiplied with, (hidden,)."""
        return self.weight + 1.0 if self._shift else self.weight

    def forward(self, x: Tensor) -> Tensor:
        """Return the norm of ``x`` (..., hidden)."""
        return functional.rms_norm(x, self.normalized_shape, self.gain, self.eps)


class MaskedLayerNorm(LayerNorm):
    """LayerNorm over hidden channels of which some are masked."""

    def __init__(self, config: Any, hidden_size: int, eps: float, mask: LiveMask) -> None:
        super().__init__(config, hidden_size, eps)
        self._mask = mask

    def forward(self, x: Tensor) -> Tensor:
        """Return the norm of ``x`` (positions, batch, hidden)."""
        if self._mask.value == 1.0:
            return super().forward(x)
        mask = self._mask.units
        return _masked_norm(x, self.gain * mask, self.bias * mask, mask, self.eps)


class MaskedRMSNorm(RMSNorm):
    """RMSNorm over hidden channels of which some are masked."""

    def __init__(self, config: Any, hidden_size: int, eps: float, mask: LiveMask) -> None:
        super().__init__(config, hidden_size, eps)
        self._mask, self._eps = mask, eps

    def forward(self, x: Tensor) -> Tensor:
        """Return the norm of ``x`` (positions, batch, hidden)."""
        if self._mask.value == 1.0:
            return super().forward(x)
        mask = self._mask.units
        return _masked_norm(x, self.gain * mask, None, mask, self._eps)


def _masked_norm(x: Tensor, gain: Tensor, bias: Tensor | None, mask: Tensor, eps: float) -> Tensor:
    """Return ``x`` (..., hidden) over its root mean square, weighed with ``mask``, times ``gain``.

    ``gain``, ``bias`` and ``mask`` are (hidden,), and the result is shaped as ``x`` is.
    With a ``bias``, which is then added, this is LayerNorm and ``x`` is centred before, by a mean
    that weighs with the mask, too. All is computed in the mask's precision, which is at least
    float32's; the result has that of ``x``.
    """
    normed: Tensor = _MaskedNorm.apply(  # type: ignore[no-untyped-call]
        x, gain, bias, mask / mask.sum(), eps
    )
    return normed


class _MaskedNorm(torch.autograd.Function):
    """``_masked_norm`` with its gradients written out: autograd's own take three times as long.

    With shares s, y = (x - sum(s x)) / r and r^2 = sum(s (x - sum(s x))^2) + eps. A gradient g of
    the result is h = gain g at y, and (h - s (sum(h) + y sum(h y))) / r at x, where ``sum(h)`` is
    there only if y is centred.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gain: Tensor, bias: Tensor | None, share: Tensor, eps: float
    ) -> Tensor:
        result, y, inverse = _normed(x, gain, bias, share, eps)
        ctx.save_for_backward(y, inverse, gain, share)
        ctx.centred = bias is not None
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        y, inverse, gain, share = ctx.saved_tensors
        to_x, to_gain, to_bias = _gradients(gradient, y, inverse, gain, share, ctx.centred)
        return to_x, to_gain, to_bias, None, None


@compiled
def _normed(
    x: Tensor, gain: Tensor, bias: Tensor | None, share: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the result (..., hidden) in the dtype of ``x``, y (..., hidden) and 1 / r (..., 1)."""
    wide = x.to(share.dtype)
    if bias is not None:
        wide = wide - _weighted(wide, share)
    inverse = torch.rsqrt(_weighted(wide.square(), share) + eps)
    y = wide * inverse
    result = y * gain if bias is None else torch.addcmul(bias, y, gain)
    return result.to(x.dtype), y, inverse


@compiled
def _gradients(
    gradient: Tensor, y: Tensor, inverse: Tensor, gain: Tensor, share: Tensor, centred: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the gradients at ``x`` (..., hidden), at the gain and at the bias, each (hidden,)."""
    wide = gradient.to(share.dtype)
    product = wide * y
    common = y * _weighted(product, gain)
    if centred:
        common += _weighted(wide, gain)
    to_x = (wide * gain).addcmul_(common, share, value=-1).mul_(inverse).to(gradient.dtype)
    to_bias = wide.flatten(0, -2).sum(0) if centred else None
    return to_x, product.flatten(0, -2).sum(0), to_bias


def _weighted(x: Tensor, weights: Tensor) -> Tensor:
    """Return the sum of ``x`` (..., hidden) over channels by ``weights`` (hidden,): (..., 1)."""
    # On a CPU a product with a vector is quicker.
    return (x * weights).sum(-1, keepdim=True) if x.is_cuda else (x @ weights)[..., None]


def _prepare(norm: Any, config: Any) -> bool:
    """Let a norm begin with a gain of one, and return whether ``weight`` is one less."""
    _mark_for_sequence_parallelism(norm, config)
    shifted = bool(config.layernorm_zero_centered_gamma)
    if shifted:
        torch.nn.init.zeros_(norm.weight)
    return shifted


def _mark_for_sequence_parallelism(norm: torch.nn.Module, config: Any) -> None:
    # By this flag finalize_model_grads sums what each tensor rank saw of the positions.
    for parameter in norm.parameters():
        setattr(parameter, "sequence_parallel", config.sequence_parallel)  # noqa: B010
