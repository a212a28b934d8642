"""Rows that belong together on the page: those that were timed side by side, and rows that one command made."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tempme_export.bench.core.row import Row
from tempme_export.bench.reporting.intervals import rate_interval
from tempme_export.bench.reporting.read import Results
from tempme_export.bench.scaling import family

CONVERGED, UNCONVERGED, UNKNOWN = "yes", "not converged", "not said"
PASSED, FAILED, UNJUDGED = "pass", "failed", "not judged"
UNNAMED = "unnamed profile"

ORIGIN = (
    *("command", "weights", "device", "cpu", "threads", "gpu", "driver", "python", "torch", "onnxruntime"),
    *("openvino", "tensorrt", "commit"),
)
"""Columns that rows of one origin share."""


WithOrigin = Row | Mapping[str, Any]
"""A source of numbers that names its origin: a row, or a table of stages."""


def value_of(row: WithOrigin, column: str) -> Any:
    """A column of either; None where it does not have it."""
    return getattr(row, column) if isinstance(row, Row) else row.get(column)


@dataclass(frozen=True)
class Origin:
    """One command on one machine with one set of versions; every number of the page names its own.

    number  from 1, in the order of the page
    rows    all that came from it
    """

    number: int
    results: Results
    rows: tuple[WithOrigin, ...]

    @property
    def name(self) -> str:
        return f"run {self.number}"

    @property
    def anchor(self) -> str:
        return f"run-{self.number}"

    def fact(self, column: str) -> str | None:
        """A column that all rows share, as text; None where it does not apply."""
        value = value_of(self.rows[0], column)
        return None if value is None else str(value)

    def values(self, column: str) -> list[Any]:
        """A column of all rows that have it."""
        return [value for row in self.rows if (value := value_of(row, column)) is not None]

    @property
    def machine(self) -> str:
        """The hardware it ran on, in words."""
        threads = self.fact("threads")
        counted = "unknown threads" if threads is None else f"{threads} thread{'' if threads == '1' else 's'}"
        cpu = f"{self.fact('cpu') or 'unknown processor'}, {counted}"
        gpu = self.fact("gpu")
        return cpu if gpu is None or (self.fact("device") or "cpu").startswith("cpu") else f"{gpu} ({cpu})"


def origins(every: Iterable[Results]) -> list[Origin]:
    """The origins of all rows, in the order they come."""
    found: dict[tuple[object, ...], list[WithOrigin]] = {}
    source: dict[tuple[object, ...], Results] = {}
    for position, results in enumerate(every):
        named: tuple[WithOrigin, ...] = (*results.rows, *results.stages_with_origin)
        for row in named:
            key = (position, *(value_of(row, column) for column in ORIGIN))
            found.setdefault(key, []).append(row)
            source[key] = results
    return [Origin(n, source[key], tuple(rows)) for n, (key, rows) in enumerate(found.items(), 1)]


@dataclass(frozen=True)
class Side:
    """One candidate within a comparison.

    low, high  95 % interval of its videos/s; None where its samples were not kept
    """

    row: Row
    origin: Origin
    low: float | None
    high: float | None

    @property
    def name(self) -> str:
        return self.row.candidate

    @property
    def converged(self) -> str:
        return {True: CONVERGED, False: UNCONVERGED, None: UNKNOWN}[self.row.converged]

    @property
    def parity(self) -> str:
        return {True: PASSED, False: FAILED, None: UNJUDGED}[self.row.parity]

    @property
    def slowdown(self) -> float:
        """Per cent it was slowed down on purpose."""
        return self.row.slowdown_percent or 0.0

    @property
    def doubts(self) -> list[str]:
        """Why this figure is not to be relied upon, in words; empty where it is."""
        said = []
        if self.parity != PASSED:
            said.append("FAILED PARITY" if self.parity == FAILED else "parity not judged")
        if self.converged != CONVERGED:
            said.append("NOT CONVERGED" if self.converged == UNCONVERGED else "not said whether it converged")
        if self.slowdown:
            said.append(f"slowed down on purpose by {self.slowdown:g} %")
        return said


@dataclass(frozen=True)
class Group:
    """Candidates timed side by side: one comparison of one results document. The first is what others refer to."""

    results: Results
    profile: str
    frames: int
    batch: int
    sides: tuple[Side, ...]
    notes: tuple[str, ...]

    @property
    def first(self) -> Side:
        return self.sides[0]

    @property
    def by_method(self) -> bool:
        """True where methods stand beside each other rather than backends."""
        return len({side.row.method for side in self.sides}) > 1

    @property
    def name(self) -> str:
        """The profile; where methods stand side by side, that which they were derived from."""
        return without_method(self.profile, self.first.row.method) if self.by_method else self.profile

    @property
    def family(self) -> str:
        """Its name without the frame count: what stays the same in a sweep over frames."""
        return family(self.name, self.frames)

    @property
    def doubtful(self) -> list[Side]:
        return [side for side in self.sides if side.doubts]


def groups(every: Sequence[Results], runs: Sequence[Origin]) -> list[Group]:
    """The comparisons of all documents, in their order; rows that none of them names come last, by their settings."""
    found = []
    for results in every:
        own = {id(row): origin for origin in runs if origin.results is results for row in origin.rows}
        left = list(results.rows)
        for compared in results.entries("comparisons"):
            rows = []
            for name in compared["order"]:
                row = _row_of(name, compared, left)
                if row is not None:
                    rows.append(row)
                    left = [other for other in left if other is not row]
            if rows:
                profile = str(compared.get("profile") or rows[0].profile or UNNAMED)
                found.append(_group(results, profile, rows, own, compared.get("notes") or ()))
        alike: dict[tuple[object, ...], list[Row]] = {}
        for row in left:
            alike.setdefault((row.profile, row.frames, row.batch, row.device), []).append(row)
        found += [_group(results, str(rows[0].profile or UNNAMED), rows, own, ()) for rows in alike.values()]
    return found


def _row_of(name: str, compared: Mapping[str, Any], rows: Iterable[Row]) -> Row | None:
    """The row of a comparison's candidate. A method's own profile is named after it, so the comparison's profile only
    decides between several."""
    settings = (name, compared["batch"], compared["frames"])
    fitting = [row for row in rows if (row.candidate, row.batch, row.frames) == settings]
    exact = [row for row in fitting if row.profile == compared.get("profile")]
    return next(iter([*exact, *fitting]), None)


def _group(
    results: Results, profile: str, rows: Sequence[Row], own: Mapping[int, Origin], notes: Iterable[str]
) -> Group:
    sides = []
    for row in rows:
        taken = results.samples.get((profile, row.batch, row.candidate), ())
        low, high = rate_interval(taken, row.batch) or (None, None)
        sides.append(Side(row, own[id(row)], low, high))
    return Group(results, profile, rows[0].frames, rows[0].batch, tuple(sides), tuple(notes))


def without_method(profile: str, method: str | None) -> str:
    """A profile's name without the method it was derived for: vit-b-32-12f-tome, tome -> vit-b-32-12f."""
    return profile.removesuffix(f"-{method}") if method else profile
