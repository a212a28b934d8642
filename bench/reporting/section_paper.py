"""The paper's Tables 1 and 4, with our counts and, where they were measured, our speeds beside its figures."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tempme_export.bench.methods.catalogue import METHODS as CATALOGUE
from tempme_export.bench.methods.figures import PaperFigures, paper_figures
from tempme_export.bench.paper import PaperRow
from tempme_export.bench.reporting.groups import Group, Side
from tempme_export.bench.reporting.markup import NONE, Column, Html, distance, element, join, number, table
from tempme_export.bench.reporting.printed import ACCURACIES, METHODS, TABLE_1, TABLE_4, Accuracy, Setting
from tempme_export.bench.reporting.section import (
    DISTANCE,
    INTERVAL,
    Section,
    interval_cells,
    link,
    made_by,
    remarks,
    verdict,
)

_OTHER_MACHINE = (
    "Videos/s of the paper were measured on one A100, with a batch size and precision that it does not state. Ours "
    "were measured on other machines, named beside each figure: compare the gain over no merging, not the "
    "speeds themselves."
)


@dataclass(frozen=True)
class Line:
    """A method of the paper in one setting.

    figures  what it prints; None where it prints nothing
    ours     our count; None where its settings are not in print
    """

    key: str
    title: str
    figures: PaperFigures
    accuracy: Accuracy
    ours: PaperRow | None


def lines(setting: Setting, counted: Sequence[PaperRow]) -> list[Line]:
    """The methods of Tables 1 and 4 in one setting, in the paper's order."""
    found = []
    for method in CATALOGUE:
        figures = paper_figures(method, setting.backbone, setting.frames) if method.key in METHODS else None
        if figures is None:
            continue
        claim = figures.claim
        ours = next(
            (
                row
                for row in counted
                if claim is not None
                and (row.label, row.source, row.frames) == (claim.label, claim.source, claim.frames)
            ),
            None,
        )
        accuracy = ACCURACIES[method.key, setting.backbone, setting.frames]
        found.append(Line(method.key, method.title, figures, accuracy, ours))
    return sorted(found, key=lambda line: METHODS.index(line.key))


def measured(line: Line, groups: Sequence[Group]) -> list[tuple[Group, Side]]:
    """Measurements of a method in its setting: rows with its frames, operations and tokens.

    Of methods side by side, the method; of backends, the first and the fastest that can be relied upon.
    """
    if line.ours is None:
        return []
    found = []
    for group in groups:
        own = [side for side in group.sides if _is(side, line.key, line.ours)]
        sure = [side for side in own if not side.doubts]
        if group.by_method or not sure:
            picked = own[:1]
        else:
            picked = [own[0], max(sure, key=lambda side: float(side.row.videos_per_s))]
        found += [(group, side) for i, side in enumerate(picked) if side not in picked[:i]]
    return found


def _is(side: Side, key: str, ours: PaperRow) -> bool:
    row = side.row
    return (
        row.method in (None, key)
        and row.frames == ours.frames
        and row.gmacs is not None
        and math.isclose(row.gmacs, ours.complexity.gmacs, rel_tol=1e-6)
        and row.final_tokens in (None, ours.tokens)
        and row.final_clips in (None, ours.clips)
    )


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
    ]
    for setting in TABLE_1:
        parts.append(_table_1(setting, lines(setting, counted), groups))
    parts += [
        element("h3", "Table 4: speed"),
        element("p", _OTHER_MACHINE),
        _table_4(lines(TABLE_4, counted), groups),
    ]
    return Section("paper", "Beside the paper", join(parts))


def _tokens(tokens: tuple[int, int] | None) -> str:
    return NONE if tokens is None else f"{tokens[0]} \N{MULTIPLICATION SIGN} {tokens[1]}"


def _recalls(accuracy: Accuracy) -> str:
    return f"{accuracy.r1:.1f} / {accuracy.r_sum:.1f}"


