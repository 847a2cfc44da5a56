"""A stand-in for Transformer Engine on a CPU, for tests: what megatron-core uses of it for a dense
GPT, after its documented interface.

It computes with torch. In its fp8 context a linear layer rounds what it multiplies to 8 bits, by
scales of the tensors at hand, and keeps a rounded weight until it is told of the first micro-batch.
"""

from . import common, pytorch

__all__ = ["__version__", "common", "pytorch"]

__version__ = "2.5.0"
