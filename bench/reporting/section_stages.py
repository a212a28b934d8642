"""Time of a video from file to embedding, stage by stage."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from tempme_export.bench.core.row import is_number
from tempme_export.bench.reporting import charts
from tempme_export.bench.reporting.groups import FAILED, PASSED, UNJUDGED, Origin
from tempme_export.bench.reporting.markup import (
    NONE,
    Column,
    Html,
    column_of,
    distance,
    element,
    join,
    number,
    table,
)
from tempme_export.bench.reporting.pictures import Pictures
from tempme_export.bench.reporting.read import Results
from tempme_export.bench.reporting.section import (
    DISTANCE,
    Absent,
    Section,
    document_remarks,
    made_by,
    mark,
    remarks,
)


def stages(every: Sequence[Results], runs: Sequence[Origin], pictures: Pictures) -> Section | Absent:
    """Time from file to embedding by stage, one figure for each document."""
    parts = []
    for results in every:
        tables = results.entries("stages")
        if not tables:
            continue
        panels = [(_stage_title(one), [_stage(one, row) for row in one["rows"]]) for one in tables]
        described = "; ".join(
            f"{title}: " + ", ".join(f"{stage.label} {stage.p50:.3g} ms" for stage in drawn) for title, drawn in panels
        )
        made = [origin for origin in runs for one in tables if any(one is row for row in origin.rows)]
        parts.append(
            join(
                [
                    remarks(_stage_remarks(results)),
                    pictures.figure(
                        "stages",
                        partial(charts.stage_times, panels),
                        f"Time of every stage. {described}.",
                        made_by(made)
                        if made
                        else f"From {results.source}, which names no command and machine of this measurement.",
                    ),
                    _stage_table(results),
                ]
            )
        )
    if not parts:
        return Absent("Time by stage", "no end-to-end run in these results; measure one with --mode end-to-end.")
    text = element(
        "p", "From the video file to its embedding. The slowest stage bounds the whole, also where stages overlap."
    )
    return Section("stages", "Time by stage", join([text, *parts]))


def _stage_title(one: Mapping[str, Any]) -> str:
    profile = f"{one['profile']}, " if one.get("profile") else ""
    return f"{profile}{one['candidate']}, batch {one['batch']}"


def _stage(one: Mapping[str, Any], row: Mapping[str, Any]) -> charts.Stage:
    return charts.Stage(str(row["stage"]), row["p50_ms"], row["p90_ms"], row["stage"] == one.get("limit"))


def _stage_remarks(results: Results) -> list[str]:
    said = [f"{_stage_title(one)}: {note}" for one in results.entries("stages") for note in one.get("notes") or ()]
    shown = [f"video: {one['video']}" for one in results.entries("stages") if isinstance(one.get("video"), str)]
    return [*dict.fromkeys(shown), *said, *document_remarks(results)]


def _stage_table(results: Results) -> Html:
    columns = [
        *(Column("candidate", figures=False), Column("stage", figures=False), Column("median ms")),
        *(
            Column("90\N{NO-BREAK SPACE}% ms"),
            Column("share, %"),
            Column("videos/s"),
            Column(DISTANCE),
            Column("parity", figures=False),
        ),
    ]
    rows = []
    for one in results.entries("stages"):
        far, passed = _accuracy(results, one)
        shown = [distance(far), mark(passed, good=passed == PASSED)]
        whole = one["rows"]
        medians, tails, rates = (column_of([row[key] for row in whole]) for key in ("p50_ms", "p90_ms", "videos_per_s"))
        for i, row in enumerate(whole):
            limit = ", the limit" if row["stage"] == one.get("limit") else ""
            stage = f"{row['stage']}{limit}"
            share = number(100 * row["share"], 1)
            rows.append([_stage_title(one), stage, medians[i], tails[i], share, rates[i], *shown])
        for words, key in (
            ("one after the other", "sequential_videos_per_s"),
            ("overlapped, at most", "overlapped_videos_per_s"),
        ):
            if is_number(one.get(key)):
                rows.append([_stage_title(one), f"whole way, {words}", NONE, NONE, NONE, number(one[key], 2), *shown])
    return table("Milliseconds of one video by stage", columns, rows)


def _accuracy(results: Results, one: Mapping[str, Any]) -> tuple[float | None, str]:
    """1 - cosine and parity of a table of stages: its own or, where it has none, that of the same candidate's row.

    A candidate that fails parity gets no table, so one that was compared has passed.
    """
    own = one.get("one_minus_cosine")
    if is_number(own):
        return own, FAILED if one.get("parity") is False else PASSED
    rows = [row for row in results.rows if (row.candidate, row.batch) == (one["candidate"], one["batch"])]
    far = [row.one_minus_cosine for row in rows if row.one_minus_cosine is not None]
    if not far:
        return None, UNJUDGED
    passed = all(row.parity for row in rows if row.one_minus_cosine is not None)
    return max(far), PASSED if passed else FAILED
