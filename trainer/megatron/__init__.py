"""megatron-core's model with masks, on a CPU as on a GPU."""
