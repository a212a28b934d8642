"""Changes between two results folders, told apart from noise (`tempme-bench compare A B`).

Two runs differ by the machine's mood, by chance, and by what was changed between them. A run interleaves its
candidates with its first one, the base. So the ratio to the base is compared: the machine's own speed cancels in it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tempme_export.bench.core.bootstrap import LEVEL, Floats, Ratio, estimate
from tempme_export.bench.core.protocol import FEWEST
from tempme_export.bench.core.row import VERSIONS, Row
from tempme_export.bench.reporting.read import Results, read_results
from tempme_export.errors import InputError

_KEY = ("profile", "method", "backend", "candidate", "precision", "batch", "device", "frames")
_OWN = ("p50_before_ms", "p50_after_ms", "ratio_before", "ratio_after")
_SAME: Mapping[str, tuple[str, ...]] = {
    "the same machine": ("cpu", "gpu", "driver", "threads"),
    "the same versions": VERSIONS,
    "the same commit": ("commit",),
    "the same weights": ("weights",),
    "the same artifact": ("artifact_sha256",),
    "the same slowdown": ("slowdown_percent",),
}

Verdict = Literal["faster", "slower", "no change", "machine drift"]
Key = tuple[Any, ...]


@dataclass(frozen=True)
class Change:
    """One row of both runs. Ratios are B over A; intervals hold for all rows of the report together at 95 %.

    row                 of B
    is_base             whether it is the first candidate, which the machine's drift shows in: the machine or the
                        original path
    p50_before_ms, ...  median time of a call in A and in B
    speed               videos/s in B over that in A
    ratio_before, ...   times as fast as the base in A and in B, the median over rounds: within a round, what slows the
                        machine cancels. None for the base, and where the runs share none
    relative            `ratio_after` over `ratio_before`
    """

    row: Row
    is_base: bool
    p50_before_ms: float
    p50_after_ms: float
    speed: Ratio
    ratio_before: float | None
    ratio_after: float | None
    relative: Ratio | None

    @property
    def judged(self) -> Ratio:
        """The change that decides: of the ratio to the base, else the change of videos/s."""
        return self.speed if self.relative is None else self.relative

    @property
    def significant(self) -> bool:
        """True where the interval of that change excludes 1."""
        return not self.judged.low <= 1 <= self.judged.high

    @property
    def verdict(self) -> Verdict:
        """In words. The base is never faster or slower: without another to hold it against, the machine may be."""
        if not self.significant:
            return "no change"
        if self.is_base:
            return "machine drift"
        return "faster" if self.judged.value > 1 else "slower"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, flat; changes in per cent, positive where B is faster."""
        return {
            **{name: getattr(self.row, name) for name in _KEY},
            **{name: getattr(self, name) for name in ("is_base", *_OWN)},
            **_percents("change", self.speed),
            **_percents("ratio_change", self.relative),
            "judged_on": "time" if self.relative is None else "ratio",
            "significant": self.significant,
            "verdict": self.verdict,
        }


def _percents(name: str, ratio: Ratio | None) -> dict[str, float | None]:
    values = {"": "value", "_low": "low", "_high": "high"}
    return {
        f"{name}{end}_percent": None if ratio is None else 100 * (getattr(ratio, field) - 1)
        for end, field in values.items()
    }


