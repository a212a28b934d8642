"""A results folder -> plain values, checked before anything is drawn from them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tempme_export.bench.core.row import EARLIER, SCHEMA_VERSION, Row, upgraded
from tempme_export.bench.report import DOCUMENT, SAMPLES
from tempme_export.errors import InputError
from tempme_export.names import command

if TYPE_CHECKING:
    import polars as pl

SampleKey = tuple[str | None, int, str]
"""Profile, videos per call, candidate."""

_WITHOUT_SAMPLES = f"Remove {SAMPLES} to report without intervals of videos/s, or measure again."
_LISTS = ("comparisons", "tokens", "stages", "fits", "saturations")
_ENTRIES: Mapping[str, tuple[str, ...]] = {
    "comparisons": ("frames", "batch", "order"),
    "tokens": ("method", "frames", "clips", "attention", "mlp"),
    "stages": ("candidate", "batch", "rows"),
    "fits": ("quantity", "against", "candidate", "form", "coefficients", "low", "high", "x"),
    "saturations": ("candidate", "batch", "videos_per_s", "best_batch", "best_videos_per_s"),
}


@dataclass(frozen=True)
class Results:
    """One results document.

    source    where the document lies, in words
    document  as it was written, with the lists and objects that may be missing put in empty
    rows      one per candidate and batch
    samples   seconds of every call in the order measured; empty where the samples were not kept
    """

    source: str
    document: Mapping[str, Any]
    rows: Sequence[Row]
    samples: Mapping[SampleKey, Sequence[float]] = field(default_factory=dict)

    @classmethod
    def of(
        cls, document: Mapping[str, Any], samples: "pl.DataFrame | None" = None, *, source: str = "this run"
    ) -> "Results":
        """Results of a document that is at hand: `Report.to_dict()`, and `Report.samples()` beside it.

        Raises InputError for what is not a results document of this schema.
        """
        whole = _checked(document, source)
        taken = {} if samples is None else _by_candidate(samples, source)
        return cls(source, whole, _rows(whole, source), taken)

    def entries(self, name: str) -> Sequence[Mapping[str, Any]]:
        """A list of the document: comparisons, tokens, stages, fits or saturations."""
        return self.document[name]

    @property
    def stages_with_origin(self) -> Sequence[Mapping[str, Any]]:
        """Tables of stages that say which command made them."""
        return [table for table in self.entries("stages") if table.get("command") is not None]

    @property
    def notes(self) -> Sequence[str]:
        """The point at which the run was cut short, in words."""
        return [str(note) for note in self.document["notes"]]

    @property
    def missing(self) -> Mapping[str, str]:
        """Candidates that could not be loaded, and why."""
        return self.document["missing"]

    @property
    def failed(self) -> Mapping[str, str]:
        """Candidates that are not timed since they do not compute what the original does, and how."""
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
            f"found no {file}, expected a folder with {DOCUMENT}, or that file. Measure with: "
            f"{command('tempme-bench', '--out', folder)}"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"found {file}, which cannot be read as JSON ({error}), expected the {DOCUMENT} that tempme-bench --out "
            "writes. Measure again, or name another file."
        ) from error
    return Results.of(document, _samples(file.parent / SAMPLES), source=str(file))


def _checked(document: Any, source: str) -> dict[str, Any]:
    """The document with its parts of the right kind. Raises InputError for a foreign one."""
    if not isinstance(document, Mapping) or "rows" not in document:
        raise _foreign(source, "no results of tempme-bench")
    schema = document.get("schema")
    if schema not in (EARLIER, SCHEMA_VERSION):
        raise InputError(
            f"found schema {schema!r} in {source}, expected {SCHEMA_VERSION} or {EARLIER}. Measure again with this "
            "version, or make the report with the version that measured."
        )
    if schema == EARLIER:
        document = upgraded(document)
    whole: dict[str, Any] = {**dict.fromkeys((*_LISTS, "notes"), ()), "missing": {}, "failed": {}, **document}
    for name in ("rows", *_LISTS):
        if not isinstance(whole[name], list | tuple) or not all(isinstance(item, Mapping) for item in whole[name]):
            raise _foreign(source, f"`{name}` that is not a list of objects")
        if schema == EARLIER:
            whole[name] = [upgraded(item) for item in whole[name]]
        if name == "tokens":  # what runs compiled cannot be watched, and says why
            whole[name] = [item for item in whole[name] if not (item.get("reason") and item.get("clips") is None)]
        for key in _ENTRIES.get(name, ()):
            if any(item.get(key) is None for item in whole[name]):
                raise _foreign(source, f"an entry of `{name}` without `{key}`")
    for name in ("missing", "failed"):
        if not isinstance(whole[name], Mapping) or not all(isinstance(said, str) for said in whole[name].values()):
            raise _foreign(source, f"`{name}` that does not give a reason per name")
    return whole


def _rows(document: Mapping[str, Any], source: str) -> tuple[Row, ...]:
    try:
        return tuple(Row.read(row) for row in document["rows"])
    except ValueError as error:
        raise _foreign(source, str(error)) from error


def _foreign(source: str, found: str) -> InputError:
    return InputError(
        f"found {found} in {source}, expected the {DOCUMENT} that tempme-bench --out writes. Name that file, or "
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
            f"found {file}, which cannot be read as Parquet ({error}), expected every sample of the run. "
            f"{_WITHOUT_SAMPLES}"
        ) from error


def _by_candidate(samples: "pl.DataFrame", source: str) -> dict[SampleKey, tuple[float, ...]]:
    """Seconds by candidate, in the order of the rounds. Raises InputError for foreign columns."""
    if "contender" in samples.columns:
        samples = samples.rename({"contender": "candidate"})
    needed = {"profile", "batch", "round", "candidate", "seconds"}
    if not needed <= set(samples.columns):
        raise InputError(
            f"found samples with the columns {', '.join(samples.columns)} beside {source}, expected "
            f"{', '.join(sorted(needed))} among them. {_WITHOUT_SAMPLES}"
        )
    grouped = samples.sort("round", maintain_order=True).group_by("profile", "batch", "candidate").agg("seconds")
    return {(profile, batch, name): tuple(seconds) for profile, batch, name, seconds in grouped.iter_rows()}
