"""A results folder -> plain values, checked before anything is drawn from them."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tempme_export.errors import InputError
from tempme_export.names import command

if TYPE_CHECKING:
    import polars as pl

SCHEMA = 2
DOCUMENT, SAMPLES = "bench.json", "samples.parquet"

Row = Mapping[str, Any]
SampleKey = tuple[str | None, int, str]
"""Profile, videos per call, contender."""

_NUMBERS = frozenset(
    (
        *("frames", "batch", "videos_per_s", "frames_per_s", "ratio", "ratio_low", "ratio_high"),
        *("p50_ms", "p90_ms", "p99_ms", "mean_ms", "cov", "samples", "warmup", "resident_ms", "device_ms"),
        *("gmacs", "gflops", "final_clips", "final_tokens", "load_mb", "encode_mb", "device_mb", "artifact_mb"),
        *("build_s", "load_s", "one_minus_cosine", "centred_loss", "handicap_percent", "threads", "load_average"),
    )
)
_WORDS = frozenset(
    (
        *("contender", "backend", "method", "profile", "weights", "precision", "device", "artifact_sha256"),
        *("cpu", "gpu", "driver", "python", "torch", "onnxruntime", "openvino", "tensorrt"),
        *("commit", "time", "command"),
    )
)
_ANSWERS = frozenset({"stable", "parity"})
_WITHOUT_SAMPLES = f"Remove {SAMPLES} to report without intervals of videos/s, or measure again."
_NEEDED = ("contender", "frames", "batch", "videos_per_s")
_LISTS = ("comparisons", "tokens", "stages", "fits", "knees")
_ENTRIES: Mapping[str, tuple[str, ...]] = {
    "comparisons": ("frames", "batch", "order"),
    "tokens": ("method", "frames", "clips", "attention", "mlp"),
    "stages": ("contender", "batch", "rows"),
    "fits": ("quantity", "against", "contender", "form", "coefficients", "low", "high", "x"),
    "knees": ("contender", "batch", "videos_per_s", "best_batch", "best_videos_per_s"),
}


@dataclass(frozen=True)
class Results:
    """One results document.

    source    where the document lies, in words
    document  as it was written, with the lists and objects that may be missing put in empty
    samples   seconds of every call in the order measured; empty where the samples were not kept
    """

    source: str
    document: Mapping[str, Any]
    samples: Mapping[SampleKey, Sequence[float]] = field(default_factory=dict)

    @classmethod
    def of(
        cls, document: Mapping[str, Any], samples: "pl.DataFrame | None" = None, *, source: str = "this run"
    ) -> "Results":
        """Results of a document that is at hand: `Report.to_dict()`, and `Report.samples()` beside it.

        Raises InputError for what is not a results document of this schema.
        """
        return cls(source, _checked(document, source), {} if samples is None else _by_contender(samples, source))

    @property
    def rows(self) -> Sequence[Row]:
        """One mapping per contender and batch, the columns of `bench.report.Row`."""
        return self.document["rows"]

    def entries(self, name: str) -> Sequence[Mapping[str, Any]]:
        """A list of the document: comparisons, tokens, stages, fits or knees."""
        return self.document[name]

    @property
    def traced_stages(self) -> Sequence[Row]:
        """Tables of stages that say which command made them."""
        return [table for table in self.entries("stages") if table.get("command") is not None]

    @property
    def notes(self) -> Sequence[str]:
        """Where the run was cut short, in words."""
        return [str(note) for note in self.document["notes"]]

    @property
    def missing(self) -> Mapping[str, str]:
        """Contenders that could not be loaded, and why."""
        return self.document["missing"]

    @property
    def failed(self) -> Mapping[str, str]:
        """Contenders that are not timed since they do not compute what the original does, and how."""
        return self.document["failed"]


def read_results(path: Path) -> Results:
    """Results from a folder with bench.json, or from the file itself; the samples from samples.parquet beside it.

    Raises InputError where there is none, or it is not a results document of this schema.
    """
    file = path / DOCUMENT if path.is_dir() else path
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        folder = path if path == file.parent or not path.suffix else path.parent
        raise InputError(
            f"found no {file}; expected a folder with {DOCUMENT}, or that file. Measure with: "
            f"{command('tempme-bench', '--out', folder)}"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"found {file}, which cannot be read as JSON ({error}); expected the {DOCUMENT} that tempme-bench --out "
            "writes. Measure again, or name another file."
        ) from error
    return Results.of(document, _samples(file.parent / SAMPLES), source=str(file))


def _checked(document: Any, source: str) -> dict[str, Any]:
    """The document with its parts of the right kind. Raises InputError for a foreign one."""
    if not isinstance(document, Mapping) or "rows" not in document:
        raise _foreign(source, "no results of tempme-bench")
    schema = document.get("schema")
    if schema != SCHEMA:
        raise InputError(
            f"found schema {schema!r} in {source}; expected {SCHEMA}. Measure again with this version, or make the "
            "report with the version that measured."
        )
    whole: dict[str, Any] = {**dict.fromkeys((*_LISTS, "notes"), ()), "missing": {}, "failed": {}, **document}
    for name in ("rows", *_LISTS):
        if not isinstance(whole[name], list | tuple) or not all(isinstance(item, Mapping) for item in whole[name]):
            raise _foreign(source, f"`{name}` that is not a list of objects")
        for key in _ENTRIES.get(name, ()):
            if any(item.get(key) is None for item in whole[name]):
                raise _foreign(source, f"an entry of `{name}` without `{key}`")
    for name in ("missing", "failed"):
        if not isinstance(whole[name], Mapping) or not all(isinstance(said, str) for said in whole[name].values()):
            raise _foreign(source, f"`{name}` that does not give a reason per name")
    for row in whole["rows"]:
        _check_row(row, source)
    return whole


def _check_row(row: Row, source: str) -> None:
    for key in _NEEDED:
        if row.get(key) is None:
            raise _foreign(source, f"a row without `{key}`")
    for key, value in row.items():
        if value is None:
            continue
        if key in _NUMBERS and not is_number(value):
            raise _foreign(source, f"`{key}` {value!r}, not a finite number, in a row")
        if key in _WORDS and not isinstance(value, str):
            raise _foreign(source, f"`{key}` {value!r}, not a text, in a row")
        if key in _ANSWERS and not isinstance(value, bool):
            raise _foreign(source, f"`{key}` {value!r}, neither true nor false, in a row")


def is_number(value: Any) -> bool:
    """Whether `value` is a finite number, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _foreign(source: str, found: str) -> InputError:
    return InputError(
        f"found {found} in {source}; expected the {DOCUMENT} that tempme-bench --out writes. Name that file, or "
        "measure again."
    )


def _samples(file: Path) -> "pl.DataFrame | None":
    """Every sample. None where the file is not there; raises InputError where it cannot be read."""
    if not file.is_file():
        return None
    import polars as pl

    try:
        return pl.read_parquet(file)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError(
            f"found {file}, which cannot be read as Parquet ({error}); expected every sample of the run. "
            f"{_WITHOUT_SAMPLES}"
        ) from error


def _by_contender(samples: "pl.DataFrame", source: str) -> dict[SampleKey, tuple[float, ...]]:
    """Seconds by contender, in the order of the rounds. Raises InputError for foreign columns."""
    needed = {"profile", "batch", "round", "contender", "seconds"}
    if not needed <= set(samples.columns):
        raise InputError(
            f"found samples with the columns {', '.join(samples.columns)} beside {source}; expected "
            f"{', '.join(sorted(needed))} among them. {_WITHOUT_SAMPLES}"
        )
    grouped = samples.sort("round", maintain_order=True).group_by("profile", "batch", "contender").agg("seconds")
    return {(profile, batch, name): tuple(seconds) for profile, batch, name, seconds in grouped.iter_rows()}
