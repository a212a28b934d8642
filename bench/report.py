"""Results of a benchmark: rows and samples as polars frames, Parquet and JSON."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tempme_export.bench.core.row import KINDS, SCHEMA_VERSION, Row
from tempme_export.bench.core.timing import TimingComparison
from tempme_export.errors import ParityError, UsageError
from tempme_export.files import write_file
from tempme_export.names import printable

if TYPE_CHECKING:
    import polars as pl

ROWS, SAMPLES, DOCUMENT = "bench.parquet", "samples.parquet", "bench.json"
_SAMPLE = {"profile": str, "batch": int, "round": int, "position": int, "candidate": str, "seconds": float}


def _schema(kinds: dict[str, type]) -> "dict[str, type[pl.DataType]]":
    """Column types; stated, so that a column of None keeps its type."""
    import polars as pl

    of_kind: dict[type, type[pl.DataType]] = {str: pl.String, int: pl.Int64, float: pl.Float64, bool: pl.Boolean}
    return {name: of_kind[kind] for name, kind in kinds.items()}


def frame(rows: Iterable[Row]) -> "pl.DataFrame":
    """The rows as a frame with the columns of `Row`."""
    import polars as pl

    return pl.DataFrame(printable([row.to_dict() for row in rows]), schema=_schema(KINDS))


@dataclass(frozen=True)
class Measured:
    """One comparison as it was made."""

    profile: str
    frames: int
    batch: int
    comparison: TimingComparison

    @property
    def title(self) -> str:
        """Profile and batch of the comparison, in words."""
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
    failed   candidates that were not timed, or no longer, since they do not compute what the original does
    methods  of the case beside the paper's figures, where methods were compared
    tokens   per block of every candidate as counted on the running model, and the schedule they were checked against
    stages   of end-to-end runs: one table per candidate
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
    saturations: tuple[dict[str, Any], ...] = ()
    fits: tuple[dict[str, Any], ...] = ()
    notes: tuple[str, ...] = ()
    gpu: tuple[dict[str, Any], ...] = ()
    interrupted: bool = False

    def __add__(self, other: "Report") -> "Report":
        """Both, one after the other."""
        return Report(**{one.name: _both(getattr(self, one.name), getattr(other, one.name)) for one in fields(self)})

    def remarks(self) -> list[str]:
        """Remarks for the reader of the table, one line each."""
        return [
            *(
                f"{', '.join(names)} {'is missing' if len(names) == 1 else 'are missing, for one reason'}: {reason}"
                for reason, names in self._missing_by_reason().items()
            ),
            *(f"{name} FAILED parity and is not timed: {reason}" for name, reason in self.failed.items()),
            *self.notes,
            *(f"{one.title}: {note}" for one in self.measured for note in one.comparison.notes),
            *(
                f"{one['profile']}, {one['candidate']}, batch {one['batch']}: {note}"
                for one in self.stages
                for note in one["notes"]
            ),
        ]

    def _missing_by_reason(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name, reason in self.missing.items():
            found.setdefault(reason, []).append(name)
        return found

    def check(self, *, strict: bool) -> None:
        """Raise ParityError for a failed candidate and, with `strict`, UnstableError for a ratio that is not known."""
        if self.failed:
            failures = "; ".join(f"{name}, {reason}" for name, reason in self.failed.items())
            raise ParityError(f"not what the original path computes: {failures}.")
        if strict:
            for one in self.measured:
                one.comparison.require_converged()

    def samples(self) -> "pl.DataFrame":
        """Every sample: profile, batch, round, position within the round, candidate, seconds."""
        import polars as pl

        schema = _schema(_SAMPLE)
        parts = [
            pl.DataFrame(
                {
                    "profile": one.profile,
                    "batch": one.batch,
                    "round": range(len(taken)),
                    "position": position,
                    "candidate": name,
                    "seconds": taken,
                },
                schema=schema,
            )
            for one in self.measured
            for position, name in enumerate(one.comparison.order)
            for taken in [one.comparison.timings[name].samples]
        ]
        frames = pl.concat(parts) if parts else pl.DataFrame(schema=schema)
        return frames.sort("profile", "batch", "round", "position", maintain_order=True)

    def to_dict(self) -> dict[str, Any]:
        """The run as one JSON object, without the single samples."""
        return {
            "schema": SCHEMA_VERSION,
            "rows": [row.to_dict() for row in self.rows],
            "comparisons": [one.to_dict() for one in self.measured],
            "missing": self.missing,
            "failed": self.failed,
            "methods": self.methods,
            "tokens": self.tokens,
            "stages": self.stages,
            "saturations": self.saturations,
            "fits": self.fits,
            "notes": self.notes,
            "gpu": self.gpu,
        }

    def write(self, folder: Path) -> None:
        """Write rows and samples as Parquet and the whole run as JSON into `folder`, which exists.

        The JSON comes last: where it is, the rest is complete.
        """
        write_file(folder / ROWS, frame(self.rows).write_parquet)
        write_file(folder / SAMPLES, self.samples().write_parquet)
        write_file(folder / DOCUMENT, (json.dumps(printable(self.to_dict()), indent=2) + "\n").encode())


def _both(first: Any, second: Any) -> Any:
    return first + second if isinstance(first, tuple) else first | second


def prepare_folder(folder: Path) -> None:
    """Make the folder of a report. Raises UsageError where it cannot be, or already holds one."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {folder} cannot be a folder: {error}.") from error
    if (folder / DOCUMENT).exists():
        raise UsageError(f"--out {folder} already holds a {DOCUMENT}. Name another folder, or remove that one.")
