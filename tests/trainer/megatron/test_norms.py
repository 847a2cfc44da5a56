"""Masked norms have gradients of their own, which must be those of the formula in the docs.

The formula is written out here and left to autograd. As in ``test_model.py``, megatron-core runs in
a process of its own: this file, run as a script.
"""

import json
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from megatron_runs import told_by
from torch import Tensor

from flmgrow.model.axes import Axis
from flmgrow.model.masks import Dimension, Mask

HIDDEN, FRESH, EPSILON = 24, 10, 1e-3
NORMS = ("layernorm", "rmsnorm")
SHIFTS = (0.0, 1.0)
"""What gains are more than the stored weights."""

VALUES = (0.0, 0.37, 0.8)
DTYPES = {"float64": 1e-14, "float32": 1e-6, "bfloat16": 1e-2}


def formula(norm: str, x: Tensor, weight: Tensor, bias: Tensor | float, mask: Tensor) -> Tensor:
    """The masked norm, as docs/concepts/masks.md says it."""
    size = mask.sum()
    if norm == "layernorm":
        x = x - (mask * x).sum(-1, keepdim=True) / size
    square = (mask * x**2).sum(-1, keepdim=True) / size
    return mask * (x / (square + EPSILON).sqrt() * weight + bias)


def run_as_script() -> None:
    """Print how far outputs and gradients are from the formula's, and from those unweighted."""
    report = {}
    for norm, shift, value, dtype in product(NORMS, SHIFTS, VALUES, DTYPES):
        right, unweighted = compared(norm, shift, value, getattr(torch, dtype))
        report[f"{norm} {shift} {value} {dtype}"] = {"apart": right, "unweighted": unweighted}
    print(json.dumps(report))


def compared(
    norm: str, shift: float, value: float, dtype: torch.dtype
) -> tuple[dict[str, float], float]:
    """Return the differences by name, and that of x's gradient if statistics were not weighted."""
    from flmgrow.trainer.megatron.layer_spec import MASKED_NORMS
    from flmgrow.trainer.megatron.live_masks import LiveMask

    fresh = {Axis.HIDDEN: np.arange(HIDDEN - FRESH, HIDDEN)}
    live = LiveMask(Mask(Dimension.WIDTH, fresh, value), {Axis.HIDDEN: HIDDEN}, dtype)
    module: Any = MASKED_NORMS[norm](
        SimpleNamespace(sequence_parallel=False, layernorm_zero_centered_gamma=bool(shift)),
        HIDDEN,
        EPSILON,
        live,
    )
    module = module.to(dtype)
    chance = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, generator=chance)
    module.weight.data -= shift
    given = {"x": torch.randn(5, 2, HIDDEN, generator=chance, dtype=torch.float64) * 3 + 1}
    given = {"x": given["x"].to(dtype).requires_grad_(), **dict(module.named_parameters())}
    upstream = torch.randn(5, 2, HIDDEN, generator=chance, dtype=torch.float64).to(dtype)

    def told(output: Tensor, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        gradients = torch.autograd.grad(output, list(inputs.values()), upstream.to(output.dtype))
        return {"output": output, **dict(zip(inputs, gradients, strict=True))}

    wide = {name: values.detach().double().requires_grad_() for name, values in given.items()}
    mask = live.units.double()
    arguments = (wide["weight"] + shift, wide.get("bias", 0.0))
    found = told(module(given["x"]), given)
    wanted = told(formula(norm, wide["x"], *arguments, mask), wide)
    plain = formula(norm, wide["x"], *arguments, torch.ones_like(mask)) * mask
    assert found["output"].dtype == dtype
    apart = {
        name: ((found[name] - values).abs().max() / values.abs().max()).item()
        for name, values in wanted.items()
    }
    unweighted = (told(plain, wide)["x"] - wanted["x"]).abs().max() / wanted["x"].abs().max()
    return apart, unweighted.item()


@pytest.fixture(scope="module")
def outcome() -> dict[str, Any]:
    return told_by(__file__)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("norm", NORMS)
def test_gradients_are_the_formulas(
    outcome: dict[str, Any], norm: str, shift: float, value: float, dtype: str
) -> None:
    found = outcome[f"{norm} {shift} {value} {dtype}"]
    names = {"output", "x", "weight", "bias"} - ({"bias"} if norm == "rmsnorm" else set())
    assert found["apart"].keys() == names
    assert all(apart < DTYPES[dtype] for apart in found["apart"].values()), found
    assert found["unweighted"] > 2 * DTYPES[dtype]


if __name__ == "__main__":
    run_as_script()
