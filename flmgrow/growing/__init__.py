"""Growing a model in training where it stands: between ranks, in memory, without the disk."""
