"""Attention in one of torch's kernels, which never holds the scores of all positions.

The reference forward attends step by step, so that it can be read. A model in memory computes the
same faster; tests hold both against each other, for every kind of model and for every dtype.
"""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from flmgrow.model.branches import attend


def fused_attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    factor: float,
    sees: Tensor | None,
    cap: float | None = None,
) -> Tensor:
    """Attend as ``flmgrow.model.branches.attend`` does, with the shapes of its ``Attend``; where
    scores are capped, which no kernel does, step by step.
    """
    if cap is not None:
        return attend(query, key, value, factor, sees, cap)
    queries, tokens = query.shape[2], query.shape[3]
    causal = sees is None and tokens > 1
    if causal and tokens < key.shape[-2]:
        known = key.shape[-2] - tokens
        sees = torch.ones(tokens, key.shape[-2], dtype=torch.bool, device=key.device).tril(known)
        causal = False
    mask = sees if sees is None or sees.dim() == 2 else sees[:, None]
    if tokens == 1:  # the queries of a group see the same keys: they are as many tokens
        context = scaled_dot_product_attention(query.flatten(2, 3), key, value, mask, scale=factor)
        return context.reshape(query.shape)
    context = scaled_dot_product_attention(
        query.flatten(1, 2), key, value, mask, is_causal=causal, scale=factor,
        enable_gqa=queries > 1,
    )  # fmt: skip
    return context.reshape(query.shape)
