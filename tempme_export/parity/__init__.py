"""Artifacts against the reference: limits, self-test, checks, verdicts."""
