"""Kernels, and the steps of a GPU check; the rows as plain values."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.table import Table

from tempme_export.bench.terminal.table import figure, new_table, percent


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
            figure(row["mbytes"], ".2f"),
            figure(row["warm_us"], ".2f"),
            figure(row["cold_us"], ".2f"),
            f"{row['cold_p20_us']:.2f} - {row['cold_p80_us']:.2f}",
            figure(row["cold_gb_s"], ".0f"),
            percent(row["share_of_copy"]),
            figure(row["plain_cold_us"], ".1f"),
            figure(row["compiled_cold_us"], ".1f"),
            figure(row["plain_cold_us"] / row["cold_us"], ".1f"),
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
            figure(row["encode_ms"], ".3f"),
            figure(row["warm_ms"], ".4f"),
            percent(row["warm_share"]),
            figure(row["cold_ms"], ".4f"),
            percent(row["cold_share"]),
        )
    if marginals:
        yield costs


def _plain_table(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = new_table(title, names, [])
    for row in rows:
        cells = (row.get(name, "") for name in names)
        table.add_row(*(f"{cell:.1f}" if isinstance(cell, float) else str(cell) for cell in cells))
    return table


def gpu_tables(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterable[Table]:
    """Findings of one step of a GPU check, by kind of row; the rows as plain values."""
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
