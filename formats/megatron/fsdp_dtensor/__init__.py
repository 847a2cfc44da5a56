"""Checkpoints of Megatron's own FSDP (``fsdp_dtensor``): torch's folders, with Megatron's state."""
