"""What a model is: named axes, a configuration, logical tensors, and a reference forward."""
