"""Stages, methods, sweeps, and what changed between two runs."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

from tempme_export.bench.paper import times
from tempme_export.bench.terminal.table import figure, new_table

if TYPE_CHECKING:
    from tempme_export.bench.comparing import ComparisonReport


def stage_tables(stages: Iterable[Mapping[str, Any]]) -> Iterable[Table]:
    """The whole way of a video, stage by stage."""
    for one in stages:
        table = new_table(
            f"{one['candidate']}, batch {one['batch']}: the limit is {one['limit']}. "
            f"{one['sequential_videos_per_s']:.2f} videos/s one stage after the other,\n"
            f"{one['overlapped_videos_per_s']:.2f} where all work at once.",
            ["stage"],
            ["p50 ms", "p90 ms", "share", "videos/s alone"],
        )
        for row in one["rows"]:
            table.add_row(
                row["stage"],
                f"{row['p50_ms']:.2f}",
                f"{row['p90_ms']:.2f}",
                f"{100 * row['share']:.0f} %",
                f"{row['videos_per_s']:.2f}",
            )
        yield table


def method_tables(methods: Sequence[Mapping[str, Any]]) -> Iterable[Table]:
    """Methods as counted here beside what the paper prints, and why some are not measured; without any, nothing."""
    if not methods:
        return
    table = new_table(
        "Methods: counted here and printed in the paper, whose videos/s are of an A100.",
        ["method"],
        ["GMACs", "printed", "tokens", "printed", "videos/s", "printed"],
    )
    reasons = new_table("Methods that were not measured", ["method", "reason"], [])
    reasons.columns[-1].max_width = 80
    for one in methods:
        table.add_row(
            one["key"],
            figure(one["gmacs"], ".2f"),
            figure(one["paper_gflops"], ".1f"),
            times(one["tokens"]),
            times(one["paper_tokens"]),
            figure(one["videos_per_s"], ".2f"),
            figure(one["paper_videos_per_s"], ".1f"),
        )
        if one["reason"]:
            reasons.add_row(one["key"], one["reason"])
    yield table
    if reasons.row_count:
        yield reasons


def fit_tables(fits: Sequence[Mapping[str, Any]], saturations: Sequence[Mapping[str, Any]]) -> Iterable[Table]:
    """Fitted costs and the batch sizes beyond which nothing is gained; without any, nothing."""
    curves = [fit for fit in fits if fit["form"] != "none"]
    if curves:
        table = new_table(
            "Fitted costs, with 95 % intervals. Against batch, the constant is what a call costs, the slope a video.",
            ["of", "cost", "fit"],
            ["R2", "points"],
        )
        for fit in curves:
            table.add_row(
                fit["candidate"], fit["quantity"], _formula(fit), figure(fit["r2"], ".4f"), str(len(fit["x"]))
            )
        yield table
    if saturations:
        table = new_table(
            "Saturation batch: the smallest whose videos/s is within 5 % of the sweep's best",
            ["of", "profile"],
            ["batch", "videos/s", "best batch", "videos/s"],
        )
        for one in saturations:
            table.add_row(
                one["candidate"],
                one["profile"],
                f"{one['batch']}{' or more' if one['at_edge'] else ''}",
                f"{one['videos_per_s']:.2f}",
                str(one["best_batch"]),
                f"{one['best_videos_per_s']:.2f}",
            )
        yield table


def _formula(fit: Mapping[str, Any]) -> str:
    """The curve in words, each coefficient with half its interval."""
    terms = []
    for power, (value, low, high) in enumerate(zip(fit["coefficients"], fit["low"], fit["high"], strict=True)):
        times_x = ("", f" x {fit['against']}", f" x {fit['against']}^2")[power]
        terms.append(f"({value:.4g} +- {(high - low) / 2:.2g}){times_x}")
    return " + ".join(terms)


def change_tables(report: "ComparisonReport") -> Iterable[Table]:
    """Changes between two runs, with a verdict whether each is more than chance; without rows in both, nothing."""
    if not report.changes:
        return
    table = new_table(
        "B against A. Judged is the change of the ratio to the first candidate, in which the machine's speed cancels.",
        ["", "profile"],
        ["batch", "p50 ms A", "p50 ms B", "videos/s", "ratio, 95 %", "verdict"],
    )
    for change in report.changes:
        relative = change.relative
        table.add_row(
            change.candidate,
            change.profile,
            str(change.batch),
            f"{change.p50_before_ms:.2f}",
            f"{change.p50_after_ms:.2f}",
            _percent(change.speed.value),
            ""
            if relative is None
            else f"{_percent(relative.value)} ({_percent(relative.low)}..{_percent(relative.high)})",
            change.verdict,
        )
    yield table


def _percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f} %"
