"""Growth of a video's cost with its frames: counted, and measured."""

from collections.abc import Sequence
from typing import Any

from tempme_export.bench.methods.catalogue import chosen
from tempme_export.bench.methods.derive import derive
from tempme_export.bench.reporting.charts import Line, Lines, Panel, Point
from tempme_export.bench.reporting.groups import PARITY, Group, Side
from tempme_export.bench.reporting.markup import Html, element, join, table_of
from tempme_export.bench.reporting.read import Results
from tempme_export.bench.reporting.section import (
    FROM,
    PARITY_COLUMN,
    Pictures,
    Section,
    accurate,
    doubt,
    made_by,
    remarks,
)
from tempme_export.bench.reporting.section_speed import together
from tempme_export.bench.scaling import profile_for_frames
from tempme_export.bench.tables.rows import DISTANCE, GMACS, NOT_COMPARED, VIDEOS
from tempme_export.bench.tables.runs import JUDGED, Values, sweep_tables
from tempme_export.bench.tables.table import Bad, Column, fixed, tabled, whole, words
from tempme_export.encoder.backbone import open_clip_backbone
from tempme_export.encoder.profile import load_profile

FRAMES = (8, 12, 16, 24, 32, 48, 64)
BASE = "vit-b-32-12f"
METHODS = ("none", "tome", "tempme")


def costs() -> list[dict[str, Any]]:
    """For each of FRAMES, GMACs of a video (the paper's GFLOPs) on ViT-B/32 by method, and the factors of TempMe."""
    profiles = [profile_for_frames(load_profile(BASE), frames) for frames in FRAMES]
    backbone = open_clip_backbone(profiles[0].backbone)
    found: list[dict[str, Any]] = []
    for profile in profiles:
        counted = {method.key: derive(method, profile, backbone).counted for method in chosen(METHODS)}
        gmacs = {key: None if one is None else one.gmacs for key, one in counted.items()}
        found.append({"frames": profile.frames, "factors": profile.merge.clip_factors, **gmacs})
    return found


_COSTS = (
    Column("frames", "frames", whole),
    *(Column(method.title, method.key, fixed(1)) for method in chosen(METHODS)),
    Column("TempMe, % of no merging", lambda one: 100 * one["tempme"] / one["none"], fixed(1)),
    Column("clips joined by", lambda one: ", ".join(map(str, one["factors"])), words),
)


def frames(every: Sequence[Results], groups: Sequence[Group], pictures: Pictures) -> Section:
    """GMACs against frames by formula and, where several frame counts were measured, time and memory too."""
    counted = costs()
    lines = [
        Line(method.title, [Point(one["frames"], one[method.key]) for one in counted]) for method in chosen(METHODS)
    ]
    chart = Lines([Panel("Counted, ViT-B/32", "frames of a video", "GMACs of a video", lines)])
    by_formula = join(
        ["Counted by formula, from the schedule alone, as ", element("code", "tempme-bench complexity"), " does."]
    )
    parts = [
        element(
            "p",
            "TempMe joins all clips into one in three stages, by factors as equal as can be; those of 8, 12 and 64 "
            "frames are the paper\u2019s.",
        ),
        pictures.figure("cost_frames", "GMACs of a video against its frames", chart, by_formula),
        table_of(tabled("GMACs of a video on ViT-B/32 (the paper\u2019s GFLOPs), by formula", _COSTS, counted)),
        *(_measured(groups, pictures) or [_NOTHING]),
    ]
    for results in every:
        fits, saturations = (_judged(results, results.entries(name)) for name in ("fits", "saturations"))
        parts += map(table_of, sweep_tables(fits, saturations, JUDGED))
    return Section("frames", "Cost against frames", join(parts))


_NOTHING = element("p", "No candidate was measured at several frame counts in these results.", class_="absent")


def _ms(side: Side) -> float:
    return 1e3 / side.videos_per_s


_MEASURED = (
    *(Column("candidate", "candidate", words), Column("frames", "frames", whole), Column("ms of a video", _ms)),
    *(VIDEOS, GMACS, Column("encode MB", "encode_mb", whole), DISTANCE, PARITY_COLUMN, FROM),
)


def _measured(groups: Sequence[Group], pictures: Pictures) -> list[Html]:
    """A figure for every candidate set measured at several frame counts."""
    parts: list[Html] = []
    for alike in together(groups, "results_id", "family", "batch", "by_method", "device").values():
        if len({group.frames for group in alike}) < 2:
            continue
        sides = sorted((side for group in alike for side in group.sides), key=lambda side: side.frames)
        title = f"{alike[0].family}, batch {alike[0].batch}"
        by_name = together(sides, "candidate")
        times = [
            Line(accurate(str(name), own), [Point(side.frames, _ms(side)) for side in own])
            for (name,), own in by_name.items()
        ]
        memory = [
            Line(str(name), points)
            for (name,), own in by_name.items()
            if (points := [Point(side.frames, side.encode_mb) for side in own if side.encode_mb is not None])
        ]
        panels = [Panel(title, "frames of a video", "ms of a video", times)]
        panels += [Panel("Memory of a call, above loading", "frames of a video", "MB", memory)] if memory else []
        doubtful = [Bad(f"{side.candidate} at {side.frames} frames: {doubt([side])}") for side in sides if side.doubts]
        made = made_by(side.origin for side in sides)
        parts += [
            element("h3", f"Measured: {title}"),
            remarks(doubtful),
            pictures.figure("time_frames", f"Time of a video against its frames. {title}", Lines(panels), made),
            table_of(tabled(f"Measured against frames: {title}", _MEASURED, sides)),
        ]
    return parts


def _judged(results: Results, entries: Sequence[Values]) -> list[Values]:
    """Entries with 1 - cosine and parity of the rows that they are of: the worst of them."""
    found: list[Values] = []
    for one in entries:
        keys = [key for key in ("candidate", "method", "frames", "batch") if one.get(key) is not None]
        own = [row for row in results.rows if all(getattr(row, key) == one[key] for key in keys)]
        far = max((row.one_minus_cosine for row in own if row.one_minus_cosine is not None), default=None)
        passed = all(row.parity for row in own) if own else None
        said = {"one_minus_cosine": NOT_COMPARED if far is None else far, "parity": PARITY[passed]}
        found.append({**one, **said})
    return found
