"""Time of a video from file to embedding, stage by stage."""

from collections.abc import Mapping, Sequence
from typing import Any

from tempme_export.bench.core.row import is_number
from tempme_export.bench.reporting.charts import Bar, Bars
from tempme_export.bench.reporting.groups import PARITY, Origin
from tempme_export.bench.reporting.markup import element, join, table_of
from tempme_export.bench.reporting.read import Results
from tempme_export.bench.reporting.section import Absent, Pictures, Section, document_remarks, made_by, remarks
from tempme_export.bench.tables.rows import NOT_COMPARED
from tempme_export.bench.tables.runs import JUDGED, Values, stage_tables, stages_of


def stages(every: Sequence[Results], runs: Sequence[Origin], pictures: Pictures) -> Section | Absent:
    """Time from file to embedding by stage, one figure for each document."""
    parts = []
    for results in every:
        entries = results.entries("stages")
        if not entries:
            continue
        chart = Bars("ms of one video: median, line to the 90th percentile", [_panel(one) for one in entries])
        made = [origin for origin in runs for one in entries if any(one is row for row in origin.rows)]
        unknown = f"From {results.source}, which names no command and machine of this measurement."
        parts += [
            remarks(_remarks(results)),
            pictures.figure("stages", "Time of every stage", chart, made_by(made) if made else unknown),
            *map(table_of, stage_tables([{**one, **_judged(results, one)} for one in entries], JUDGED)),
        ]
    if not parts:
        return Absent("Time by stage", "no end-to-end run in these results; measure one with --mode end-to-end.")
    text = "From the video file to its embedding. The slowest stage bounds the whole, also where stages overlap."
    return Section("stages", "Time by stage", join([element("p", text), *parts]))


def _panel(one: Values) -> tuple[str, list[Bar]]:
    limit = one.get("limit")
    return stages_of(one), [
        Bar(
            str(row["stage"]),
            *(row["p50_ms"], row["p50_ms"], row["p90_ms"]),
            words="ms, the limit" if row["stage"] == limit else "ms",
            muted=row["stage"] != limit,
        )
        for row in one["rows"]
    ]


def _remarks(results: Results) -> list[str]:
    entries = results.entries("stages")
    shown = [f"video: {one['video']}" for one in entries if isinstance(one.get("video"), str)]
    said = [f"{stages_of(one)}: {note}" for one in entries for note in one.get("notes") or ()]
    return [*dict.fromkeys(shown), *said, *document_remarks(results)]


def _judged(results: Results, one: Mapping[str, Any]) -> dict[str, Any]:
    """1 - cosine and parity of a table of stages: its own or, where it has none, that of the same candidate's row.

    A candidate that fails parity gets no table, so one that was compared has passed.
    """
    own = one.get("one_minus_cosine")
    if is_number(own):
        return {"one_minus_cosine": own, "parity": PARITY[one.get("parity") is not False]}
    rows = [row for row in results.rows if (row.candidate, row.batch) == (one["candidate"], one["batch"])]
    far = [row.one_minus_cosine for row in rows if row.one_minus_cosine is not None]
    if not far:
        return {"one_minus_cosine": NOT_COMPARED, "parity": PARITY[None]}
    passed = all(row.parity for row in rows if row.one_minus_cosine is not None)
    return {"one_minus_cosine": max(far), "parity": PARITY[passed]}
