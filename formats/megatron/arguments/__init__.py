"""Megatron-LM's arguments, and the model that they describe."""
