"""Operations beside the paper's, and what compiled kernels take."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from tempme_export.bench.counting.agreement import NOT_ASKED
from tempme_export.bench.paper import PaperRow, times
from tempme_export.bench.terminal.table import new_table

if TYPE_CHECKING:
    from tempme_export.bench.counting.agreement import Counted
    from tempme_export.bench.kernels.resources import ResourceRow

_PART_FIGURES = (
    *("frames", "convolution", "projections", "attention", "MLP", "output", "element-wise"),
    *("GMACs", "GFLOPs"),
)


def paper_tables(rows: Sequence[PaperRow]) -> Iterable[Table]:
    """The counts beside the paper's figures, the counts by part, and why some rows differ."""
    counts = new_table(
        "Multiply-accumulates of the video tower per video, in 1e9: the paper's GFLOPs. Layers count from 1.",
        ["row", "source", "settings"],
        ["frames", "tokens", "printed", "GMACs", "printed", "difference", "reproduces"],
    )
    parts = new_table(
        "The same by part, in GMACs. True GFLOPs count a multiply-accumulate twice, element-wise work once.",
        ["row", "source"],
        _PART_FIGURES,
    )
    reasons = new_table("Rows that differ from print", ["row", "source", "frames", "reason"], [])
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


def counted_tables(rows: Sequence["Counted"]) -> Iterable[Table]:
    """The same rows counted in other ways; without any, nothing."""
    if not rows:
        return
    table = new_table(
        "GMACs by formula, on the running encoder and in its ONNX graph: products must agree to the last one.",
        ["row"],
        ["formula", "eager", "graph", "merging"],
    )
    reasons = new_table("Not counted in every way", ["row", "reason"], [])
    for row in rows:
        ways = (row.formula.gmacs, row.gmacs(row.eager), row.gmacs(row.graph), row.merging_gmacs)
        table.add_row(row.method, *("" if value is None else f"{value:.2f}" for value in ways))
        for reason in dict.fromkeys((row.no_eager, row.no_graph)):
            if reason not in ("", NOT_ASKED):
                reasons.add_row(row.method, reason)
    yield table
    if reasons.row_count:
        yield reasons


def resource_tables(rows: Sequence["ResourceRow"], source: str) -> Iterable[Table]:
    """Resources that compiled kernels take of a GPU."""
    table = new_table(
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
