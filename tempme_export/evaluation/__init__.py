"""What a retrieval model is for: metrics, encoders side by side, the retrieval gate, `tempme-eval`."""
