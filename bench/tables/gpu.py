"""Kernels, and the steps of a GPU check; the rows as plain values."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tempme_export.bench.tables.table import Column, Table, fixed, percents, tabled, whole, words

Values = Mapping[str, Any]

_CALL = (Column("block", "block", whole), Column("kernel", "kernel", words))
_CALLS = (
    *(_CALL[0], _CALL[1], Column("shape", "shape", words), Column("sign", lambda row: f"{row['sign']:+d}", words)),
    *(Column("MB", "mbytes"), Column("warm", "warm_us"), Column("cold", "cold_us")),
    *(Column("p20", "cold_p20_us"), Column("p80", "cold_p80_us")),
    *(Column("GB/s", "cold_gb_s", whole), Column("% of copy", "share_of_copy", percents)),
)
_PLAIN = (
    *(_CALL[0], _CALL[1], Column("cold", "cold_us"), Column("plain", "plain_cold_us", fixed(1))),
    Column("compiled", "compiled_cold_us", fixed(1)),
    Column("plain / cold", lambda row: row["plain_cold_us"] / row["cold_us"], fixed(1)),
)
_MARGINALS = (
    *(Column("profile", "profile", words), Column("dtype", "dtype", words), Column("batch", "batch", whole)),
    *(Column("encode ms", "encode_ms", fixed(3)), Column("warm ms", "warm_ms", fixed(4))),
    *(Column("%", "warm_share", percents), Column("cold ms", "cold_ms", fixed(4)), Column("%", "cold_share", percents)),
)


def kernel_tables(rows: Sequence[Values], marginals: Sequence[Values]) -> Iterator[Table]:
    """Every fused call of each encoder, and what merging costs it."""
    encoders: dict[str, list[Values]] = {}
    for row in rows:
        encoders.setdefault(f"{row['profile']}, batch {row['batch']}, {row['dtype']}", []).append(row)
    for name, own in encoders.items():
        yield tabled(
            f"{name}: microseconds per call. cold: inputs out of memory; warm: out of the L2 cache.\nMB: every input "
            "read and every output written once. % of copy: cold rate over that of a copy\nwithin the device. "
            "sign -1: what would run instead without merging.",
            _CALLS,
            own,
        )
        yield tabled(f"{name}: the same calls in plain PyTorch, eager and compiled", _PLAIN, own)
    if marginals:
        yield tabled(
            "What merging costs an encoder: its calls less what would run instead, over all blocks, and as a share of "
            "the whole.",
            _MARGINALS,
            marginals,
        )


def _plain_table(title: str, rows: Sequence[Values]) -> Table:
    """Every field as it is called."""
    columns = []
    for name in dict.fromkeys(name for row in rows for name in row):
        numbers = all(isinstance(row.get(name), float) for row in rows)
        columns.append(Column(name, name, fixed(1) if numbers else words))
    return tabled(title, columns, rows)


def gpu_tables(rows: Mapping[str, Sequence[Values]]) -> Iterator[Table]:
    """Findings of one step of a GPU check, by kind of row."""
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
