"""Linear layers and norms, alone and one behind the other."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .distributed import BEFORE_COLUMNS, BEHIND_ROWS, exchanged
from .fp8 import BACKWARD, FORWARD, FP8GlobalStateManager, rounded


class _RoundedProduct(torch.autograd.Function):
    """A product of an input, a weight and gradients that 8 bits have held."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, held: Tensor) -> Tensor:
        x = rounded(x, FORWARD)
        ctx.save_for_backward(x, held)
        return x @ held.t()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, held = ctx.saved_tensors
        gradient = rounded(gradient, BACKWARD)
        to_weight = gradient.flatten(0, -2).t() @ x.flatten(0, -2)
        return gradient @ held, to_weight, None


class Linear(torch.nn.Module):
    """A linear layer, of which each tensor rank has columns (outputs), rows (inputs) or all."""

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, return_bias: bool = False,
        init_method: Callable[[Tensor], Any] | None = None, parallel_mode: str | None = None,
        sequence_parallel: bool = False, tp_group: Any = None, tp_size: int = 1,
        params_dtype: torch.dtype | None = None, device: Any = "cpu", **_: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        self.in_features, self.out_features, self.use_bias = in_features, out_features, bias
        self.parallel_mode, self.sequence_parallel = parallel_mode, sequence_parallel
        self.return_bias, self._group, self._parts = return_bias, tp_group, tp_size
        outputs = out_features // tp_size if parallel_mode == "column" else out_features
        inputs = in_features // tp_size if parallel_mode == "row" else in_features
        dtype = params_dtype or torch.float32
        self.weight = torch.nn.Parameter(torch.empty(outputs, inputs, dtype=dtype))
        _cut(self.weight, 0 if parallel_mode == "column" else 1)
        if init_method is not None:
            init_method(self.weight)
        self.bias: Tensor = torch.empty(0)
        if bias:
            del self.bias
            self.bias = torch.nn.Parameter(torch.zeros(outputs, dtype=dtype))
            if parallel_mode == "column":
                _cut(self.bias, 0)
            else:
                _mark(self.bias, sequence_parallel)
        self._held = torch.empty(0)

    def forward(self, inp: Tensor, is_first_microbatch: bool | None = None) -> Any:
        """Return the output (positions, batch, outputs) for ``inp`` (positions, batch, inputs), and
        the bias beside it if that is asked for.
        """
        column, row = (self.parallel_mode == mode for mode in ("column", "row"))
        if column and self._parts > 1:
            inp = exchanged(inp, BEFORE_COLUMNS[self.sequence_parallel], self._group)
        out = self._product(inp, is_first_microbatch)
        if row and self._parts > 1:
            out = exchanged(out, BEHIND_ROWS[self.sequence_parallel], self._group)
        if self.return_bias:
            return out, self.bias
        return out + self.bias if self.use_bias else out

    def _product(self, x: Tensor, is_first: bool | None) -> Tensor:
        if not FP8GlobalStateManager.is_fp8_enabled():
            return functional.linear(x, self.weight)
        for side, of in ((8, x[..., 0].numel()), (16, x.shape[-1]), (8, len(self.weight))):
            assert of % side == 0, f"{tuple(x.shape)}: not for 8 bits"
        if is_first is not False or not self._held.numel():
            self._held = rounded(self.weight.detach(), FORWARD)
        product: Tensor = _RoundedProduct.apply(x, self.weight, self._held)  # type: ignore[no-untyped-call]
        return product


class _Norm(torch.nn.Module):
    def __init__(
        self, hidden_size: int, eps: float, sequence_parallel: bool, zero_centered_gamma: bool,
        normalization: str, params_dtype: torch.dtype | None = None, **_: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        self._eps, self._shift = eps, 1.0 if zero_centered_gamma else 0.0
        gain = torch.full((hidden_size,), 1.0 - self._shift, dtype=params_dtype)
        self.weight = torch.nn.Parameter(gain)
        _mark(self.weight, sequence_parallel)
        self.bias: Tensor | None = None
        if normalization == "LayerNorm":
            del self.bias
            self.bias = torch.nn.Parameter(torch.zeros_like(gain))
            _mark(self.bias, sequence_parallel)

    def forward(self, x: Tensor) -> Tensor:
        """Return the norm of ``x`` (..., hidden)."""
        return _normed(x, self.weight + self._shift, self.bias, self._eps)


class LayerNorm(_Norm):
    """A norm that centres."""

    def __init__(self, normalized_shape: int | None = None, **settings: Any) -> None:
        size = settings.pop("hidden_size", normalized_shape)  # an older name of it
        super().__init__(size, normalization="LayerNorm", **settings)


class RMSNorm(_Norm):
    """A norm that does not."""

    def __init__(self, normalized_shape: int | None = None, **settings: Any) -> None:
        size = settings.pop("hidden_size", normalized_shape)  # an older name of it
        super().__init__(size, normalization="RMSNorm", **settings)


class LayerNormLinear(Linear):
    """A norm, and a linear layer behind it."""

    def __init__(
        self, in_features: int, out_features: int, eps: float = 1e-5,
        normalization: str = "LayerNorm", zero_centered_gamma: bool = False,
        sequence_parallel: bool = False, **settings: Any,
    ) -> None:  # fmt: skip
        settings["sequence_parallel"] = sequence_parallel
        super().__init__(in_features, out_features, **settings)
        self.eps, self.normalization = eps, normalization
        self.zero_centered_gamma = zero_centered_gamma
        norm = _Norm(
            in_features, eps, sequence_parallel, zero_centered_gamma, normalization,
            settings.get("params_dtype"),
        )  # fmt: skip
        self.layer_norm_weight = norm.weight
        self.layer_norm_bias = norm.bias

    def forward(self, inp: Tensor, is_first_microbatch: bool | None = None) -> Any:
        """Return what the linear layer does for the norm of ``inp`` (positions, batch, inputs)."""
        gain = self.layer_norm_weight + (1.0 if self.zero_centered_gamma else 0.0)
        x = _normed(inp, gain, self.layer_norm_bias, self.eps)
        return super().forward(x, is_first_microbatch)


def _normed(x: Tensor, gain: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """Return the norm of ``x`` (..., hidden): LayerNorm with a bias (hidden,), RMSNorm without."""
    if bias is not None:
        return functional.layer_norm(x, gain.shape, gain, bias, eps)
    return functional.rms_norm(x, gain.shape, gain, eps)


def _cut(parameter: Tensor, axis: int) -> None:
    """Mark a parameter as cut between tensor ranks, as megatron-core knows it."""
    for name, value in {"tensor_model_parallel": True, "partition_dim": axis}.items():
        setattr(parameter, name, value)
    setattr(parameter, "partition_stride", 1)  # noqa: B010


def _mark(parameter: Tensor, sequence_parallel: bool) -> None:
    setattr(parameter, "sequence_parallel", sequence_parallel)  # noqa: B010
