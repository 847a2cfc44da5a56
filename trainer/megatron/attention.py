"""Fused attention for megatron-core, scores scaled by depth, and xPos.

Attention takes most of a step where it writes down all scores, and the paper's is not stock.
megatron-core's own attention, without Transformer Engine, writes length x length scores a dozen
times over. Here torch's fused attention stands in for it (flash attention on GPUs that have it),
equal within rounding, and what torch has no words for is left to megatron-core.

Of the paper's attention megatron-core lacks two things: scores damped by depth, and xPos. xPos
scales queries by ``zeta ** ((n - centre) / scale_base)`` at position n, and keys by the inverse,
with one zeta for each rotated pair (``model/config.py``). As both entries of a pair are scaled
alike, the scale commutes with the rotation: it can be applied first, and the rotation left to
megatron-core. Neither has parameters.
"""

from collections.abc import Mapping
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from flmgrow.model.config import ModelConfig, RotarySettings
from flmgrow.trainer.megatron.core import (
    AttnMaskType,
    DotProductAttention,
    SelfAttention,
    TEDotProductAttention,
)

_HALF = (torch.bfloat16, torch.float16)


class XposSelfAttention(SelfAttention):  # type: ignore[misc]
    """Self-attention whose queries and keys are scaled before they are rotated, if they are."""

    def __init__(self, *arguments: Any, model: ModelConfig, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._rotates = model.kind(self.layer_number - 1).rotates
        self._scale = partial(xpos_scale, rotary=model.rotary)

    def get_query_key_value_tensors(self, *arguments: Any, **settings: Any) -> Any:
        """Return query, key and value (positions, batch, heads, head_dim), the first two scaled."""
        query, key, *rest = super().get_query_key_value_tensors(*arguments, **settings)
        if not self._rotates:
            return query, key, *rest
        length, _, _, head_dim = query.shape
        wide = torch.promote_types(query.dtype, torch.float32)
        scale = self._scale(length, head_dim, dtype=wide, device=query.device)[:, None, None]
        return (query * scale).to(query.dtype), (key / scale).to(key.dtype), *rest


class FusedAttention(DotProductAttention):  # type: ignore[misc]
    """Causal attention by torch's fused kernels, wherever they can say what is asked.

    A window becomes a part of the mask: megatron-core's own would pass over any mask beside it.
    """

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        softmax = self.scale_mask_softmax
        self._window, softmax.window_size = softmax.window_size, None

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **others: Any,
    ) -> Tensor:
        """Return the context (positions, batch, heads * head_dim).

        ``query``, ``key`` and ``value`` are (positions, batch, heads or groups, head_dim);
        ``attention_mask`` is true where a key is hidden, None for causality alone.
        """
        if self._window is not None:
            far = beyond(len(query), self._window[0], query.device)
            attention_mask = far if attention_mask is None else attention_mask | far
        if self._asks_for_more(query, key, others):
            output: Tensor = super().forward(query, key, value, attention_mask, **others)
            return output
        queries_per_group = query.shape[2] // key.shape[2]
        if queries_per_group > 1:
            key = key.repeat_interleave(queries_per_group, 2)
            value = value.repeat_interleave(queries_per_group, 2)
        context = functional.scaled_dot_product_attention(
            query.permute(1, 2, 0, 3),
            key.permute(1, 2, 0, 3),
            value.permute(1, 2, 0, 3),
            attn_mask=None if attention_mask is None else ~attention_mask,
            is_causal=attention_mask is None,
            scale=self.softmax_scale,
        )
        return context.permute(2, 0, 1, 3).flatten(2)

    def _asks_for_more(self, query: Tensor, key: Tensor, others: Mapping[str, Any]) -> bool:
        softmax = self.scale_mask_softmax
        return (
            self.attention_dropout.p > 0.0
            or self.softmax_offset is not None
            or softmax.scale is not None
            or softmax.attn_mask_type is not AttnMaskType.causal
            or len(query) != len(key)
            # In 16 bits on a CPU, torch's lets two layouts of a model drift apart thrice as far.
            or (query.device.type == "cpu" and query.dtype in _HALF)
            or any(others.get(name) is not None for name in ("attention_bias", "packed_seq_params"))
        )


class EngineAttention(FusedAttention):
    """Causal attention in 16 bits by Transformer Engine; by torch in 32, and where there is a mask.

    Transformer Engine has no fused kernel for these: it writes down all scores, or passes over a
    mask beside causality.
    """

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.engine = TEDotProductAttention(*arguments, **settings)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **others: Any,
    ) -> Tensor:
        """Return the context (positions, batch, heads * head_dim), as :class:`FusedAttention`."""
        if attention_mask is not None or query.dtype not in _HALF:
            return super().forward(query, key, value, attention_mask, **others)
        context: Tensor = self.engine(query, key, value, None, **others)
        return context


class DepthScaledAttention(FusedAttention):
    """Attention whose scores in the n-th layer, counted from 1, are divided by n."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.softmax_scale /= self.layer_number


@lru_cache(maxsize=8)
def beyond(length: int, before: int, device: torch.device) -> Tensor:
    """Return (length, length): True where a token (row) must not see another (column).

    It sees itself and ``before`` tokens before it.
    """
    places = torch.arange(length, device=device)
    distance = places[:, None] - places
    return (distance < 0) | (distance > before)


@lru_cache(maxsize=8)
def xpos_scale(
    length: int,
    head_dim: int,
    *,
    rotary: RotarySettings,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """Return what queries are multiplied by and keys divided by: (length, head_dim).

    Computed in float64, on the CPU. Entries that are not rotated have 1.
    """
    size = rotary.size(head_dim)
    zeta = (torch.arange(0, size, 2, dtype=torch.float64) / size + 0.4) / 1.4
    power = (
        torch.arange(length, dtype=torch.float64) - rotary.xpos_centre
    ) / rotary.xpos_scale_base
    pairs = zeta ** power[:, None]
    rotated = (
        pairs.repeat_interleave(2, -1) if rotary.interleaved else torch.cat((pairs, pairs), -1)
    )
    rest = torch.ones(length, head_dim - rotated.shape[-1], dtype=torch.float64)
    return torch.cat((rotated, rest), -1).to(device, dtype)
