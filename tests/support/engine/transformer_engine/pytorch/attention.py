"""Attention, written down."""

from typing import Any

import torch
from torch import Tensor


class DotProductAttention(torch.nn.Module):
    """Causal attention of a rank's heads, in a window or none."""

    def __init__(
        self, num_attention_heads: int, kv_channels: int, num_gqa_groups: int | None = None,
        attention_dropout: float = 0.1, attn_mask_type: str = "causal", layer_number: int = 1,
        window_size: tuple[int, int] = (-1, -1), softmax_scale: float | None = None,
        **_: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        assert attention_dropout == 0.0
        assert attn_mask_type == "causal"
        self.softmax_scale = kv_channels**-0.5 if softmax_scale is None else softmax_scale
        self.before = window_size[0]

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None,
        attn_mask_type: str = "causal", **_: Any,
    ) -> Tensor:  # fmt: skip
        """Return the context (positions, batch, heads * channels) of queries, keys and values
        (positions, batch, heads or groups, channels).
        """
        assert attention_mask is None, "it is passed over where attention is causal"
        assert attn_mask_type == "causal"
        each = query.shape[2] // key.shape[2]
        key, value = (x.repeat_interleave(each, 2) for x in (key, value))
        scores = torch.einsum("qbhd,kbhd->bhqk", query, key) * self.softmax_scale
        places = torch.arange(len(query))
        distance = places[:, None] - places
        hidden = distance < 0
        if self.before >= 0:
            hidden = hidden | (distance > self.before)
        shares = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        return torch.einsum("bhqk,kbhd->qbhd", shares, value).flatten(2)
