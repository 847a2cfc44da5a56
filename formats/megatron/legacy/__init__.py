"""Megatron's legacy format: one torch file per rank."""
