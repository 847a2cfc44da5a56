"""One training stage on megatron-core."""
