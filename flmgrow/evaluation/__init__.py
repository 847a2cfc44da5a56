"""What a checkpoint can do: tasks of lm-evaluation-harness, and the models that answer them."""