@dataclass(frozen=True)
class ComparisonReport:
    """Two runs beside each other.

    changes         rows of both
    remarks         what else differs, in words: machine, versions, weights, slowdown, rows that have not converged
    only_a, only_b  rows of one run alone, in words
    level           of each single interval, so that all judged ones hold together at 95 % (Bonferroni)
    """

    changes: tuple[Change, ...]
    remarks: tuple[str, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    level: float

    def to_dict(self) -> dict[str, Any]:
        """The report as one JSON object."""
        return {
            "changes": [change.to_dict() for change in self.changes],
            "remarks": list(self.remarks),
            "only_a": list(self.only_a),
            "only_b": list(self.only_b),
            "level": self.level,
        }


@dataclass(frozen=True)
class _Measured:
    """One row of a run with the seconds of its calls, [rounds], and those of its base, taken in the same rounds."""

    row: Row
    seconds: Floats
    base: str
    base_seconds: Floats

    @property
    def is_base(self) -> bool:
        return self.row.candidate == self.base

    @property
    def p50_ms(self) -> float:
        return float(np.median(self.seconds)) * 1e3

    @property
    def ratios(self) -> Floats:
        """Times as fast as the base in each round, [rounds]."""
        return self.base_seconds / self.seconds


def compare_results(a: Path, b: Path, *, resamples: int = 2000, seed: int = 0) -> ComparisonReport:
    """Compare two results folders, A before and B after.

    Rows are matched by profile, method, backend, candidate, precision, batch, device and frames. A candidate is judged
    by its ratio to the base (the first candidate of its comparison), where both runs have the same base; else by its
    times alone, which a remark says. The interval is `Estimate`'s, from a block bootstrap in each run, widened by
    what differs between runs of one program (`Estimate.across_runs`: without it, runs of the same are called different)
    and, against crying wolf over many rows, to the level 1 - 0.05 / rows (Bonferroni).

    Raises InputError for a folder without results or samples, of another schema, or whose samples do not belong to its
    rows.
    """
    before, after = _measured(a), _measured(b)
    shared = [key for key in before if key in after]
    level = 1 - (1 - LEVEL) / max(1, len(shared))
    remarks: list[str] = []
    changes = []
    for key in shared:
        old, new = before[key], after[key]
        changes.append(_change(old, new, level, resamples, seed))
        if old.base != new.base:
            remarks.append(
                f"{_words(key)}: beside {old.base} in A and {new.base} in B, so judged on times alone, in which the "
                "machine's own speed does not cancel"
            )
    remarks += _differences([(before[key].row, after[key].row) for key in shared])
    for name, run in (("A", before), ("B", after)):
        remarks += [f"{name}: {_words(key)} did not converge" for key, one in run.items() if one.row.converged is False]
    return ComparisonReport(
        changes=tuple(changes),
        remarks=tuple(remarks),
        only_a=tuple(_words(key) for key in before if key not in after),
        only_b=tuple(_words(key) for key in after if key not in before),
        level=level,
    )


def _change(old: _Measured, new: _Measured, level: float, resamples: int, seed: int) -> Change:
    has_ratio = old.base == new.base and not old.is_base

    def changed(before: Floats, after: Floats) -> Ratio:
        # Another seed for the other run: with the same one both would draw the same rounds, and be no longer
        # independent.
        first = estimate(before, resamples=resamples, seed=seed).across_runs()
        return estimate(after, resamples=resamples, seed=seed + 1).across_runs().minus(first).ratio(level)

    return Change(
        row=new.row,
        is_base=old.is_base and new.is_base,
        p50_before_ms=old.p50_ms,
        p50_after_ms=new.p50_ms,
        speed=changed(1 / old.seconds, 1 / new.seconds),
        ratio_before=float(np.median(old.ratios)) if has_ratio else None,
        ratio_after=float(np.median(new.ratios)) if has_ratio else None,
        relative=changed(old.ratios, new.ratios) if has_ratio else None,
    )


def _measured(folder: Path) -> dict[Key, _Measured]:
    """Every row of a run by what it is matched by. Raises InputError as `compare_results`."""
    results = read_results(folder)
    if not results.samples:
        raise InputError(
            f"found no samples.parquet beside {results.source}, expected every sample of the run, from which intervals "
            "come. Measure again with: tempme-bench --out FOLDER"
        )
    if not results.rows:
        raise InputError(
            f"found no rows in {results.source}, expected speeds of encoders: an end-to-end run has stages alone. "
            "Measure without --mode end-to-end."
        )
    found: dict[Key, _Measured] = {}
    for row in results.rows:
        key = tuple(getattr(row, name) for name in _KEY)
        if key in found:
            raise InputError(f"found two rows of {_words(key)} in {results.source}, expected one. Measure again.")
        profile, base = _comparison(results, row)
        seconds = _seconds(results, profile, row.batch, row.candidate)
        base_seconds = _seconds(results, profile, row.batch, base)
        if len(seconds) > len(base_seconds):
            raise InputError(
                f"found {len(seconds)} samples of {row.candidate} and {len(base_seconds)} of {base} beside "
                f"{results.source}, expected one of {base} in every round. Measure again."
            )
        found[key] = _Measured(row, seconds, base, base_seconds[: len(seconds)])
    return found


def _comparison(results: Results, row: Row) -> tuple[str | None, str]:
    """The profile that names the comparison a row was measured in, and its base.

    Where methods stand side by side, a row has the profile of its method, the comparison that of the first.
    """
    mine = [
        one
        for one in results.entries("comparisons")
        if row.candidate in one["order"] and (one["batch"], one["frames"]) == (row.batch, row.frames)
    ]
    exact = [one for one in mine if one.get("profile") == row.profile]
    chosen = exact or mine
    if len(chosen) != 1:
        raise InputError(
            f"found {len(chosen)} comparisons of {row.candidate} at batch {row.batch} in {results.source}, "
            "expected one. Measure again."
        )
    return chosen[0].get("profile"), chosen[0]["order"][0]


def _seconds(results: Results, profile: str | None, batch: int, candidate: str) -> Floats:
    """[rounds] float64. Raises InputError for samples that are missing, too few or no durations."""
    seconds: Sequence[float] = results.samples.get((profile, batch, candidate), ())
    if len(seconds) < FEWEST:
        raise InputError(
            f"found {len(seconds)} samples of {candidate}, {profile}, batch {batch} beside {results.source}, expected "
            f"{FEWEST} or more. Measure again."
        )
    taken = np.array(seconds, dtype=np.float64)
    if not (np.isfinite(taken) & (taken > 0)).all():
        raise InputError(
            f"found samples of {candidate}, {profile}, batch {batch} beside {results.source} that are no durations, "
            "expected seconds above 0. Measure again."
        )
    return taken


def _words(key: Key) -> str:
    profile, method, backend, candidate, precision, batch, device, frames = key
    name = candidate if candidate in (method, backend) or backend is None else f"{candidate} on {backend}"
    return ", ".join(
        str(part)
        for part in (profile, name, precision, f"batch {batch}", device, f"{frames} frames")
        if part is not None
    )


def _differences(pairs: Sequence[tuple[Row, Row]]) -> Iterator[str]:
    """Facts that the runs do not share besides their speed, one line for each fact and pair of values."""
    for title, names in _SAME.items():
        seen: dict[str, list[str]] = {}
        for old, new in pairs:
            for name in names:
                before, after = getattr(old, name), getattr(new, name)
                if before != after:
                    seen.setdefault(f"{name} {before} in A, {after} in B", []).append(old.candidate)
        for difference, candidates in seen.items():
            of = "" if len(candidates) == len(pairs) else f" ({', '.join(dict.fromkeys(candidates))})"
            yield f"not {title}: {difference}{of}"
