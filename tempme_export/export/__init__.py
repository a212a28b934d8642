"""Encoder -> artifact: one module per target format."""
