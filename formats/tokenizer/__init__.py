"""What turns text into a model's tokens, as files beside it."""
