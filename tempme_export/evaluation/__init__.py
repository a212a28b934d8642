"""Retrieval with an encoder: metrics, encoders side by side, the retrieval gate, `tempme-eval`."""
