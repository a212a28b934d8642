"""Training through the merges: the differentiable encoder, the loop, `tempme-train`."""
