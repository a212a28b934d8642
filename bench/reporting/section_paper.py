"""The paper's Tables 1 and 4, with our counts and, where they were measured, our speeds beside its figures."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tempme_export.bench.methods.catalogue import METHODS, Method
from tempme_export.bench.methods.figures import PaperFigures, paper_figures
from tempme_export.bench.paper import PaperRow
from tempme_export.bench.reporting.groups import PARITY, Group, Side
from tempme_export.bench.reporting.markup import Html, element, join, table_of
from tempme_export.bench.reporting.section import Section, link, made_by, remarks
from tempme_export.bench.tables.rows import BATCH, DISTANCE, KNOWN, VIDEOS, accuracy, known_within, ratio
from tempme_export.bench.tables.runs import Values
from tempme_export.bench.tables.table import Column, estimates, fixed, interval, products, tabled, texts, words

SHOWN = ("none", "diffrate", "tome", "tempme")
"""Rows of Tables 1 and 4 that merge tokens or nothing, by our keys."""

_OTHER_MACHINE = (
    "Videos/s of the paper were measured on one A100, with a batch size and precision that it does not state. Ours "
    "were measured on other machines, named beside each figure: compare the gain over no merging, not the "
    "speeds themselves."
)
_B32, _B16 = "ViT-B-32-quickgelu", "ViT-B-16-quickgelu"


@dataclass(frozen=True)
class Setting:
    """Columns of Table 1: a backbone, frames, the videos that its accuracies are of, and our profile."""

    title: str
    backbone: str
    frames: int
    videos: str
    profile: str


TABLE_1 = (
    Setting("ViT-B/32, 12 frames", _B32, 12, "MSR-VTT", "vit-b-32-12f"),
    Setting("ViT-B/32, 64 frames", _B32, 64, "ActivityNet", "vit-b-32-64f"),
    Setting("ViT-B/16, 12 frames", _B16, 12, "MSR-VTT", "vit-b-16-12f"),
)
TABLE_4 = TABLE_1[2]


@dataclass(frozen=True)
class Line:
    """A method of the paper in one setting: what it prints, and our count; None where its settings are not in print."""

    method: Method
    figures: PaperFigures
    ours: PaperRow | None

    @property
    def title(self) -> str:
        return self.method.title

    @property
    def reason(self) -> str:
        """Why our count is not what is printed, or is not there; empty where it is."""
        said = self.method.reason if self.ours is None else self.ours.reason
        return f"{self.title}: {said.removesuffix('.')}." if said else ""


def lines(setting: Setting, counted: Sequence[PaperRow]) -> list[Line]:
    """The methods of Tables 1 and 4 in one setting, in the paper's order."""
    found = []
    for method in sorted((one for one in METHODS if one.key in SHOWN), key=lambda one: SHOWN.index(one.key)):
        figures = paper_figures(method, setting.backbone, setting.frames)
        if figures is not None:
            claim = figures.claim
            own = None if claim is None else (claim.label, claim.source, claim.frames)
            ours = next((row for row in counted if (row.label, row.source, row.frames) == own), None)
            found.append(Line(method, figures, ours))
    return found


def measured(line: Line, groups: Sequence[Group]) -> Iterator[tuple[Group, Side]]:
    """Measurements of a method in its setting: rows with its frames, operations and tokens.

    Of methods side by side, the method; of backends, the first and the fastest that can be relied upon.
    """
    for group in groups:
        own = [side for side in group.sides if line.ours and _is(side, line.method.key, line.ours)]
        sure = [] if group.by_method else [side for side in own if not side.doubts]
        fastest = max(sure, key=lambda side: side.videos_per_s, default=None)
        yield from ((group, side) for side in own if side is own[0] or side is fastest)


def _is(side: Side, key: str, ours: PaperRow) -> bool:
    return (
        side.method in (None, key)
        and side.frames == ours.frames
        and side.gmacs is not None
        and math.isclose(side.gmacs, ours.complexity.gmacs, rel_tol=1e-6)
        and side.final_tokens in (None, ours.tokens)
        and side.final_clips in (None, ours.clips)
    )


def _recalls(figures: PaperFigures) -> str | None:
    return None if figures.recalls is None else "{:.1f} / {:.1f}".format(*figures.recalls)


def _answer(line: Line) -> str:
    if line.ours is None:
        return "not counted"
    return "yes" if line.ours.reproduces and line.ours.holds else "no"


