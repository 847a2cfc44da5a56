"""The layers, and names that megatron-core looks for as it is imported."""

from types import SimpleNamespace

import torch

from . import distributed, fp8
from .attention import DotProductAttention
from .fp8 import fp8_autocast
from .module import LayerNorm, LayerNormLinear, Linear, RMSNorm

__all__ = [
    "DotProductAttention",
    "GroupedLinear",
    "LayerNorm",
    "LayerNormLinear",
    "Linear",
    "RMSNorm",
    "distributed",
    "fp8",
    "fp8_autocast",
    "ops",
]

ops = SimpleNamespace(Sequential=torch.nn.Sequential, FusibleOperation=torch.nn.Module)


class GroupedLinear(torch.nn.Module):
    """Experts' linear layers: a dense model has none."""
