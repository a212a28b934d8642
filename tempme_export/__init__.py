"""Token-merged CLIP video encoders (TempMe) as verified, deployable bundles.

bundle = tempme_export.export("ckpt.pt")
model = tempme_export.load(bundle)
model.similarity(["a dog runs"], ["dog.mp4", "cat.mp4"])
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

# ONNX Runtime reads it once, when it is imported: without it a thread looks up a host and writes to the home folder.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from tempme_export.artifacts.bundle import Bundle
    from tempme_export.retrieval import RetrievalModel

__all__ = ["export", "load", "verify"]


def export(checkpoint: Any, profile: Any = None, out: str | Path | None = None, **options: Any) -> "Bundle":
    """Checkpoint -> accepted bundle; see `tempme_export.pipeline.export.export`."""
    from tempme_export.errors import making

    with making("export"):
        from tempme_export.pipeline.export import export

        return export(checkpoint, profile, out, **options)


def load(
    bundle: "str | Path | Bundle", backend: str | None = None, device: str | None = None, threads: int | None = None
) -> "RetrievalModel":
    """Open a bundle for use; see `tempme_export.retrieval.load`."""
    from tempme_export.retrieval import load

    return load(bundle, backend, device, threads)


def verify(path: str | Path, **options: Any) -> Any:
    """Check a bundle's bytes and run its self-test; see `tempme_export.pipeline.verify.verify`."""
    from tempme_export.pipeline.verify import verify

    return verify(path, **options)
