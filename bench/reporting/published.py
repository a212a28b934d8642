"""The figures of a GPU check as they were published before its rows were those of every measurement."""

from collections.abc import Iterator, Mapping
from typing import Any

from tempme_export.bench.core.row import SCHEMA_VERSION
from tempme_export.encoder.profile import load_profile

_CANDIDATES = {
    "original": "original",
    "original, autocast": "original-{}",
    "fused": "torch-{}",
    "fused, CUDA graph": "graph-{}",
    "fused, compiled, CUDA graph": "graph-{}-compile",
}
"""Path -> candidate; `{}` is the precision."""


def is_published(document: Mapping[str, Any]) -> bool:
    """True for a document of that form."""
    return "rows" not in document and isinstance(document.get("encoder"), list)


def from_published(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document of today with its rows and what was timed side by side. Intervals were not published."""
    measured = list(_rows(document))
    groups: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
    for one, row in zip(document["encoder"], measured, strict=True):
        groups.setdefault((row["profile"], row["batch"], one["group"]), []).append(row)
    comparisons = [
        {
            "profile": profile,
            "frames": rows[0]["frames"],
            "batch": batch,
            "order": [row["candidate"] for row in rows],
            "notes": [],
        }
        for (profile, batch, _), rows in groups.items()
    ]
    ordered = [row for rows in groups.values() for row in rows]
    return {"schema": SCHEMA_VERSION, "rows": ordered, "comparisons": comparisons}


def _rows(document: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    machine = document["machine"]
    shared = {
        **{name: document[name] for name in ("command", "commit", "weights")},
        **{"time": document["date"], "gpu": machine["gpu"], "python": machine["python"], "torch": machine["torch"]},
        **{"method": "tempme", "device": "cuda", "clock": "device"},
    }
    for one in document["encoder"]:
        name = _CANDIDATES[one["path"]].format(one["precision"])
        yield {
            **shared,
            **{key: one[key] for key in ("profile", "precision", "batch", "videos_per_s", "tflop_s")},
            "candidate": name,
            "backend": name,
            "frames": load_profile(one["profile"]).frames,
            "p50_ms": one["ms"],
            "device_ms": one["ms"],
            "one_minus_cosine": one["one_minus_cosine"],
            "changed_decisions": _share(one["percent_decisions_changed"]),
            "peak_tflop_s": one["tflop_s"] / (one["percent_of_peak"] / 100),
            "load_s": one["ready_s"],
        }


def _share(percent: float | None) -> float | None:
    return None if percent is None else percent / 100
