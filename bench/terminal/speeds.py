"""Speed beside accuracy, what it costs, and what only a GPU has."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from tempme_export.bench.paper import times
from tempme_export.bench.terminal.table import figure, new_table, percent

if TYPE_CHECKING:
    from tempme_export.bench.core.row import Row


def _distance(value: float | None) -> str:
    """1 - cosine, where rounding may leave less than nothing."""
    return figure(None if value is None else max(value, 0.0), ".1e")


def bench_tables(rows: Sequence["Row"]) -> Iterable[Table]:
    """Speed beside accuracy, and what it costs, for each profile; without rows, nothing."""
    backends = [row for row in rows if row.candidate == row.backend]
    groups = [
        [row for row in backends if row.profile == profile] for profile in dict.fromkeys(r.profile for r in backends)
    ]
    methods = [row for row in rows if row.candidate != row.backend]
    for group in (*groups, *([methods] if methods else [])):
        yield _speed_table(group)
        yield from _bf16_tables(group)
        yield _cost_table(group)
        yield from _gpu_tables(group)


def _speed_table(rows: Sequence["Row"]) -> Table:
    first = rows[0]
    machine = first.gpu or first.cpu
    profile = min((row.profile or "" for row in rows), key=len)  # a method's adds its key
    table = new_table(
        f"{profile}, {first.frames} frames, {first.weights}\n{first.device}: {machine}, {first.threads} threads, "
        f"Python {first.python}, torch {first.torch}, onnxruntime {first.onnxruntime}\n"
        f"ratio: times as fast as {first.candidate}, with its 95 % interval; +- %: half of that within this run,\n"
        "NO where it has not converged; centred: 1 - cos after the mean is subtracted",
        ["", "type"],
        ["batch", "videos/s", "ratio", "p50 ms", "p99 ms", "CoV", "+- %", "1 - cos", "centred"],
    )
    for row in rows:
        slowed = f" (slowed {row.slowdown_percent:g} %)" if row.slowdown_percent else ""
        table.add_row(
            row.candidate + slowed,
            row.precision or "",
            str(row.batch),
            f"{row.videos_per_s:.2f}",
            f"{_times(row.ratio)} ({_times(row.ratio_low)}-{_times(row.ratio_high)})",
            figure(row.p50_ms, ".2f"),
            figure(row.p99_ms, ".2f"),
            figure(row.cov, ".3f"),
            _half_width(row),
            _distance(row.one_minus_cosine),
            _distance(row.centred_loss),
        )
    return table


def _bf16_tables(rows: Sequence["Row"]) -> Iterable[Table]:
    """Times as fast as the original path as one would run it where bfloat16 is fast; without that, nothing."""
    own = [row for row in rows if row.ratio_bf16 is not None]
    if not own:
        return
    table = new_table("Times as fast as original-bf16, the original path under autocast.", [""], ["batch", "ratio"])
    for row in own:
        table.add_row(row.candidate, str(row.batch), figure(row.ratio_bf16, ".2f"))
    yield table


def _half_width(row: "Row") -> str:
    if row.half_width is None:
        return ""
    percents = 100 * row.half_width
    said = ">99" if percents > 99 else f"{percents:.{0 if percents >= 10 else 1}f}"
    return said if row.converged else f"{said} NO"


def _times(ratio: float | None) -> str:
    """A ratio in four characters, and in more where it has more digits before the point."""
    places = 2 if ratio is None or ratio < 9.995 else 1 if ratio < 99.95 else 0
    return figure(ratio, f".{places}f")


def _cost_table(rows: Sequence["Row"]) -> Table:
    table = new_table(
        "Operations and final tokens of a video; getting ready; the file; memory that loading and encoding add.",
        [""],
        ["batch", "GMACs", "GFLOPs", "tokens", "build s", "file MB", "load s", "load MB", "encode MB"],
    )
    for row in rows:
        table.add_row(
            row.candidate,
            str(row.batch),
            figure(row.gmacs, ".2f"),
            figure(row.gflops, ".2f"),
            times(None if row.final_clips is None or row.final_tokens is None else (row.final_clips, row.final_tokens)),
            figure(row.build_s, ".1f"),
            figure(row.artifact_mb, ".1f"),
            figure(row.load_s, ".1f"),
            figure(row.load_mb, ".0f"),
            figure(row.encode_mb, ".0f"),
        )
    return table


def _gpu_tables(rows: Sequence["Row"]) -> Iterable[Table]:
    """Columns that only a GPU, or a check of one, has; without one, nothing."""
    own = [row for row in rows if row.device_mb is not None or row.peak_tflop_s is not None]
    if not own:
        return
    table = new_table(
        "On the device: copies in and out included; videos already there; between its events; memory at most.\n"
        "TFLOP/s: on the method's own products, and their share of a large bfloat16 matrix product's beside them.",
        [""],
        ["batch", "p50 ms", "resident ms", "device ms", "GPU MB", "TFLOP/s", "% of peak", "% decisions changed"],
    )
    for row in own:
        share = None if row.tflop_s is None or row.peak_tflop_s is None else row.tflop_s / row.peak_tflop_s
        table.add_row(
            row.candidate,
            str(row.batch),
            figure(row.p50_ms, ".3f"),
            figure(row.resident_ms, ".3f"),
            figure(row.device_ms, ".3f"),
            figure(row.device_mb, ".0f"),
            figure(row.tflop_s, ".2f"),
            percent(share),
            percent(row.changed_decisions),
        )
    yield table
