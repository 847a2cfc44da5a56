"""A folder of torch's distributed checkpoints: what lies where in it."""
