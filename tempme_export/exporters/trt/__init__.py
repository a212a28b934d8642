"""The plugin graph to a TensorRT engine."""
