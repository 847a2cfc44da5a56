"""Tensors of 8 bits: the stand-in keeps parameters in none."""


class QuantizedTensor:
    """What parameters are not."""
