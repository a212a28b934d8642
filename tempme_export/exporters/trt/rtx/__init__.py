"""TensorRT-RTX, another product than TensorRT: its parser and builder are asked about both video graphs, on a CPU."""
