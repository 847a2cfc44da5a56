"""A stage of training as a file that a person writes."""
