"""Checkpoint and profile to an encoder: schedule, recipe, reference and fast form, and the one door to the kernels."""
