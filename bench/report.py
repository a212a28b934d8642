"""Results of a benchmark: one `Row` per contender and batch, as a polars frame, Parquet, JSON and CSV."""

import dataclasses
import json
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from tempme_export.bench.timing import Comparison
from tempme_export.errors import ParityError, UsageError
from tempme_export.files import write_file
from tempme_export.names import printable

ROWS, SAMPLES, DOCUMENT, CSV = "bench.parquet", "samples.parquet", "bench.json", "bench.csv"
SCHEMA_VERSION = 2


@dataclass(frozen=True)
class Row:
    """One contender at one batch size; the columns of every table and file, in this order.

    contender         what was timed beside others: a backend's name or a method's key
    weights           checkpoint the weights came from, or that they are random
    videos_per_s      batch over the median time of a call; frames_per_s likewise
    ratio             times as fast as the first contender, the median over rounds, with the 95 % interval that
                      another run should agree with
    cov               standard deviation over mean of the samples
    warmup            calls before the first sample that counts
    resident_ms       median time of a call whose videos already lie on the GPU; None on a CPU
    device_ms         the same between events of the device
    gmacs, gflops     per video: the paper's convention, and true floating-point operations
    final_clips       per video after the last block; final_tokens per clip
    load_mb           resident memory of this process that loading added, in 1e6 bytes
    encode_mb         the most that encoding added to that
    device_mb         the most that torch held on the GPU while encoding
    build_s           from weights to the artifact; None where the artifact was there or none is needed
    load_s            from weights or artifact to a runner that is ready
    one_minus_cosine  largest distance of an embedding from the original path's, on the inputs measured
    centred_loss      the same distance after the inputs' mean embedding is subtracted from both
    parity            whether that lies within the tolerance
    artifact_mb, artifact_sha256
                      of the file the backend runs; None where it runs from weights
    handicap_percent  by how much it was slowed down on purpose, to test the harness itself
    time              when the measurement was done, ISO 8601 in UTC
    """

    contender: str
    backend: str
    method: str
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
    resident_ms: float | None
    device_ms: float | None
    gmacs: float
    gflops: float
    final_clips: int
    final_tokens: int
    load_mb: float | None
    encode_mb: float | None
    device_mb: float | None
    build_s: float | None
    load_s: float
    one_minus_cosine: float
    centred_loss: float
    parity: bool
    artifact_mb: float | None
    artifact_sha256: str | None
    handicap_percent: float
    cpu: str
    threads: int
    load_average: float | None
    gpu: str | None
    driver: str | None
    python: str
    torch: str | None
    onnxruntime: str | None
    openvino: str | None
    tensorrt: str | None
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
SAMPLES_SCHEMA: dict[str, type[pl.DataType]] = {
    "profile": pl.String,
    "batch": pl.Int64,
    "round": pl.Int64,
    "position": pl.Int64,
    "contender": pl.String,
    "seconds": pl.Float64,
}


def frame(rows: Iterable[Row]) -> pl.DataFrame:
    """The rows as a frame with the columns of `Row`."""
    return pl.DataFrame(printable([dataclasses.asdict(row) for row in rows]), schema=SCHEMA)


@dataclass(frozen=True)
class Measured:
    """One comparison as it was made."""

    profile: str
    frames: int
    batch: int
    comparison: Comparison

    @property
    def title(self) -> str:
        """Which one, in words."""
        return f"{self.profile}, batch {self.batch}"

    def to_dict(self) -> dict[str, Any]:
        """Without the samples."""
        return {
            "profile": self.profile,
            "frames": self.frames,
            "batch": self.batch,
            "order": self.comparison.order,
            "warmup_windows": self.comparison.warmup_windows,
            "notes": self.comparison.notes,
        }


