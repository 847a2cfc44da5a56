"""Torch's fused attention stands in for megatron-core's, and must be it within rounding.

Outputs and gradients of both are compared, and torch's must be the one that ran. Where it has no
words for what is asked, and for 16-bit types on a CPU, megatron-core's own must be. As in
``test_model.py``, megatron-core runs in a process of its own: this file, run as a script.
"""

import json
from collections.abc import Mapping
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from megatron_runs import told_by
from torch import Tensor

from flmgrow.model.config import ModelConfig, Multipliers
from flmgrow.trainer.data.samples import attention_mask

LENGTH, BATCH, HEADS, SIZE = 12, 2, 4, 8
RESTARTS = {
    "packed": ((0, 5, 9), (0, 7)),
    "packed alike": ((0, 6), (0, 6)),
    "one a row": ((0,),) * 2,
}
"""Where positions of two rows restart; in the last, a mask that says no more than causality."""

# Query groups, masked rows, attention multiplier, whether damped (in layer 3), other settings.
Case = tuple[int, str | None, float | None, bool, Mapping[str, Any]]
PLAIN: dict[str, Case] = {
    "causal": (HEADS, None, None, False, {}),
    "grouped": (2, None, None, False, {}),
    "one group": (1, "packed", None, False, {}),
    "multiplied": (HEADS, None, 1.0, False, {}),
    "damped": (HEADS, None, None, True, {}),
    "damped and multiplied": (2, "packed", 1.0, True, {}),
    **{rows: (HEADS, rows, None, False, {}) for rows in RESTARTS},
    "window": (2, None, None, False, {"window_size": (4, 0)}),
    "window packed": (HEADS, "packed", None, True, {"window_size": (2, 0)}),
}
LEFT: dict[str, Case] = {
    "dropout": (HEADS, None, None, False, {"attention_dropout": 0.5}),
    "layer scaling": (HEADS, None, None, False, {"apply_query_key_layer_scaling": True}),
    "sink": (HEADS, None, None, False, {"softmax_type": "off-by-one"}),
}
TOLERANCE = {"float64": 1e-14, "float32": 1e-6}
DTYPES = (*TOLERANCE, "bfloat16")


def run_as_script() -> None:
    """Print, for each case, how far the two attentions are apart, and which of them ran."""
    from flmgrow.trainer.megatron import cpu

    cpu.install()
    from megatron.core.transformer.dot_product_attention import DotProductAttention

    stock = DotProductAttention.forward
    from flmgrow.trainer.megatron.attention import beyond
    from flmgrow.trainer.megatron.model import start_parallel, stop_parallel

    start_parallel(tp=1, pp=1)
    report: dict[str, Any] = {}
    outputs: dict[str, Tensor] = {}
    for name, case in (PLAIN | LEFT).items():
        for dtype in DTYPES:
            attention, mask = built(case, getattr(torch, dtype))
            used = torch.nn.functional.scaled_dot_product_attention
            with mock.patch("torch.nn.functional.scaled_dot_product_attention", wraps=used) as spy:
                found = computed(attention, type(attention).forward, case[0], mask, dtype)
            window = case[-1].get("window_size")
            if window is not None and mask is not None:  # megatron-core's would pass over the mask
                mask = mask | beyond(LENGTH, window[0], mask.device)
            else:
                attention.scale_mask_softmax.window_size = window
            wanted = computed(attention, stock, case[0], mask, dtype)
            apart = max(
                ((a - b).abs().max() / b.abs().max()).item()
                for a, b in zip(found, wanted, strict=True)
            )
            report[f"{name} {dtype}"] = {"apart": apart, "torch's": spy.call_count}
            outputs.setdefault(name, wanted[0].double())
    causal = outputs["causal"]
    moved = {name: (found - causal).abs().max().item() for name, found in outputs.items()}
    stop_parallel()
    print(json.dumps({"cases": report, "from causal": moved}))


def built(case: Case, dtype: torch.dtype) -> tuple[Any, Tensor | None]:
    """Return a case's attention, and its mask."""
    from megatron.core.transformer.enums import AttnMaskType

    from flmgrow.trainer.megatron.attention import DepthScaledAttention, FusedAttention
    from flmgrow.trainer.megatron.model import transformer_config

    groups, rows, multiplier, damped, others = case
    config = ModelConfig(
        layers=3, hidden=HEADS * SIZE, ffn=8, kv_groups=groups, queries_per_group=HEADS // groups,
        head_dim=SIZE, vocab=8, max_positions=LENGTH, multipliers=Multipliers(attention=multiplier),
    )  # fmt: skip
    settings = transformer_config(config, tp=1, pp=1, dtype=dtype)
    for name, value in others.items():
        setattr(settings, name, value)
    kind = DepthScaledAttention if damped else FusedAttention
    attention = kind(
        settings, layer_number=3, attn_mask_type=AttnMaskType.causal, attention_type="self",
        softmax_scale=settings.softmax_scale,
    ).eval()  # fmt: skip
    if rows is None:
        return attention, None
    positions = np.ones((BATCH, LENGTH), np.int64)
    for row, starts in enumerate(RESTARTS[rows]):
        positions[row, list(starts)] = 0
    return attention, torch.from_numpy(attention_mask(positions))


def computed(
    attention: Any, forward: Any, groups: int, mask: Tensor | None, dtype: str
) -> list[Tensor]:
    """Return the output and the gradients of query, key and value."""
    chance = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=chance, dtype=torch.float64).to(getattr(torch, dtype))

    given = [
        drawn(LENGTH, BATCH, heads, SIZE).requires_grad_() for heads in (HEADS, groups, groups)
    ]
    output = forward(attention, *given, mask, attn_mask_type=attention.attn_mask_type)
    assert output.shape == (LENGTH, BATCH, HEADS * SIZE)
    gradients = torch.autograd.grad(output, given, drawn(*output.shape))
    return [output.detach(), *gradients]


@pytest.fixture(scope="module")
def outcome() -> dict[str, Any]:
    return told_by(__file__)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("case", PLAIN)
def test_torchs_attention_is_megatrons(outcome: dict[str, Any], case: str, dtype: str) -> None:
    found = outcome["cases"][f"{case} {dtype}"]
    assert found["torch's"] == 1
    assert found["apart"] < TOLERANCE[dtype]


LEFT_ALONE = [f"{case} {dtype}" for case in LEFT for dtype in DTYPES]
LEFT_ALONE += [f"{case} bfloat16" for case in PLAIN]


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_the_rest_is_left_to_megatrons(outcome: dict[str, Any], name: str) -> None:
    assert outcome["cases"][name] == {"apart": 0.0, "torch's": 0}


def test_cases_differ(outcome: dict[str, Any]) -> None:
    """But for dropout, which a model that does not train has not, and a mask of causality alone."""
    same = {name for name, moved in outcome["from causal"].items() if moved < 1e-3}
    assert same == {"causal", "one a row", "dropout", "layer scaling"}


if __name__ == "__main__":
    run_as_script()
