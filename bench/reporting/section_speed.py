"""Speed of every candidate beside its accuracy, and against the operations it saves."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from tempme_export.bench.reporting import charts
from tempme_export.bench.reporting.groups import CONVERGED, Group, Side
from tempme_export.bench.reporting.markup import (
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
    INTERVAL,
    Absent,
    Section,
    accuracy,
    brief_remarks,
    document_remarks,
    full_table,
    interval_cells,
    link,
    made_by,
    mark,
    remarks,
    verdict,
)

_NO_ROWS = "no speeds of encoders in these results; measure with tempme-bench --out DIR."

Set = Sequence[Group]
"""Comparisons of one profile that differ in batch size alone."""


def sets(groups: Sequence[Group]) -> list[Set]:
    """Comparisons that differ in batch size alone, together, in the order of the page."""
    found: dict[tuple[object, ...], list[Group]] = {}
    for group in groups:
        device, method = group.first.row.device, group.by_method
        found.setdefault((id(group.results), group.profile, group.frames, method, device), []).append(group)
    return list(found.values())


def summary(groups: Sequence[Group]) -> Section | Absent:
    """For every comparison, the fastest candidate whose figure can be relied upon."""
    if not groups:
        return Absent("At a glance", _NO_ROWS)
    columns = [
        *(Column("comparison", figures=False), Column("batch"), Column("fastest", figures=False)),
        *(Column("videos/s"), Column("times as fast as"), Column(INTERVAL), Column(DISTANCE)),
        *(Column("not counted", figures=False), Column("from", figures=False)),
    ]
    best = [max(sure, key=_speed) if (sure := [s for s in g.sides if not s.doubts]) else None for g in groups]
    speeds = column_of([None if side is None else _speed(side) for side in best])
    rows = []
    for group, side, speed in zip(groups, best, speeds, strict=True):
        doubtful = ", ".join(f"{one.name} ({'; '.join(one.doubts)})" for one in group.doubtful)
        left = mark(doubtful, good=False) if doubtful else "\N{EN DASH}"
        head = [f"{group.name}, {'methods' if group.by_method else 'backends'}", str(group.batch)]
        if side is None:
            rows.append([*head, mark("none can be relied upon", good=False), speed, *["\N{EN DASH}"] * 3, left,
                         link(group.first.origin)])  # fmt: skip
            continue
        times, (low, high) = side.row.ratio, (side.row.ratio_low, side.row.ratio_high)
        rows.append(
            [
                *head,
                side.name,
                speed,
                f"{number(times, 2)} \N{MULTIPLICATION SIGN} {group.first.name}",
                interval_cells([low], [high])[0],
                distance(side.row.one_minus_cosine),
                left,
                link(side.origin),
            ]
        )
    caption = "The fastest candidate of each comparison that passed parity and converged"
    return Section("glance", "At a glance", table(caption, columns, rows))


def speed(groups: Sequence[Group], pictures: Pictures) -> Section | Absent:
    """Charts and tables of every comparison."""
    if not groups:
        return Absent("Speed", _NO_ROWS)
    parts = [
        element(
            "p",
            "Videos/s is the batch over the median time of a call. Candidates ran in turns, call by call; "
            "\u201ctimes\u201d says how many times as fast as the first candidate one is within a turn, in the median "
            "of all turns, with its 95 % interval. 1 \N{MINUS SIGN} cosine is the largest distance of an embedding "
            "from that which the original PyTorch path gives for the same method and video; parity says whether that "
            "lies within the tolerance.",
        )
    ]
    told: list[Results] = []
    for one in sets(groups):
        results = one[0].results
        again = any(results is other for other in told)
        parts.append(_one_set(one, pictures, brief_remarks(results) if again else document_remarks(results)))
        told.append(results)
    return Section("speed", "Speed beside accuracy", join(parts))


def _title(groups: Set) -> str:
    first = groups[0]
    kind = f"methods on {first.first.row.backend or 'one backend'}" if first.by_method else "backends"
    return f"{first.name}: {kind}, {first.frames} frames"


def _one_set(groups: Set, pictures: Pictures, left_out: Sequence[str]) -> Html:
    sides = [(group, side) for group in groups for side in group.sides]
    panels = [(f"batch {group.batch}", [_bar(side) for side in group.sides]) for group in groups]
    described = "; ".join(
        f"batch {group.batch}: " + ", ".join(f"{side.name} {_speed(side):.3g}" for side in group.sides)
        for group in groups
    )
    origins = [side.origin for _, side in sides]
    kept = all(side.low is not None for _, side in sides)
    caption = join(
        [
            "Videos per second; the line is the 95 % interval of the median. "
            if kept
            else "Videos per second; no 95 % interval where the single samples were not kept. ",
            "Hollow marks are not to be relied upon. " if any(side.doubts for _, side in sides) else "",
            made_by(origins),
        ]
    )
    return element(
        "section",
        element("h3", _title(groups)),
        remarks([*_doubts(groups), *left_out]),
        pictures.figure(
            "videos_per_s",
            partial(charts.videos_per_s, panels),
            f"Videos per second of {_title(groups)}. {described}.",
            caption,
        ),
        _speed_table(groups),
        _latency_table(groups),
        _cost_table(groups),
    )


def _speed(side: Side) -> float:
    return float(side.row.videos_per_s)


def _bar(side: Side) -> charts.Bar:
    return charts.Bar(side.name, _speed(side), side.low, side.high, accuracy(side), ", ".join(side.doubts))


def _doubts(groups: Set) -> list[str]:
    """Objections of the rows and the protocol to the figures."""
    said: list[str] = []
    for group in groups:
        alike: dict[str, list[str]] = {}
        for side in group.doubtful:
            alike.setdefault(", ".join(side.doubts), []).append(side.name)
        for doubt, names in alike.items():
            words = element("strong", f"{', '.join(names)}: {doubt}", class_="bad")
            said.append(join([f"batch {group.batch}: ", words, ". Do not rely on these speeds and ratios."]))
        said += [f"batch {group.batch}: {note}" for note in group.notes]
    return said


def _sides(groups: Set) -> list[Side]:
    return [side for group in groups for side in group.sides]


def _figures(sides: Sequence[Side], key: str) -> list[str]:
    return column_of([getattr(side.row, key) for side in sides])


def _speed_table(groups: Set) -> Html:
    sides = _sides(groups)
    first = groups[0].first.name
    columns = [
        *(Column("candidate", figures=False), Column("backend", figures=False), Column("precision", figures=False)),
        *(Column("batch"), Column("videos/s"), Column(INTERVAL), Column(f"times {first}"), Column(INTERVAL)),
        *(Column(DISTANCE), Column("parity", figures=False), Column("converged", figures=False)),
        Column("from", figures=False),
    ]
    if not groups[0].by_method:
        del columns[1]
    speeds = _figures(sides, "videos_per_s")
    of_speed = interval_cells([side.low for side in sides], [side.high for side in sides])
    of_ratio = interval_cells([s.row.ratio_low for s in sides], [s.row.ratio_high for s in sides])
    rows = []
    for i, side in enumerate(sides):
        row: list[str] = [
            side.name,
            str(side.row.backend or "\N{EN DASH}"),
            str(side.row.precision or "\N{EN DASH}"),
            str(side.row.batch),
            speeds[i],
            of_speed[i],
            number(side.row.ratio, 2),
            of_ratio[i],
            distance(side.row.one_minus_cosine),
            verdict(side),
            mark(side.converged, good=side.converged == CONVERGED),
            link(side.origin),
        ]
        if not groups[0].by_method:
            del row[1]
        rows.append(row)
    return table(f"Speed and accuracy: {_title(groups)}", columns, rows)


def _latency_table(groups: Set) -> Html:
    sides = _sides(groups)
    keys = {
        "median": "p50_ms",
        "90\N{NO-BREAK SPACE}%": "p90_ms",
        "99\N{NO-BREAK SPACE}%": "p99_ms",
        "mean": "mean_ms",
        "times original-bf16": "ratio_bf16",
        "on the GPU": "resident_ms",
        "by its events": "device_ms",
    }
    columns = [
        *(Column("candidate", figures=False), Column("batch"), *(Column(head) for head in keys)),
        *(Column("CoV"), Column("samples"), Column("GMACs"), Column("GFLOPs"), Column("tokens at the end")),
        *(Column(DISTANCE), Column("parity", figures=False)),
    ]
    whole = [_figures(sides, key) for key in keys.values()]
    gmacs, gflops = _figures(sides, "gmacs"), _figures(sides, "gflops")
    rows = [
        [
            side.name,
            str(side.row.batch),
            *(column[i] for column in whole),
            number(side.row.cov, 3),
            number(side.row.samples, 0),
            gmacs[i],
            gflops[i],
            tokens(side.row),
            distance(side.row.one_minus_cosine),
            verdict(side),
        ]
        for i, side in enumerate(sides)
    ]
    return full_table(f"Milliseconds of a call, and operations of a video: {_title(groups)}", columns, rows)


def tokens(row: Any) -> str:
    """Clips by tokens after the last block, as the paper writes them."""
    clips, count = row.final_clips, row.final_tokens
    if count is None:
        return "\N{EN DASH}"
    return number(count, 0) if clips is None else f"{clips:.0f} \N{MULTIPLICATION SIGN} {count:.0f}"


def _cost_table(groups: Set) -> Html:
    sides = _sides(groups)
    keys = {
        "build s": "build_s",
        "file MB": "artifact_mb",
        "load s": "load_s",
        "loading MB": "load_mb",
        "encoding MB": "encode_mb",
        "on the GPU MB": "device_mb",
    }
    whole = [_figures(sides, key) for key in keys.values()]
    columns = [Column("candidate", figures=False), Column("batch"), *(Column(head) for head in keys)]
    rows = [[side.name, str(side.row.batch), *(column[i] for column in whole)] for i, side in enumerate(sides)]
    caption = "Getting ready, the file, and memory of this process beyond what it held before (1 MB is 1e6 bytes)"
    return full_table(f"{caption}: {_title(groups)}", columns, rows)
