"""Results of a benchmark: one `Row` per backend and batch, as a polars frame, Parquet and JSON."""

import dataclasses
import json
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from tempme_export.bench.timing import Comparison
from tempme_export.errors import ParityError, UsageError

ROWS, SAMPLES, DOCUMENT = "bench.parquet", "samples.parquet", "bench.json"


@dataclass(frozen=True)
class Row:
    """One backend at one batch size; the columns of every table and file, in this order.

    weights            checkpoint the weights came from, or that they are random
    videos_per_s       batch over the median time of a call; frames_per_s likewise
    ratio              times as fast as the original path, with its 95 % interval
    cov                standard deviation over mean of the samples
    warmup             calls before the first sample that counts
    gmacs, gflops      per video: the paper's convention, and true floating-point operations
    final_tokens       per clip after the last block
    peak_rss_mb        of the process so far, in 1e6 bytes, with every compared backend loaded
    build_s            from weights to the artifact; None where the artifact was there or none is needed
    load_s             from weights or artifact to a runner that is ready
    one_minus_cosine   largest distance of an embedding from the original path's, on the inputs measured
    parity             whether that lies within the tolerance
    artifact_sha256    of the file the backend runs; None where it runs from weights
    time               when the measurement was done, ISO 8601 in UTC
    """

    backend: str
    profile: str
    weights: str
    frames: int
    batch: int
    precision: str
    device: str
    videos_per_s: float
    frames_per_s: float
    ratio: float
    ratio_low: float
    ratio_high: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    mean_ms: float
    cov: float
    samples: int
    warmup: int
    stable: bool
    gmacs: float
    gflops: float
    final_tokens: int
    peak_rss_mb: float | None
    build_s: float | None
    load_s: float
    one_minus_cosine: float
    parity: bool
    artifact_sha256: str | None
    cpu: str
    threads: int
    python: str
    torch: str | None
    onnxruntime: str | None
    commit: str | None
    time: str
    command: str


_TYPES: dict[type, type[pl.DataType]] = {
    str: pl.String,
    int: pl.Int64,
    float: pl.Float64,
    bool: pl.Boolean,
}


def _column_type(annotation: Any) -> type[pl.DataType]:
    if isinstance(annotation, types.UnionType):
        annotation = next(kind for kind in typing.get_args(annotation) if kind is not types.NoneType)
    return _TYPES[annotation]


SCHEMA = {field.name: _column_type(field.type) for field in dataclasses.fields(Row)}
"""Column types; stated, so that a column of None keeps its type."""


def frame(rows: Iterable[Row]) -> pl.DataFrame:
    """The rows as a frame with the columns of `Row`."""
    return pl.DataFrame([dataclasses.asdict(row) for row in rows], schema=SCHEMA)


@dataclass(frozen=True)
class Report:
    """A whole run.

    comparisons  by batch size
    missing      backends that could not be loaded, and why
    failed       backends that were not timed, or no longer, since they do not compute what the original does
    """

    rows: tuple[Row, ...]
    comparisons: dict[int, Comparison]
    missing: dict[str, str]
    failed: dict[str, str]

    def remarks(self) -> list[str]:
        """What a reader of the table has to know besides, one line each."""
        return [
            *(f"{name} is missing: {reason}" for name, reason in self.missing.items()),
            *(f"{name} FAILED parity and is not timed: {reason}" for name, reason in self.failed.items()),
            *(f"batch {batch}: {note}" for batch, run in self.comparisons.items() for note in run.notes),
            *(
                f"batch {batch}: {', '.join(run.unstable)} did NOT SETTLE, do not rely on these speeds and ratios"
                for batch, run in self.comparisons.items()
                if run.unstable
            ),
        ]

    def check(self, *, strict: bool) -> None:
        """Raise ParityError for a failed backend and, with `strict`, UnstableError for an unsettled one."""
        if self.failed:
            failures = "; ".join(f"{name}, {reason}" for name, reason in self.failed.items())
            raise ParityError(f"not what the original path computes: {failures}.")
        if strict:
            for comparison in self.comparisons.values():
                comparison.require_stable()

    def samples(self) -> pl.DataFrame:
        """Every sample: batch, round, position within the round, backend, seconds."""
        columns: dict[str, list[Any]] = {
            "batch": [],
            "round": [],
            "position": [],
            "backend": [],
            "seconds": [],
        }
        for batch, comparison in self.comparisons.items():
            for position, backend in enumerate(comparison.order):
                taken = comparison.timings[backend].samples
                columns["batch"] += [batch] * len(taken)
                columns["round"] += range(len(taken))
                columns["position"] += [position] * len(taken)
                columns["backend"] += [backend] * len(taken)
                columns["seconds"] += taken
        return pl.DataFrame(columns).sort("batch", "round", "position")

    def to_dict(self) -> dict[str, Any]:
        """The run as one JSON object, without the single samples."""
        return {
            "rows": [dataclasses.asdict(row) for row in self.rows],
            "comparisons": [
                {
                    "batch": batch,
                    "order": comparison.order,
                    "warmup_windows": comparison.warmup_windows,
                    "notes": comparison.notes,
                }
                for batch, comparison in self.comparisons.items()
            ],
            "missing": self.missing,
            "failed": self.failed,
        }

    def write(self, folder: Path) -> None:
        """Write rows and samples as Parquet and the whole run as JSON into `folder`, which exists."""
        frame(self.rows).write_parquet(folder / ROWS)
        self.samples().write_parquet(folder / SAMPLES)
        (folder / DOCUMENT).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")


def prepare_folder(folder: Path) -> None:
    """Make the folder of a report. Raises UsageError where it cannot be, or already holds one."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {folder} cannot be a folder: {error}.") from error
    if (folder / DOCUMENT).exists():
        raise UsageError(f"--out {folder} already holds a {DOCUMENT}. Name another folder, or remove that one.")
