"""Rows that belong together on the page: those that were timed side by side, and rows that one command made."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tempme_export.bench.core.bootstrap import estimate
from tempme_export.bench.core.row import VERSIONS, Row
from tempme_export.bench.reporting.read import Results
from tempme_export.bench.scaling import family
from tempme_export.bench.tables.table import Bad

PARITY = {True: "pass", False: Bad("failed"), None: Bad("not judged")}
UNNAMED = "unnamed profile"
FEWEST = 5
_RESAMPLES, _SEED = 2000, 0

ORIGIN = ("command", "weights", "device", "cpu", "threads", "gpu", "driver", *VERSIONS, "commit")
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


@dataclass(frozen=True, kw_only=True)
class Side(Row):
    """A row within its comparison.

    low, high  95 % interval of its videos/s; None where its samples were not kept
    """

    origin: Origin
    low: float | None
    high: float | None

    @property
    def doubts(self) -> list[str]:
        """Why this figure is not to be relied upon, in words; empty where it is."""
        said = []
        if not self.parity:
            said.append("parity not judged" if self.parity is None else "FAILED PARITY")
        if not self.converged:
            said.append("not said whether it converged" if self.converged is None else "NOT CONVERGED")
        if self.slowdown_percent:
            said.append(f"slowed down on purpose by {self.slowdown_percent:g} %")
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
    def results_id(self) -> int:
        """Equal for the comparisons of one document."""
        return id(self.results)

    @property
    def device(self) -> str | None:
        return self.first.device

    @property
    def by_method(self) -> bool:
        """True where methods stand beside each other rather than backends."""
        return len({side.method for side in self.sides}) > 1

    @property
    def name(self) -> str:
        """The profile; where methods stand side by side, that which they were derived from."""
        return without_method(self.profile, self.first.method) if self.by_method else self.profile

    @property
    def family(self) -> str:
        """Its name without the frame count: what stays the same in a sweep over frames."""
        return family(self.name, self.frames)

    @property
    def fastest(self) -> Side | None:
        """Of those whose figure can be relied upon."""
        return max((side for side in self.sides if not side.doubts), key=lambda side: side.videos_per_s, default=None)

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
        sides.append(Side(**vars(row), origin=own[id(row)], low=low, high=high))
    return Group(results, profile, rows[0].frames, rows[0].batch, tuple(sides), tuple(notes))


def rate_interval(seconds: Sequence[float], batch: int) -> tuple[float, float] | None:
    """Videos/s: `batch` over the 95 % interval of the median call, which took `seconds`, in the order measured.

    By a block bootstrap, so that samples that depend on those before them do not narrow it. None for fewer than five
    samples, of which no spread can be told.
    """
    if len(seconds) < FEWEST:
        return None
    median = estimate(np.asarray(seconds, dtype=np.float64), resamples=_RESAMPLES, seed=_SEED).ratio()
    return batch / median.high, batch / median.low


def without_method(profile: str, method: str | None) -> str:
    """A profile's name without the method it was derived for: vit-b-32-12f-tome, tome -> vit-b-32-12f."""
    return profile.removesuffix(f"-{method}") if method else profile
