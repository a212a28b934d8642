"""Stages, methods and sweeps of a run, and what changed between two runs."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tempme_export.bench.tables.table import (
    COSINE,
    MINUS,
    Column,
    Table,
    distances,
    fixed,
    percents,
    products,
    tabled,
    texts,
    whole,
    words,
)

if TYPE_CHECKING:
    from tempme_export.bench.comparing import Change, ComparisonReport

Values = Mapping[str, Any]
"""An entry of a results document."""

JUDGED = (Column(COSINE, "one_minus_cosine", distances), Column("parity", "parity", words))
"""Of entries that are completed by what their rows say."""

_STAGES = (
    *(Column("candidate", "of", words), Column("stage", "stage", words), Column("p50 ms", "p50_ms")),
    *(Column("p90 ms", "p90_ms"), Column("share, %", "share", percents), Column("videos/s", "videos_per_s")),
)


def stages_of(one: Values) -> str:
    """Name of a table of stages."""
    profile = f"{one['profile']}, " if one.get("profile") else ""
    return f"{profile}{one['candidate']}, batch {one['batch']}"


def stage_tables(entries: Sequence[Values], more: Sequence[Column] = ()) -> Iterator[Table]:
    """The whole way of a video, stage by stage, with `more` columns of an entry; without any, nothing."""
    if not entries:
        return
    rows = [{**one, **row, "of": stages_of(one)} for one in entries for row in _stages(one)]
    yield tabled(
        "Milliseconds of one video by stage. The slowest bounds the whole way, also where all work at once.",
        [*_STAGES, *more],
        rows,
    )


def _stages(one: Values) -> Iterator[Values]:
    for row in one["rows"]:
        yield {**row, "stage": f"{row['stage']}, the limit" if row["stage"] == one.get("limit") else row["stage"]}
    for order, key in (
        ("one after the other", "sequential_videos_per_s"),
        ("overlapped, at most", "overlapped_videos_per_s"),
    ):
        if one.get(key) is not None:
            yield {"stage": f"whole way, {order}", "videos_per_s": one[key]}


def method_tables(methods: Sequence[Values]) -> Iterator[Table]:
    """Methods as counted here beside what the paper prints, and why some are not measured; without any, nothing."""
    if methods:
        yield tabled(
            "Methods: counted here and printed in the paper, whose videos/s are of an A100.", _METHODS, methods
        )
    left_out = [one for one in methods if one["reason"]]
    if left_out:
        reason = (Column("method", "key", words), Column("reason", "reason", words))
        yield tabled("Methods that were not measured", reason, left_out)


_METHODS = (
    *(Column("method", "key", words), Column("GMACs", "gmacs"), Column("printed", "paper_gflops", fixed(1))),
    *(Column("tokens", "tokens", products), Column("printed", "paper_tokens", products)),
    *(Column("videos/s", "videos_per_s"), Column("printed", "paper_videos_per_s", fixed(1))),
)


def _swept(fit: Values) -> str:
    fixed_at = [f"{fit['frames']} frames"] if fit.get("frames") else []
    fixed_at += [f"batch {fit['batch']}"] if fit.get("batch") else []
    return ", ".join([str(fit.get("family") or "unnamed profile"), *fixed_at])


def _curve(fit: Values) -> str:
    """The curve, each coefficient with half of its interval; the reason where there is none."""
    if fit["form"] == "none":
        return f"none: {fit.get('reason') or 'no reason given'}"
    terms = []
    for power, (value, low, high) in enumerate(zip(fit["coefficients"], fit["low"], fit["high"], strict=True)):
        times_x = ("", f" \N{MULTIPLICATION SIGN} {fit['against']}", f" \N{MULTIPLICATION SIGN} {fit['against']}\u00b2")
        terms.append(f"({value:.4g} \N{PLUS-MINUS SIGN} {(high - low) / 2:.2g}){times_x[power]}")
    return " + ".join(terms).replace("-", MINUS)


_COSTS = {"p50_ms": "ms of a call", "encode_mb": "MB of a call", "gmacs": "GMACs of a video"}
_FITS = (
    *(Column("candidate", "candidate", words), Column("of", _swept, words)),
    Column("cost", lambda fit: _COSTS.get(fit["quantity"], fit["quantity"]), words),
    Column("curve", _curve, words),
    *(Column("R\N{SUPERSCRIPT TWO}", "r2", fixed(4)), Column("points", lambda fit: len(fit["x"]), whole)),
)
_SATURATIONS = (
    *(Column("candidate", "candidate", words), Column("profile", "profile", words)),
    Column("batch", lambda one: f"{one['batch']}{' or more' if one.get('at_edge') else ''}", texts),
    *(Column("videos/s", "videos_per_s"), Column("best batch", "best_batch", whole)),
    Column("best videos/s", "best_videos_per_s"),
)


def sweep_tables(fits: Sequence[Values], saturations: Sequence[Values], more: Sequence[Column] = ()) -> Iterator[Table]:
    """Fitted costs and the batch sizes beyond which nothing is gained, with `more` columns; without any, nothing."""
    if fits:
        yield tabled(
            "Fitted costs, with 95 % intervals. Against batch, the constant is what a call costs, the slope a video.",
            [*_FITS, *more],
            fits,
        )
    if saturations:
        within = max(one.get("within_percent") or 5.0 for one in saturations)
        yield tabled(
            f"Saturation batch: the smallest whose videos/s is within {within:g} % of the sweep's best",
            [*_SATURATIONS, *more],
            saturations,
        )


def _percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f} %"


def _relative(change: "Change") -> str | None:
    found = change.relative
    if found is None:
        return None
    return f"{_percent(found.value)} ({_percent(found.low)}..{_percent(found.high)})"


_CHANGES = (
    Column("candidate", lambda change: change.row.candidate, words),
    Column("profile", lambda change: change.row.profile, words),
    Column("batch", lambda change: change.row.batch, whole),
    *(Column("p50 ms A", "p50_before_ms"), Column("p50 ms B", "p50_after_ms")),
    Column("videos/s", lambda change: _percent(change.speed.value), texts),
    *(Column("ratio, 95 %", _relative, texts), Column("verdict", "verdict", words)),
)


def change_tables(report: "ComparisonReport") -> Iterator[Table]:
    """Changes between two runs, with a verdict whether each is more than chance; without rows in both, nothing."""
    if report.changes:
        yield tabled(
            "B against A. Judged is the change of the ratio to the first candidate, in which the machine's speed "
            "cancels.",
            _CHANGES,
            report.changes,
        )
