"""Growth of a video's cost with its frames: counted, and measured."""

from collections.abc import Sequence
from functools import partial

from tempme_export.bench.reporting import charts
from tempme_export.bench.reporting.cost import FRAMES, costs, factors
from tempme_export.bench.reporting.groups import PASSED, Group, Side
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
    Section,
    accuracy,
    full_table,
    link,
    made_by,
    mark,
    remarks,
)
from tempme_export.bench.reporting.section_sweeps import fit_table, saturation_table

_BY_FORMULA = join(
    ["Counted by formula, from the schedule alone, as ", element("code", "tempme-bench complexity"), " does."]
)


def frames(every: Sequence[Results], groups: Sequence[Group], pictures: Pictures) -> Section:
    """GMACs against frames by formula and, where several frame counts were measured, time and memory too."""
    counted = costs()
    panels = [("Counted, ViT-B/32", "GMACs of a video", [charts.Line(c.label, c.frames, c.gmacs) for c in counted])]
    described = "; ".join(
        f"{one.label}: " + ", ".join(f"{g:.1f} at {f}" for f, g in zip(one.frames, one.gmacs, strict=True))
        for one in counted
    )
    columns = [
        *(Column("frames"), *(Column(one.label) for one in counted)),
        *(Column("TempMe, % of no merging"), Column("clips joined by", figures=False)),
    ]
    rows = [
        [
            str(count),
            *(number(one.gmacs[i], 1) for one in counted),
            number(100 * counted[-1].gmacs[i] / counted[0].gmacs[i], 1),
            ", ".join(map(str, factors(count))),
        ]
        for i, count in enumerate(FRAMES)
    ]
    parts = [
        element(
            "p",
            "TempMe joins all clips into one in three stages, by factors as equal as can be; those of 8, 12 and 64 "
            "frames are the paper\u2019s.",
        ),
        pictures.figure(
            "cost_frames",
            partial(charts.cost_against_frames, panels),
            f"GMACs of a video against its frames. {described}.",
            _BY_FORMULA,
        ),
        table("GMACs of a video on ViT-B/32 (the paper\u2019s GFLOPs), by formula", columns, rows),
        *_measured(groups, pictures),
        *(fit_table(results) for results in every if results.entries("fits")),
        *(saturation_table(results) for results in every if results.entries("saturations")),
    ]
    return Section("frames", "Cost against frames", join(parts))


def _measured(groups: Sequence[Group], pictures: Pictures) -> list[Html]:
    """A figure for every candidate set measured at several frame counts; one line that says so where there is none."""
    found: dict[tuple[object, ...], list[tuple[Group, Side]]] = {}
    for group in groups:
        key = (id(group.results), group.family, group.batch, group.by_method, group.first.row.device)
        found.setdefault(key, []).extend((group, side) for side in group.sides)
    parts = []
    for pairs in found.values():
        if len({group.frames for group, _ in pairs}) < 2:
            continue
        first = pairs[0][0]
        pairs.sort(key=lambda pair: pair[0].frames)
        title = f"{first.family}, batch {first.batch}"
        names = list(dict.fromkeys(side.name for _, side in pairs))
        panels = [(title, "ms of a video", _lines(pairs, names, "p50_ms", first.batch, accurate=True))]
        if any(side.row.encode_mb is not None for _, side in pairs):
            panels.append(("Memory of a call, above loading", "MB", _lines(pairs, names, "encode_mb")))
        doubtful = [
            f"{side.name} at {group.frames} frames: {', '.join(side.doubts)}" for group, side in pairs if side.doubts
        ]
        parts += [
            element("h3", f"Measured: {title}"),
            remarks([mark(said, good=False) for said in doubtful]),
            pictures.figure(
                "time_frames",
                partial(charts.cost_against_frames, panels),
                f"Time of a video against its frames. {title}: "
                + "; ".join(f"{side.name} {_ms(side):.3g} ms at {group.frames}" for group, side in pairs)
                + ".",
                made_by(side.origin for _, side in pairs),
            ),
            _frames_table(title, pairs),
        ]
    if parts:
        return parts
    return [element("p", "No candidate was measured at several frame counts in these results.", class_="absent")]


def _ms(side: Side) -> float:
    return 1e3 / side.row.videos_per_s


def _lines(
    pairs: Sequence[tuple[Group, Side]], names: Sequence[str], key: str, over: int = 1, *, accurate: bool = False
) -> list[charts.Line]:
    """A column divided by `over` against frames, one line per candidate; with its worst accuracy if `accurate`."""
    lines = []
    for name in names:
        own = [
            (group.frames, side) for group, side in pairs if side.name == name and getattr(side.row, key) is not None
        ]
        if own:
            worst = max((side for _, side in own), key=lambda side: side.row.one_minus_cosine or 0.0)
            label = f"{name}: {accuracy(worst)}" if accurate else name
            lines.append(charts.Line(label, [at for at, _ in own], [getattr(side.row, key) / over for _, side in own]))
    return lines


def _frames_table(title: str, pairs: Sequence[tuple[Group, Side]]) -> Html:
    columns = [
        *(Column("candidate", figures=False), Column("frames"), Column("ms of a video"), Column("videos/s")),
        *(Column("GMACs"), Column("encoding MB"), Column(DISTANCE), Column("parity", figures=False)),
        Column("from", figures=False),
    ]
    rows_of = [side.row for _, side in pairs]
    times, speeds = column_of([_ms(side) for _, side in pairs]), column_of([row.videos_per_s for row in rows_of])
    gmacs, memory = (column_of([getattr(row, key) for row in rows_of]) for key in ("gmacs", "encode_mb"))
    rows = [
        [
            side.name,
            str(group.frames),
            times[i],
            speeds[i],
            gmacs[i],
            memory[i],
            distance(side.row.one_minus_cosine),
            mark(side.parity, good=side.parity == PASSED),
            link(side.origin),
        ]
        for i, (group, side) in enumerate(pairs)
    ]
    return full_table(f"Measured against frames: {title}", columns, rows)