@dataclass(frozen=True)
class Report:
    """A whole run.

    missing  backends that could not be loaded, and why
    failed   contenders that were not timed, or no longer, since they do not compute what the original does
    methods  of the case beside the paper's figures, where methods were compared
    tokens   per block of every contender as counted on the running model, and the schedule they were checked against
    stages   of end-to-end runs: one table per contender
    notes    where the run was cut short, in words
    gpu      facts of the GPU before and after, where one was measured
    """

    rows: tuple[Row, ...] = ()
    measured: tuple[Measured, ...] = ()
    missing: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    methods: tuple[dict[str, Any], ...] = ()
    tokens: tuple[dict[str, Any], ...] = ()
    stages: tuple[dict[str, Any], ...] = ()
    knees: tuple[dict[str, Any], ...] = ()
    fits: tuple[dict[str, Any], ...] = ()
    notes: tuple[str, ...] = ()
    gpu: tuple[dict[str, Any], ...] = ()
    interrupted: bool = False

    def __add__(self, other: "Report") -> "Report":
        """Both, one after the other."""
        return Report(
            rows=self.rows + other.rows,
            measured=self.measured + other.measured,
            missing=self.missing | other.missing,
            failed=self.failed | other.failed,
            methods=self.methods + other.methods,
            tokens=self.tokens + other.tokens,
            stages=self.stages + other.stages,
            knees=self.knees + other.knees,
            fits=self.fits + other.fits,
            notes=self.notes + other.notes,
            gpu=self.gpu + other.gpu,
            interrupted=self.interrupted or other.interrupted,
        )

    def remarks(self) -> list[str]:
        """What a reader of the table has to know besides, one line each."""
        return [
            *(f"{name} is missing: {reason}" for name, reason in self.missing.items()),
            *(f"{name} FAILED parity and is not timed: {reason}" for name, reason in self.failed.items()),
            *self.notes,
            *(f"{one.title}: {note}" for one in self.measured for note in one.comparison.notes),
            *(
                f"{one.title}: {', '.join(one.comparison.unstable)} did NOT SETTLE, do not rely on these speeds and "
                "ratios"
                for one in self.measured
                if one.comparison.unstable
            ),
        ]

    def check(self, *, strict: bool) -> None:
        """Raise ParityError for a failed contender and, with `strict`, UnstableError for an unsettled one."""
        if self.failed:
            failures = "; ".join(f"{name}, {reason}" for name, reason in self.failed.items())
            raise ParityError(f"not what the original path computes: {failures}.")
        if strict:
            for one in self.measured:
                one.comparison.require_stable()

    def samples(self) -> pl.DataFrame:
        """Every sample: profile, batch, round, position within the round, contender, seconds."""
        parts = [
            pl.DataFrame(
                {
                    "profile": one.profile,
                    "batch": one.batch,
                    "round": range(len(taken)),
                    "position": position,
                    "contender": name,
                    "seconds": taken,
                },
                schema=SAMPLES_SCHEMA,
            )
            for one in self.measured
            for position, name in enumerate(one.comparison.order)
            for taken in [one.comparison.timings[name].samples]
        ]
        frames = pl.concat(parts) if parts else pl.DataFrame(schema=SAMPLES_SCHEMA)
        return frames.sort("profile", "batch", "round", "position", maintain_order=True)

    def to_dict(self) -> dict[str, Any]:
        """The run as one JSON object, without the single samples."""
        return {
            "schema": SCHEMA_VERSION,
            "rows": [dataclasses.asdict(row) for row in self.rows],
            "comparisons": [one.to_dict() for one in self.measured],
            "missing": self.missing,
            "failed": self.failed,
            "methods": self.methods,
            "tokens": self.tokens,
            "stages": self.stages,
            "knees": self.knees,
            "fits": self.fits,
            "notes": self.notes,
            "gpu": self.gpu,
        }

    def write(self, folder: Path, *, csv: bool = False) -> None:
        """Write rows and samples as Parquet, the whole run as JSON and, if asked, the rows as CSV into `folder`,
        which exists. The JSON comes last: where it is, the rest is complete."""
        rows = frame(self.rows)
        write_file(folder / ROWS, rows.write_parquet)
        write_file(folder / SAMPLES, self.samples().write_parquet)
        if csv:
            write_file(folder / CSV, rows.write_csv)
        write_file(folder / DOCUMENT, (json.dumps(printable(self.to_dict()), indent=2) + "\n").encode())


def prepare_folder(folder: Path) -> None:
    """Make the folder of a report. Raises UsageError where it cannot be, or already holds one."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {folder} cannot be a folder: {error}.") from error
    if (folder / DOCUMENT).exists():
        raise UsageError(f"--out {folder} already holds a {DOCUMENT}. Name another folder, or remove that one.")
