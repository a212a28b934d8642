"""What the command shows: tables that stay whole wherever they go."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from tempme_export.bench.paper import PaperRow, times

if TYPE_CHECKING:
    from tempme_export.bench.report import Row
    from tempme_export.bench.resources import ResourceRow

_UNBOUNDED = 10_000
_PART_FIGURES = (
    *("frames", "convolution", "projections", "attention", "MLP", "output", "element-wise"),
    *("GMACs", "GFLOPs"),
)
_SPEED_FIGURES = (
    *("batch", "videos/s", "frames/s", "ratio, 95 % interval", "p50 ms", "p90 ms", "p99 ms", "CoV", "samples"),
    *("stable", "1 - cosine", "parity"),
)
_COST_FIGURES = ("batch", "GMACs", "GFLOPs", "tokens", "build s", "load s", "process peak MB")


def show(console: Console, table: Table) -> None:
    """Print a table and a blank line: words folded to the width of a terminal, and nothing ever cut off."""
    for column in table.columns:
        if column.no_wrap:
            column.min_width = max(cell_len(str(cell)) for cell in (column.header, *column.cells))
    needed = Measurement.get(console, console.options.update(width=_UNBOUNDED), table)
    console.width = max(console.width, needed.minimum) if console.is_terminal else needed.maximum
    console.print(table)
    console.print()


def _table(title: str, words: Sequence[str], figures: Sequence[str]) -> Table:
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True
    )
    for name in words:
        table.add_column(name, overflow="fold")
    for name in figures:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def paper_tables(rows: Sequence[PaperRow]) -> Iterable[Table]:
    """The counts beside the paper's figures, the counts by part, and why some rows differ."""
    counts = _table(
        "Multiply-accumulates of the video tower per video, in 1e9: the paper's GFLOPs. Layers count from 1.",
        ["row", "source", "settings"],
        ["frames", "tokens", "printed", "GMACs", "printed", "difference", "reproduces"],
    )
    parts = _table(
        "The same by part, in GMACs. True GFLOPs count a multiply-accumulate twice, element-wise work once.",
        ["row", "source"],
        _PART_FIGURES,
    )
    reasons = _table("Rows that differ from print", ["row", "source", "frames", "reason"], [])
    for row in rows:
        counted, frames = row.complexity, str(row.frames)
        counts.add_row(
            row.label,
            row.source,
            row.settings,
            frames,
            times((row.clips, row.tokens)),
            times(row.printed_tokens),
            f"{counted.gmacs:.2f}",
            "" if row.printed is None else f"{row.printed:.1f}",
            "" if row.difference is None else f"{row.difference:+.2f}",
            "" if row.printed is None else "yes" if row.reproduces else "no",
        )
        figures = [count / 1e9 for count in dataclasses.astuple(counted)] + [counted.gmacs, counted.gflops]
        parts.add_row(row.label, row.source, frames, *(f"{figure:.2f}" for figure in figures))
        if not row.reproduces:
            reasons.add_row(row.label, row.source, frames, row.reason)
    return [counts, parts, *([reasons] if reasons.row_count else [])]


def bench_tables(rows: Sequence["Row"]) -> Iterable[Table]:
    """Speed beside accuracy, and what it costs. `rows` share profile and machine; without rows, nothing."""
    if not rows:
        return
    first = rows[0]
    speed = _table(
        f"{first.profile}, {first.frames} frames, {first.weights}\n{first.device}: {first.cpu}, {first.threads} "
        f"threads, Python {first.python}, torch {first.torch}, onnxruntime {first.onnxruntime}",
        ["backend", "precision"],
        _SPEED_FIGURES,
    )
    cost = _table("Operations and final tokens of a video, and getting ready.", ["backend"], _COST_FIGURES)
    for row in rows:
        speed.add_row(
            row.backend,
            row.precision,
            str(row.batch),
            f"{row.videos_per_s:.2f}",
            f"{row.frames_per_s:.1f}",
            f"{row.ratio:.2f}x, {row.ratio_low:.2f} - {row.ratio_high:.2f}",
            f"{row.p50_ms:.2f}",
            f"{row.p90_ms:.2f}",
            f"{row.p99_ms:.2f}",
            f"{row.cov:.3f}",
            str(row.samples),
            "yes" if row.stable else "no",
            f"{row.one_minus_cosine:.1e}",
            "pass" if row.parity else "fail",
        )
        cost.add_row(
            row.backend,
            str(row.batch),
            f"{row.gmacs:.2f}",
            f"{row.gflops:.2f}",
            str(row.final_tokens),
            "" if row.build_s is None else f"{row.build_s:.2f}",
            f"{row.load_s:.2f}",
            "" if row.peak_rss_mb is None else f"{row.peak_rss_mb:.0f}",
        )
    yield speed
    yield cost


def resource_tables(rows: Sequence["ResourceRow"], source: str) -> Iterable[Table]:
    """What compiled kernels take of a GPU."""
    table = _table(
        f"What a program of each kernel takes, compiled ahead of time: {source}",
        ["kernel", "compiled for"],
        ["dtype", "target", "warps", "registers", "spilled B", "shared B"],
    )
    for row in rows:
        table.add_row(
            row.kernel,
            row.compiled_for,
            row.dtype,
            row.target,
            str(row.num_warps),
            str(row.registers),
            str(row.spill_stores + row.spill_loads),
            str(row.shared),
        )
    return [table]