_COUNTS = (
    Column("method", "title", words),
    Column("R@1 / R-Sum, paper", lambda line: _recalls(line.figures), texts),
    Column("tokens, paper", lambda line: line.figures.tokens, products),
    Column("counted", lambda line: line.ours and (line.ours.clips, line.ours.tokens), products),
    Column("GMACs, paper", lambda line: line.figures.gflops, fixed(1)),
    Column("counted", lambda line: line.ours and line.ours.complexity.gmacs, fixed(2)),
    Column("difference", lambda line: line.ours and line.ours.difference, fixed(2)),
    Column("reproduced", _answer, words),
)
_SPEEDS = (
    *(Column("method", "title", words), Column("measured by", "by", words), BATCH, VIDEOS),
    *(Column("95 %", "within", texts), Column("times no merging", "gain", estimates)),
    *(Column("GMACs", "gmacs", fixed(1)), Column("tokens", "tokens", products), Column("accuracy", "accuracy", words)),
    *(Column("parity", "parity", words), Column(KNOWN, "known", texts)),
)


def _whole(*children: str) -> Html:
    return element("span", *children, class_="whole")


def _printed(line: Line, base: float | None) -> Values:
    figures, speed = line.figures, line.figures.videos_per_s
    return {
        **{"title": line.title, "by": "the paper, one A100", "videos_per_s": speed},
        **{"gain": (None if speed is None or base is None else speed / base, None, None)},
        **{"gmacs": figures.gflops, "tokens": figures.tokens, "accuracy": _whole(f"R@1 / R-Sum {_recalls(figures)}")},
    }


def _ours(line: Line, group: Group, side: Side) -> Values:
    over_none = group.by_method and group.first.method == "none"
    return {
        **{"title": line.title, "by": _whole(f"{side.backend or side.candidate}, ", link(side.origin))},
        **{"batch": side.batch, "videos_per_s": side.videos_per_s, "within": interval(side.low, side.high) or None},
        **{"gain": ratio(side) if over_none else (None, None, None), "gmacs": side.gmacs},
        **{"tokens": (side.final_clips, side.final_tokens), "known": known_within(side)},
        **{"accuracy": _whole(f"{DISTANCE.head} ", accuracy(side)), "parity": PARITY[side.parity]},
    }


def paper(counted: Sequence[PaperRow], groups: Sequence[Group]) -> Section:
    """Both tables."""
    parts = [
        element("h3", "Table 1: operations and tokens"),
        element(
            "p",
            "Printed by the paper and counted here from its settings, by formula. "
            "The paper\u2019s GFLOPs are multiply-accumulates, GMACs in these tables. R@1 and R-Sum, text to "
            "video, are the paper\u2019s.",
        ),
        *(_table_1(setting, lines(setting, counted), groups) for setting in TABLE_1),
        element("h3", "Table 4: speed"),
        element("p", _OTHER_MACHINE),
        _table_4(lines(TABLE_4, counted), groups),
    ]
    return Section("paper", "Beside the paper", join(parts))


def _table_1(setting: Setting, shown: Sequence[Line], groups: Sequence[Group]) -> Html:
    reasons = list(dict.fromkeys(line.reason for line in shown if line.reason))
    parts = [table_of(tabled(f"{setting.title}; accuracies on {setting.videos}", _COUNTS, shown)), remarks(reasons)]
    if setting is TABLE_4:
        parts.append(element("p", "Speeds of this setting stand under Table 4."))
    else:
        own = [(line, *pair) for line in shown for pair in measured(line, groups)]
        caption = f"Measured speeds, {setting.title} (the paper prints none)"
        parts.append(_speeds(setting, caption, [_ours(*one) for one in own], [side for _, _, side in own]))
    return element("section", *parts)


def _table_4(shown: Sequence[Line], groups: Sequence[Group]) -> Html:
    base = next((line.figures.videos_per_s for line in shown if line.method.key == "none"), None)
    rows, sides = list[Values](), list[Side]()
    for line in shown:
        own = list(measured(line, groups))
        rows += [_printed(line, base), *(_ours(line, group, side) for group, side in own)]
        sides += [side for _, side in own]
    return _speeds(TABLE_4, f"{TABLE_4.title}: the paper\u2019s A100 figures, and ours", rows, sides)


def _speeds(setting: Setting, caption: str, rows: Sequence[Values], sides: Sequence[Side]) -> Html:
    """Speeds, and where ours of `sides` were measured or what would measure them."""
    said = element("p", made_by(side.origin for side in sides), class_="note")
    if not sides:
        command = f"tempme-bench --profile {setting.profile} --methods all"
        said = element("p", f"No speed of this setting in these results; measure with: {command}", class_="absent")
    return join([*([table_of(tabled(caption, _SPEEDS, rows))] if rows else []), said])
