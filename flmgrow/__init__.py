"""flmgrow grows and reshards Megatron checkpoints, and proves that the function did not change."""

__version__ = "0.1.0"
