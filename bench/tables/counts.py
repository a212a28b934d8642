"""Operations beside the paper's, and what compiled kernels take."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from tempme_export.bench.paper import PaperRow
from tempme_export.bench.tables.table import MINUS, NONE, Column, Table, fixed, products, tabled, whole, words

if TYPE_CHECKING:
    from tempme_export.bench.counting.agreement import Counted
    from tempme_export.bench.kernels.resources import ResourceRow


def _signed(values: Sequence[float | None]) -> list[str]:
    return [NONE if value is None else f"{value:+.2f}".replace("-", MINUS) for value in values]


_CLAIM = (Column("row", "label", words), Column("source", "source", words))
_FRAMES = Column("frames", "frames", whole)
_COUNTED = (
    Column("tokens", lambda row: (row.clips, row.tokens), products),
    Column("printed", "printed_tokens", products),
    *(Column("GMACs", lambda row: row.complexity.gmacs), Column("printed", "printed", fixed(1))),
    Column("difference", "difference", _signed),
    Column("reproduces", lambda row: None if row.printed is None else "yes" if row.reproduces else "no", words),
)


def _part(head: str, name: str) -> Column:
    return Column(head, lambda row: getattr(row.complexity, name), fixed(2, 1e-9))


_PARTS = (
    *(_CLAIM[0], _FRAMES, _part("conv.", "patch_convolution"), _part("projections", "attention_projections")),
    *(_part("attention", "attention_products"), _part("MLP", "mlp"), _part("output", "output_projection")),
    *(_part("other", "elementwise"), Column("GMACs", lambda row: row.complexity.gmacs)),
    Column("GFLOPs", lambda row: row.complexity.gflops),
)


def paper_tables(rows: Sequence[PaperRow]) -> Iterator[Table]:
    """The counts beside the paper's figures, their settings, the counts by part, and why some rows differ."""
    yield tabled(
        "Multiply-accumulates of the video tower per video, in 1e9: the paper's GFLOPs.",
        [*_CLAIM, _FRAMES, *_COUNTED],
        rows,
    )
    settings = [*_CLAIM, _FRAMES, Column("settings", "settings", words)]
    yield tabled("Settings of these rows. Layers count from 1.", settings, rows)
    yield tabled(
        "The same by part, in GMACs. True GFLOPs count a multiply-accumulate twice, element-wise work once.",
        _PARTS,
        rows,
    )
    differing = [row for row in rows if not row.reproduces]
    if differing:
        columns = [*_CLAIM, _FRAMES, Column("reason", "reason", words)]
        yield tabled("Rows that differ from print", columns, differing)


_WAYS = (
    *(Column("row", "method", words), Column("formula", lambda row: row.formula.gmacs)),
    Column("eager", lambda row: row.gmacs(row.eager)),
    Column("graph", lambda row: row.gmacs(row.graph)),
    Column("merging", "merging_gmacs"),
)


def counted_tables(rows: Sequence["Counted"]) -> Iterator[Table]:
    """The same rows counted in other ways; without any, nothing."""
    from tempme_export.bench.counting.agreement import NOT_ASKED

    if rows:
        yield tabled(
            "GMACs by formula, on the running encoder and in its ONNX graph: products must agree to the last one.",
            _WAYS,
            rows,
        )
    reasons = [
        {"row": row.method, "reason": reason}
        for row in rows
        for reason in dict.fromkeys((row.no_eager, row.no_graph))
        if reason not in ("", NOT_ASKED)
    ]
    if reasons:
        columns = (Column("row", "row", words), Column("reason", "reason", words))
        yield tabled("Not counted in every way", columns, reasons)


_RESOURCES = (
    *(
        Column("kernel", "kernel", words),
        Column("compiled for", "compiled_for", words),
        Column("dtype", "dtype", words),
    ),
    *(Column("target", "target", words), Column("warps", "num_warps", whole), Column("registers", "registers", whole)),
    Column("spilled B", lambda row: row.spill_stores + row.spill_loads, whole),
    Column("shared B", "shared", whole),
)


def resource_tables(rows: Sequence["ResourceRow"], source: str) -> list[Table]:
    """Resources that compiled kernels take of a GPU."""
    return [tabled(f"What a program of each kernel takes, compiled ahead of time: {source}", _RESOURCES, rows)]
