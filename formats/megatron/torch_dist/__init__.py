"""Megatron's distributed format ``torch_dist``."""
