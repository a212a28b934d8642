"""Operations beside time: do fewer take less?"""

from collections.abc import Sequence
from functools import partial

from tempme_export.bench.reporting import charts
from tempme_export.bench.reporting.groups import Group, Side
from tempme_export.bench.reporting.markup import (
    element,
    join,
)
from tempme_export.bench.reporting.pictures import Pictures
from tempme_export.bench.reporting.section import (
    Absent,
    Section,
    accuracy,
    made_by,
)

_NO_ROWS = "no speeds of encoders in these results; measure with tempme-bench --out DIR."


def operations(groups: Sequence[Group], pictures: Pictures) -> Section | Absent:
    """Counted operations against measured speed, a figure per document: whether fewer operations take less time."""
    counted = [group for group in groups if all(side.row.gflops is not None for side in group.sides)]
    if not counted:
        return Absent("Operations against speed", "no rows with counted operations in these results.")
    parts = [
        element(
            "p",
            "Fewer operations need not take less time. On the dashed curve, time would be in proportion to the true "
            "GFLOPs, which count a multiply-accumulate twice; below it, part of what was saved is lost.",
        )
    ]
    documents = {id(group.results): group.results for group in counted}
    for results in documents.values():
        panels: dict[tuple[str, int], list[Group]] = {}
        for group in counted:
            if group.results is results:
                panels.setdefault((group.family, group.batch), []).append(group)
        drawn = [(f"{name}, batch {batch}", _series(same)) for (name, batch), same in panels.items()]
        sides = [side for same in panels.values() for group in same for side in group.sides]
        described = "; ".join(
            f"{title}, {one.label}: "
            + ", ".join(f"{p.gflops:.4g} GFLOPs at {p.value:.3g} videos/s" for p in one.points)
            for title, series in drawn
            for one in series
        )
        hollow = "Hollow marks are not to be relied upon. " if any(side.doubts for side in sides) else ""
        parts.append(
            pictures.figure(
                "gflops_videos_per_s",
                partial(charts.operations_and_speed, drawn),
                f"Operations of a video against speed. {described}.",
                join([hollow, "Accuracies stand beside the names. ", made_by(side.origin for side in sides)]),
            )
        )
    return Section("operations", "Operations against speed", join(parts))


def _series(groups: Sequence[Group]) -> list[charts.Points]:
    """Every candidate's points by rising operations, with its worst accuracy."""
    own: dict[str, list[Side]] = {}
    for side in [side for group in groups for side in group.sides]:
        own.setdefault(side.name, []).append(side)
    return [
        charts.Points(
            name,
            accuracy(max(sides, key=lambda side: side.row.one_minus_cosine or 0.0)),
            sorted((_point(side) for side in sides), key=lambda point: point.gflops),
        )
        for name, sides in own.items()
    ]


def _point(side: Side) -> charts.Point:
    return charts.Point(side.row.gflops or 0.0, side.row.videos_per_s, side.low, side.high, ", ".join(side.doubts))
