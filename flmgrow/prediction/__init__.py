"""What a large model's loss will be, from the runs of small ones."""
