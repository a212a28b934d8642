"""Tables of what was measured, none wider than 100 columns: speed beside accuracy, cost, stages, fits, changes."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

from tempme_export.bench.paper import times
from tempme_export.bench.tables import new_table

if TYPE_CHECKING:
    from tempme_export.bench.comparing import ComparisonReport
    from tempme_export.bench.report import Row


def _or_empty(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _one_distance(value: float) -> str:
    """1 - cosine, where rounding may leave less than nothing."""
    return f"{max(value, 0.0):.1e}"


def bench_tables(rows: Sequence["Row"]) -> Iterable[Table]:
    """Speed beside accuracy, and what it costs, for each profile; without rows, nothing."""
    backends = [row for row in rows if row.contender == row.backend]
    groups = [
        [row for row in backends if row.profile == profile] for profile in dict.fromkeys(r.profile for r in backends)
    ]
    methods = [row for row in rows if row.contender != row.backend]
    for group in (*groups, *([methods] if methods else [])):
        yield _speed_table(group)
        yield _cost_table(group)
        yield from _gpu_tables(group)


def _speed_table(rows: Sequence["Row"]) -> Table:
    first = rows[0]
    machine, profile = first.gpu or first.cpu, min((row.profile for row in rows), key=len)  # a method's adds its key
    table = new_table(
        f"{profile}, {first.frames} frames, {first.weights}\n{first.device}: {machine}, {first.threads} threads, "
        f"Python {first.python}, torch {first.torch}, onnxruntime {first.onnxruntime}\n"
        f"ratio: times as fast as {first.contender}, with its 95 % interval; "
        "centred: 1 - cos after the mean is subtracted",
        ["", "type"],
        ["batch", "videos/s", "ratio", "p50 ms", "p99 ms", "CoV", "settled", "1 - cos", "centred"],
    )
    for row in rows:
        slowed = f" (slowed {row.handicap_percent:g} %)" if row.handicap_percent else ""
        table.add_row(
            row.contender + slowed,
            row.precision,
            str(row.batch),
            f"{row.videos_per_s:.2f}",
            f"{row.ratio:.2f} ({row.ratio_low:.2f}-{row.ratio_high:.2f})",
            f"{row.p50_ms:.2f}",
            f"{row.p99_ms:.2f}",
            f"{row.cov:.3f}",
            "yes" if row.stable else "NO",
            _one_distance(row.one_minus_cosine),
            _one_distance(row.centred_loss),
        )
    return table


def _cost_table(rows: Sequence["Row"]) -> Table:
    table = new_table(
        "Operations and final tokens of a video; getting ready; the file; memory that loading and encoding add.",
        [""],
        ["batch", "GMACs", "GFLOPs", "tokens", "build s", "file MB", "load s", "load MB", "encode MB"],
    )
    for row in rows:
        table.add_row(
            row.contender,
            str(row.batch),
            f"{row.gmacs:.2f}",
            f"{row.gflops:.2f}",
            times((row.final_clips, row.final_tokens)),
            _or_empty(row.build_s, ".1f"),
            _or_empty(row.artifact_mb, ".1f"),
            f"{row.load_s:.1f}",
            _or_empty(row.load_mb, ".0f"),
            _or_empty(row.encode_mb, ".0f"),
        )
    return table


def _gpu_tables(rows: Sequence["Row"]) -> Iterable[Table]:
    """What only a GPU has; without one, nothing."""
    own = [row for row in rows if row.device_mb is not None]
    if not own:
        return
    table = new_table(
        "On the GPU: copies in and out included; videos already there; between events of the device; memory at most.",
        [""],
        ["batch", "p50 ms", "resident ms", "device ms", "GPU MB"],
    )
    for row in own:
        table.add_row(
            row.contender,
            str(row.batch),
            f"{row.p50_ms:.3f}",
            _or_empty(row.resident_ms, ".3f"),
            _or_empty(row.device_ms, ".3f"),
            _or_empty(row.device_mb, ".0f"),
        )
    yield table


def stage_tables(stages: Iterable[Mapping[str, Any]]) -> Iterable[Table]:
    """The whole way of a video, stage by stage."""
    for one in stages:
        table = new_table(
            f"{one['contender']}, batch {one['batch']}: the limit is {one['limit']}. "
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
            _or_empty(one["gmacs"], ".2f"),
            _or_empty(one["paper_gflops"], ".1f"),
            times(one["tokens"]),
            times(one["paper_tokens"]),
            _or_empty(one["videos_per_s"], ".2f"),
            _or_empty(one["paper_videos_per_s"], ".1f"),
        )
        if one["reason"]:
            reasons.add_row(one["key"], one["reason"])
    yield table
    if reasons.row_count:
        yield reasons


def fit_tables(fits: Sequence[Mapping[str, Any]], knees: Sequence[Mapping[str, Any]]) -> Iterable[Table]:
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
                fit["contender"], fit["quantity"], _formula(fit), _or_empty(fit["r2"], ".4f"), str(len(fit["x"]))
            )
        yield table
    if knees:
        table = new_table(
            "The knee: the smallest batch whose videos/s is within 5 % of the sweep's best",
            ["of", "profile"],
            ["batch", "videos/s", "best batch", "videos/s"],
        )
        for knee in knees:
            table.add_row(
                knee["contender"],
                knee["profile"],
                f"{knee['batch']}{' or more' if knee['at_edge'] else ''}",
                f"{knee['videos_per_s']:.2f}",
                str(knee["best_batch"]),
                f"{knee['best_videos_per_s']:.2f}",
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
    """What changed between two runs, and whether that is more than chance; without rows in both, nothing."""
    if not report.changes:
        return
    table = new_table(
        "B against A. Judged is the change of the ratio to the first contender, in which the machine's speed cancels.",
        ["", "profile"],
        ["batch", "p50 ms A", "p50 ms B", "videos/s", "ratio, 95 %", "verdict"],
    )
    for change in report.changes:
        relative = change.relative
        table.add_row(
            change.contender,
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
