"""The benchmark harness; it may import everything, nothing imports it."""

if __name__ != "tempme_export.bench":
    raise ImportError("import tempme_export.bench, not the bare folder bench/")
