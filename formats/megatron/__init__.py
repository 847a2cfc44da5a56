"""Megatron's checkpoints: what both of its formats have in common."""
