"""The paper's attention has two things megatron-core lacks: xPos, and scores damped by depth.

xPos scales queries by ``zeta ** ((n - centre) / scale_base)`` at position n, and keys by the
inverse, with one zeta for each rotated pair (``model/config.py``). As both entries of a pair are
scaled alike, the scale commutes with the rotation: it can be applied first, and the rotation left
to megatron-core. Neither has parameters.
"""

from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from flmgrow.model.config import ModelConfig, RotarySettings
from flmgrow.trainer import cpu

cpu.install()

from megatron.core.transformer.attention import SelfAttention  # noqa: E402
from megatron.core.transformer.dot_product_attention import DotProductAttention  # noqa: E402


class XposSelfAttention(SelfAttention):  # type: ignore[misc]
    """Self-attention whose queries and keys are scaled before they are rotated."""

    def __init__(self, *arguments: Any, model: ModelConfig, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._scale = partial(xpos_scale, rotary=model.rotary)

    def get_query_key_value_tensors(self, *arguments: Any, **settings: Any) -> Any:
        """Return query, key and value (positions, batch, heads, head_dim), the first two scaled."""
        query, key, *rest = super().get_query_key_value_tensors(*arguments, **settings)
        length, _, _, head_dim = query.shape
        wide = torch.promote_types(query.dtype, torch.float32)
        scale = self._scale(length, head_dim, dtype=wide, device=query.device)[:, None, None]
        return (query * scale).to(query.dtype), (key / scale).to(key.dtype), *rest


class DepthScaledAttention(DotProductAttention):  # type: ignore[misc]
    """Attention whose scores in the n-th layer, counted from 1, are divided by n."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.softmax_scale /= self.layer_number


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
    size = int(head_dim * rotary.percent)
    zeta = (torch.arange(0, size, 2, dtype=torch.float64) / size + 0.4) / 1.4
    power = (
        torch.arange(length, dtype=torch.float64) - rotary.xpos_centre
    ) / rotary.xpos_scale_base
    pairs = zeta ** power[:, None]
    rotated = (
        pairs.repeat_interleave(2, -1) if rotary.interleaved else torch.cat((pairs, pairs), -1)
    )
    rest = torch.ones(length, head_dim - size, dtype=torch.float64)
    return torch.cat((rotated, rest), -1).to(device, dtype)
