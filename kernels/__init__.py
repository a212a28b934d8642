"""Token matching and merging, from definition to GPU; knows no models and no files."""

if __name__ != "tempme_export.kernels":
    raise ImportError("import tempme_export.kernels, not the bare folder kernels/")

SNAP_STEPS = 2**20  # scores are compared as multiples of 1 / SNAP_STEPS (spec section 10)
