"""Tables that stay whole wherever they go, and those of counts, kernels and GPU checks."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from tempme_export.bench.counting.agreement import NOT_ASKED
from tempme_export.bench.paper import PaperRow, times

if TYPE_CHECKING:
    from tempme_export.bench.counting.agreement import Counted
    from tempme_export.bench.resources import ResourceRow

_UNBOUNDED = 10_000
_PART_FIGURES = (
    *("frames", "convolution", "projections", "attention", "MLP", "output", "element-wise"),
    *("GMACs", "GFLOPs"),
)
_KERNEL_FIGURES = (
    *("batch", "block", "sign", "MB", "warm", "cold", "p20 - p80", "GB/s", "% of copy", "plain", "compiled"),
    "x plain",
)
_ENCODER_FIGURES = (
    *("batch", "ms", "p20 - p80", "videos/s", "TFLOP/s", "% of peak", "1 - cosine", "% decisions changed"),
    "ready s",
)


def show(console: Console, table: Table) -> None:
    """Print a table and a blank line: words folded to the width of a terminal, and nothing ever cut off."""
    for column in table.columns:
        if column.no_wrap:
            column.min_width = max(cell_len(str(cell)) for cell in (column.header, *column.cells))
    needed = Measurement.get(console, console.options.update(width=_UNBOUNDED), table)
    console.width = max(console.width, needed.minimum) if console.is_terminal else needed.maximum
    console.print(table)
    console.print()


def new_table(title: str, words: Sequence[str], figures: Sequence[str]) -> Table:
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
    """What compiled kernels take of a GPU."""
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


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def kernel_tables(rows: Sequence[Mapping[str, Any]], marginals: Sequence[Mapping[str, Any]]) -> Iterable[Table]:
    """Every fused call, and what merging costs; the rows as plain values."""
    calls = new_table(
        "Microseconds per call. cold: inputs out of memory; warm: out of the L2 cache. MB: every input read and every "
        "output written once.\n% of copy: cold rate over that of a copy within the device. sign -1: what would run "
        "instead without merging.",
        ["profile", "dtype", "kernel", "shape"],
        [
            "batch",
            "block",
            "sign",
            "MB",
            "warm",
            "cold",
            "p20 - p80",
            "GB/s",
            "% of copy",
            "plain",
            "compiled",
            "x plain",
        ],
    )
    for row in rows:
        calls.add_row(
            row["profile"],
            row["dtype"],
            row["kernel"],
            row["shape"],
            str(row["batch"]),
            str(row["block"]),
            f"{row['sign']:+d}",
            _number(row["mbytes"], 2),
            _number(row["warm_us"], 2),
            _number(row["cold_us"], 2),
            f"{row['cold_p20_us']:.2f} - {row['cold_p80_us']:.2f}",
            _number(row["cold_gb_s"], 0),
            _share(row["share_of_copy"]),
            _number(row["plain_cold_us"], 1),
            _number(row["compiled_cold_us"], 1),
            _number(row["plain_cold_us"] / row["cold_us"], 1),
        )
    if rows:
        yield calls
    costs = new_table(
        "What merging costs an encoder: its calls less what would run instead, over all blocks, and as a share of "
        "the whole.",
        ["profile", "dtype"],
        ["batch", "encode ms", "warm ms", "%", "cold ms", "%"],
    )
    for row in marginals:
        costs.add_row(
            row["profile"],
            row["dtype"],
            str(row["batch"]),
            _number(row["encode_ms"], 3),
            _number(row["warm_ms"], 4),
            _share(row["warm_share"]),
            _number(row["cold_ms"], 4),
            _share(row["cold_share"]),
        )
    if marginals:
        yield costs


def _encoder_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = new_table(
        "The encoder. TFLOP/s: TempMe's own products, whatever a path does; % of a large bfloat16 matrix product's in "
        "the same rounds.\n1 - cosine and decisions: against the original in float32.",
        ["profile", "path", "precision", "group"],
        [
            "batch",
            "ms",
            "p20 - p80",
            "videos/s",
            "TFLOP/s",
            "% of peak",
            "1 - cosine",
            "% decisions changed",
            "ready s",
        ],
    )
    for row in rows:
        table.add_row(
            row["profile"],
            row["path"],
            row["precision"],
            row["group"],
            str(row["batch"]),
            _number(row["ms"], 3),
            f"{row['ms_p20']:.3f} - {row['ms_p80']:.3f}",
            _number(row["videos_per_s"], 1),
            _number(row["tflop_s"], 2),
            _share(row["share_of_peak"]),
            f"{row['one_minus_cosine']:.1e}",
            "" if row["changed_decisions"] is None else f"{100 * row['changed_decisions']:.2f}",
            _number(row["ready_s"], 1),
        )
    return table


def _plain_table(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = new_table(title, names, [])
    for row in rows:
        cells = (row.get(name, "") for name in names)
        table.add_row(*(f"{cell:.1f}" if isinstance(cell, float) else str(cell) for cell in cells))
    return table


def gpu_tables(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterable[Table]:
    """What one step of a GPU check found, by kind of row; the rows as plain values."""
    if rows.get("encoder"):
        yield _encoder_table(rows["encoder"])
    yield from kernel_tables(rows.get("kernels", ()), rows.get("marginals", ()))
    repeated = rows.get("determinism", ())
    if repeated:
        wrong = [row for row in repeated if not row["equal"] or row["nans"]]
        counted = [{"computed": len(repeated), "runs of each": repeated[0]["runs"], "differ or hold NaNs": len(wrong)}]
        yield _plain_table("The same bits in every run", counted)
        if wrong:
            yield _plain_table("What differs between runs or holds NaNs", wrong)
    if rows.get("tests"):
        yield _plain_table("Tests that need a GPU, by file", rows["tests"])
    if rows.get("sanitizer"):
        yield _plain_table("compute-sanitizer on one small call of every kernel", rows["sanitizer"])
