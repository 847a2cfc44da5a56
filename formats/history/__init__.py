"""What a checkpoint says of where it comes from: its manifest, and a trainer's state."""
