"""Speed of every candidate beside its accuracy, and against the operations it saves."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

from tempme_export.bench.reporting.charts import Bar, Bars, Line, Lines, Panel, Point
from tempme_export.bench.reporting.groups import Group, Side
from tempme_export.bench.reporting.markup import Html, element, join, table_of
from tempme_export.bench.reporting.section import (
    FROM,
    PARITY_COLUMN,
    Absent,
    Pictures,
    Section,
    accurate,
    document_remarks,
    doubt,
    link,
    made_by,
    remarks,
)
from tempme_export.bench.tables.rows import DISTANCE, accuracy, ratio, row_tables
from tempme_export.bench.tables.table import COSINE, Bad, Column, estimates, interval, tabled, whole, words

T = TypeVar("T")

_NO_ROWS = "no speeds of encoders in these results; measure with tempme-bench --out DIR."
_HOLLOW = "Hollow marks are not to be relied upon. "
_WITHIN = Column("videos/s, 95 %", lambda side: interval(side.low, side.high) or None, words)


def together(items: Iterable[T], *keys: str) -> dict[tuple[object, ...], list[T]]:
    """Items that are alike in some of their attributes, in their order."""
    found: dict[tuple[object, ...], list[T]] = {}
    for item in items:
        found.setdefault(tuple(getattr(item, key) for key in keys), []).append(item)
    return found


def _not_counted(group: Group) -> str | None:
    doubtful = ", ".join(f"{one.candidate} ({'; '.join(one.doubts)})" for one in group.doubtful)
    return Bad(doubtful) if doubtful else None


_GLANCE = (
    Column("comparison", lambda group: f"{group.name}, {'methods' if group.by_method else 'backends'}", words),
    Column("batch", "batch", whole),
    Column("fastest", lambda g: g.fastest.candidate if g.fastest else Bad("none can be relied upon"), words),
    Column("videos/s", lambda group: group.fastest and group.fastest.videos_per_s),
    Column("times", lambda group: ratio(group.fastest) if group.fastest else (None, None, None), estimates),
    Column("as fast as", lambda group: group.first.candidate, words),
    Column(DISTANCE.head, lambda group: group.fastest and accuracy(group.fastest), words),
    Column("not counted", _not_counted, words),
    Column("from", lambda group: link((group.fastest or group.first).origin), words),
)


def summary(groups: Sequence[Group]) -> Section | Absent:
    """For every comparison, the fastest candidate whose figure can be relied upon."""
    if not groups:
        return Absent("At a glance", _NO_ROWS)
    caption = "The fastest candidate of each comparison that passed parity and converged"
    return Section("glance", "At a glance", table_of(tabled(caption, _GLANCE, groups)))


def speed(groups: Sequence[Group], pictures: Pictures) -> Section | Absent:
    """Charts and tables of every comparison; those that differ in batch size alone stand together."""
    if not groups:
        return Absent("Speed", _NO_ROWS)
    parts = [
        element(
            "p",
            "Videos/s is the batch over the median time of a call. Candidates ran in turns, call by call; the ratio "
            "says how many times as fast as the first candidate one is within a turn, in the median of all turns, with "
            f"its 95 % interval. {COSINE} is the largest distance of an embedding from that which the original "
            "PyTorch path gives for the same method and video; parity says whether that lies within the tolerance.",
        )
    ]
    told: list[object] = []
    for alike in together(groups, "results_id", "profile", "frames", "by_method", "device").values():
        results = alike[0].results
        said = document_remarks(results, again=any(results is other for other in told))
        parts.append(_alike(alike, pictures, said))
        told.append(results)
    return Section("speed", "Speed beside accuracy", join(parts))


def _alike(groups: Sequence[Group], pictures: Pictures, left_out: Sequence[str]) -> Html:
    first, sides = groups[0], [side for group in groups for side in group.sides]
    kind = f"methods on {first.first.backend or 'one backend'}" if first.by_method else "backends"
    title = f"{first.name}: {kind}, {first.frames} frames"
    bars = [(f"batch {group.batch}", [_bar(side, side is group.first) for side in group.sides]) for group in groups]
    kept = all(side.low is not None for side in sides)
    caption = join(
        [
            "Videos per second; ",
            "the line is the 95 % interval of the median. "
            if kept
            else "no 95 % interval where the single samples were not kept. ",
            _HOLLOW if doubt(sides) else "",
            made_by(side.origin for side in sides),
        ]
    )
    tables = row_tables(f"Speed and accuracy: {title}", sides, [_WITHIN, PARITY_COLUMN, FROM])
    return element(
        "section",
        element("h3", title),
        remarks([*_doubts(groups), *left_out]),
        pictures.figure("videos_per_s", f"Videos per second of {title}", Bars("videos/s", bars), caption),
        *map(table_of, tables),
    )


def _bar(side: Side, first: bool) -> Bar:
    doubts, note = doubt([side]), f"{COSINE} {accuracy(side)}"
    return Bar(side.candidate, side.videos_per_s, side.low, side.high, doubts, note, bool(doubts), muted=first)


def _doubts(groups: Sequence[Group]) -> list[str]:
    """Objections of the rows and the protocol to the figures."""
    said: list[str] = []
    for group in groups:
        alike: dict[str, list[str]] = {}
        for side in group.doubtful:
            alike.setdefault(doubt([side]), []).append(side.candidate)
        for why, names in alike.items():
            words = Bad(f"{', '.join(names)}: {why}")
            said.append(join([f"batch {group.batch}: ", words, ". Do not rely on these speeds and ratios."]))
        said += [f"batch {group.batch}: {note}" for note in group.notes]
    return said


def operations(groups: Sequence[Group], pictures: Pictures) -> Section | Absent:
    """Counted operations against measured speed, a figure per document: whether fewer operations take less time."""
    counted = [group for group in groups if all(side.gflops is not None for side in group.sides)]
    if not counted:
        return Absent("Operations against speed", "no rows with counted operations in these results.")
    parts = [
        element(
            "p",
            "Fewer operations need not take less time. On the dashed curve, time would be in proportion to the true "
            "GFLOPs, which count a multiply-accumulate twice; below it, part of what was saved is lost.",
        )
    ]
    for document in together(counted, "results_id").values():
        panels = [
            Panel(f"{name}, batch {batch}", "GFLOPs of a video", "videos/s", _lines(alike))
            for (name, batch), alike in together(document, "family", "batch").items()
        ]
        sides = [side for group in document for side in group.sides]
        made = made_by(side.origin for side in sides)
        caption = join([_HOLLOW if doubt(sides) else "", "Accuracies stand beside the names. ", made])
        title = "Operations of a video against speed"
        parts.append(pictures.figure("gflops_videos_per_s", title, Lines(panels, inverse=True), caption))
    return Section("operations", "Operations against speed", join(parts))


def _lines(groups: Sequence[Group]) -> list[Line]:
    """Every candidate's points by rising operations, with its worst accuracy."""
    return [
        Line(
            ", ".join(filter(None, (accurate(str(name), sides), doubt(sides)))),
            sorted((_point(side) for side in sides), key=lambda point: point.x),
        )
        for (name,), sides in together((side for group in groups for side in group.sides), "candidate").items()
    ]


def _point(side: Side) -> Point:
    return Point(side.gflops or 0.0, side.videos_per_s, side.low, side.high, bool(side.doubts))