def _table_1(setting: Setting, rows_of: Sequence[Line], groups: Sequence[Group]) -> Html:
    columns = [
        *(Column("method", figures=False), Column("R@1 / R-Sum, paper"), Column("tokens, paper"), Column("counted")),
        *(Column("GMACs, paper"), Column("counted"), Column("difference"), Column("reproduced", figures=False)),
    ]
    rows, reasons = [], []
    for line in rows_of:
        ours = line.ours
        answer = "not counted" if ours is None else "yes" if ours.reproduces and ours.holds else "no"
        rows.append(
            [
                line.title,
                _recalls(line.accuracy),
                _tokens(line.figures.tokens),
                NONE if ours is None else _tokens((ours.clips, ours.tokens)),
                number(line.figures.gflops, 1),
                NONE if ours is None else number(ours.complexity.gmacs, 2),
                NONE if ours is None or ours.difference is None else number(ours.difference, 2),
                answer,
            ]
        )
        if ours is None:
            method = next(one for one in CATALOGUE if one.key == line.key)
            reasons.append(f"{line.title}: {method.reason}")
        elif ours.reason:
            reasons.append(f"{line.title}: {ours.reason}.")
    told = f"{setting.title}; accuracies on {setting.videos}"
    parts = [table(told, columns, rows), remarks(list(dict.fromkeys(reasons)))]
    if setting is TABLE_4:
        parts.append(element("p", "Speeds of this setting stand under Table 4."))
    elif any(measured(line, groups) for line in rows_of):
        parts.append(_speed_table(f"Measured speeds, {setting.title} (the paper prints none)", rows_of, groups))
    else:
        parts.append(element("p", "No speed of this setting in these results.", class_="absent"))
    return element("section", *parts)


_SPEED_COLUMNS = (
    *(Column("method", figures=False), Column("measured by", figures=False), Column("batch"), Column("videos/s")),
    *(Column(INTERVAL), Column("times no merging"), Column(INTERVAL), Column("GMACs"), Column("tokens")),
    *(Column("accuracy", figures=False), Column("parity", figures=False), Column("converged", figures=False)),
)


def _speed_line(group: Group, side: Side) -> list[str]:
    row = side.row
    over = group.by_method and group.first.row.method == "none"
    by = element("span", f"{row.backend or side.name}, ", link(side.origin), class_="whole")
    return [
        by,
        str(group.batch),
        number(row.videos_per_s, 2),
        interval_cells([side.low], [side.high])[0],
        number(row.ratio, 2) if over else NONE,
        interval_cells([row.ratio_low], [row.ratio_high])[0] if over else NONE,
        number(row.gmacs, 1),
        _tokens((row.final_clips, row.final_tokens)) if row.final_clips and row.final_tokens else NONE,
        element("span", f"{DISTANCE} {distance(row.one_minus_cosine)}", class_="whole"),
        verdict(side),
        "yes" if side.converged == "yes" else element("strong", side.converged, class_="bad"),
    ]


def _speed_table(caption: str, rows_of: Sequence[Line], groups: Sequence[Group]) -> Html:
    found = [(line, group, side) for line in rows_of for group, side in measured(line, groups)]
    rows = [[line.title, *_speed_line(group, side)] for line, group, side in found]
    made = element("p", made_by(side.origin for _, _, side in found), class_="note")
    return join([table(caption, _SPEED_COLUMNS, rows), made])


def _table_4(rows_of: Sequence[Line], groups: Sequence[Group]) -> Html:
    base = next((line.figures.videos_per_s for line in rows_of if line.key == "none"), None)
    rows = []
    for line in rows_of:
        printed = line.figures.videos_per_s
        gain = None if printed is None or base is None else printed / base
        rows.append(
            [
                line.title,
                "the paper, one A100",
                NONE,
                number(printed, 1),
                NONE,
                number(gain, 2),
                NONE,
                number(line.figures.gflops, 1),
                _tokens(line.figures.tokens),
                element("span", f"R@1 / R-Sum {_recalls(line.accuracy)}", class_="whole"),
                NONE,
                NONE,
            ]
        )
        rows += [[line.title, *_speed_line(group, side)] for group, side in measured(line, groups)]
    shown = [side.origin for line in rows_of for _, side in measured(line, groups)]
    parts = [table(f"{TABLE_4.title}: the paper\u2019s A100 figures, and ours", _SPEED_COLUMNS, rows)]
    if shown:
        parts.append(element("p", made_by(shown), class_="note"))
    else:
        said = (
            "No speed of this setting in these results; measure with: tempme-bench --profile vit-b-16-12f --methods all"
        )
        parts.append(element("p", said, class_="absent"))
    return join(parts)
