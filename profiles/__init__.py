"""What to build: one TOML file per backbone, frame count and merge policy."""

if __name__ != "tempme_export.profiles":
    raise ImportError("import tempme_export.profiles, not the bare folder profiles/")
