"""Artifacts behind one Runner contract: one module per backend."""
