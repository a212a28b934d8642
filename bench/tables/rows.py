"""Rows of a measurement: speed beside accuracy, times of a call, costs, and what only a GPU has."""

from collections.abc import Sequence

from tempme_export.bench.core.row import Row
from tempme_export.bench.tables.table import (
    COSINE,
    NONE,
    Bad,
    Column,
    Table,
    distance,
    distances,
    estimates,
    fixed,
    number,
    percents,
    products,
    tabled,
    texts,
    whole,
    words,
)

NOT_COMPARED = "not compared"
KNOWN = "\N{PLUS-MINUS SIGN} %"


def accuracy(row: Row) -> str:
    """1 - cosine, and beside it that it is too much."""
    if row.one_minus_cosine is None:
        return NOT_COMPARED
    said = distance(row.one_minus_cosine)
    return Bad(f"{said} NO") if row.parity is False else said


def known_within(row: Row) -> str:
    """Half of the ratio's interval within the run, in per cent, and whether that is little enough."""
    if row.half_width is None:
        return NONE
    percent = 100 * row.half_width
    said = ">99" if percent > 99 else number(percent, 0 if percent >= 10 else 1)
    return said if row.converged else Bad(f"{said} NO")


def ratio(row: Row) -> tuple[float | None, float | None, float | None]:
    """Times as fast as the first, with its interval."""
    return row.ratio, row.ratio_low, row.ratio_high


def _candidate(row: Row) -> str:
    return f"{row.candidate} (slowed {row.slowdown_percent:g} %)" if row.slowdown_percent else row.candidate


NAME, BATCH = Column("candidate", _candidate, words), Column("batch", "batch", whole)
DISTANCE = Column(COSINE, accuracy, distances)
_KEYS = {NAME.head, BATCH.head, DISTANCE.head}
VIDEOS = Column("videos/s", "videos_per_s")
GMACS = Column("GMACs", "gmacs")
TOKENS = Column("tokens", lambda row: (row.final_clips, row.final_tokens), products)

SPEED = (
    NAME,
    Column("backend", lambda row: None if row.backend == row.candidate else row.backend, words),
    Column("type", "precision", words),
    BATCH,
    VIDEOS,
    Column("ratio", ratio, estimates),
    Column(KNOWN, known_within, texts),
    Column("p50 ms", "p50_ms"),
    DISTANCE,
    Column("centred", "centred_loss", distances),
)
CALLS = (
    *(NAME, BATCH),
    *(Column(head, f"{head.split()[0]}_ms") for head in ("p90 ms", "p99 ms", "mean ms")),
    *(Column("CoV", "cov", fixed(3)), Column("samples", "samples", whole)),
    *(Column("\N{MULTIPLICATION SIGN} bf16", "ratio_bf16"), DISTANCE),
)
COSTS = (
    *(NAME, BATCH, GMACS, Column("GFLOPs", "gflops"), TOKENS),
    *(Column("build s", "build_s", fixed(1)), Column("file MB", "artifact_mb", fixed(1))),
    *(Column("load s", "load_s", fixed(1)), Column("load MB", "load_mb", whole)),
    Column("encode MB", "encode_mb", whole),
)
DEVICE = (
    *(NAME, BATCH, Column("resident", "resident_ms", fixed(3)), Column("device", "device_ms", fixed(3))),
    *(Column("GPU MB", "device_mb", whole), Column("TFLOP/s", "tflop_s")),
    Column("% of peak", lambda row: row.peak_tflop_s and row.tflop_s and row.tflop_s / row.peak_tflop_s, percents),
    *(Column("% changed", "changed_decisions", percents), DISTANCE),
)
_CAPTIONS = (
    "Times of a call; CoV: standard deviation over mean; \N{MULTIPLICATION SIGN} bf16: ratio to original-bf16.",
    "Operations and final tokens of a video; getting ready; the file; memory that loading and encoding add.",
    "On the GPU, in ms: videos already there; between its events. Memory at most; TFLOP/s on the method's own "
    "products, their share of a large bfloat16 matrix product's, and decisions of merges that differ from float32's.",
)


def row_tables(title: str, rows: Sequence[Row], more: Sequence[Column] = ()) -> list[Table]:
    """All tables of rows that were measured together.

    more  further columns of the first, which shows speed beside accuracy
    """
    first = rows[0].candidate
    said = (
        f"{title}\nratio: times as fast as {first}, with its 95 % interval; {KNOWN}: half of that within this run, NO "
        f"where it has not converged; {COSINE}: from the original path, NO where that is too far; centred: after "
        "the mean is subtracted"
    )
    on_gpu = [row for row in rows if row.device_mb is not None or row.peak_tflop_s is not None]
    others = zip(_CAPTIONS, (CALLS, COSTS, DEVICE), (rows, rows, on_gpu), strict=True)
    tables = [tabled(caption, columns, own) for caption, columns, own in others if own]
    return [tabled(said, [*SPEED, *more], rows), *(table for table in tables if not _KEYS.issuperset(table.heads))]


def bench_tables(rows: Sequence[Row]) -> list[Table]:
    """All tables of a run, for each profile; methods share theirs. Without rows, nothing."""
    backends = [row for row in rows if row.candidate == row.backend]
    profiles = dict.fromkeys(row.profile for row in backends)
    groups = [[row for row in backends if row.profile == profile] for profile in profiles]
    groups.append([row for row in rows if row.candidate != row.backend])
    return [table for group in groups if group for table in row_tables(_machine(group), group)]


def _machine(rows: Sequence[Row]) -> str:
    first = rows[0]
    profile = min((row.profile or "" for row in rows), key=len)  # a method's adds its key
    return (
        f"{profile}, {first.frames} frames, {first.weights}\n{first.device}: {first.gpu or first.cpu}, "
        f"{first.threads} threads, Python {first.python}, torch {first.torch}, onnxruntime {first.onnxruntime}"
    )
