"""What the command shows: tables that stay whole wherever they go."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from tempme_export.bench.paper import PaperRow, times

if TYPE_CHECKING:
    from tempme_export.bench.report import Row

_UNBOUNDED = 10_000
_PART_FIGURES = (
    *("frames", "convolution", "projections", "attention", "MLP", "output", "element-wise"),
    *("GMACs", "GFLOPs"),
)
_BENCH_FIGURES = (
    *("batch", "videos/s", "frames/s", "ratio", "95 % interval", "p50 ms", "p90 ms", "p99 ms", "CoV"),
    *("samples", "stable", "1 - cosine", "parity", "GMACs", "GFLOPs", "tokens", "peak MB", "load s"),
)


def show(console: Console, table: Table) -> None:
    """Print a table and a blank line: words folded to the width of a terminal, and nothing ever cut off."""
    needed = Measurement.get(console, console.options.update(width=_UNBOUNDED), table)
    console.width = max(console.width, needed.minimum) if console.is_terminal else needed.maximum
    console.print(table)
    console.print()


def _table(title: str, words: Sequence[str], figures: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
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
    return counts, parts, reasons


def bench_table(rows: Sequence["Row"]) -> Table:
    """Speed beside accuracy and cost, one line per backend and batch. `rows` share profile and machine."""
    first = rows[0]
    table = _table(
        f"{first.profile}, {first.frames} frames, {first.precision}, weights: {first.weights}\n"
        f"{first.device}: {first.cpu}, {first.threads} threads, Python {first.python}, torch {first.torch}, "
        f"onnxruntime {first.onnxruntime}",
        ["backend"],
        _BENCH_FIGURES,
    )
    for row in rows:
        table.add_row(
            row.backend,
            str(row.batch),
            f"{row.videos_per_s:.2f}",
            f"{row.frames_per_s:.1f}",
            f"{row.ratio:.2f}x",
            f"{row.ratio_low:.2f} - {row.ratio_high:.2f}",
            f"{row.p50_ms:.2f}",
            f"{row.p90_ms:.2f}",
            f"{row.p99_ms:.2f}",
            f"{row.cov:.3f}",
            str(row.samples),
            "yes" if row.stable else "no",
            f"{row.one_minus_cosine:.1e}",
            "pass" if row.parity else "fail",
            f"{row.gmacs:.2f}",
            f"{row.gflops:.2f}",
            str(row.final_tokens),
            "" if row.peak_rss_mb is None else f"{row.peak_rss_mb:.0f}",
            f"{row.load_s:.2f}",
        )
    return table
