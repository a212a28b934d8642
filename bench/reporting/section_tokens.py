"""Tokens of a video through the blocks."""

from collections.abc import Sequence
from functools import partial

from tempme_export.bench.reporting import charts
from tempme_export.bench.reporting.groups import UNNAMED, Origin, without_method
from tempme_export.bench.reporting.markup import (
    NONE,
    Column,
    Html,
    join,
    table,
)
from tempme_export.bench.reporting.pictures import Pictures
from tempme_export.bench.reporting.read import Results
from tempme_export.bench.reporting.section import (
    Absent,
    Section,
    link,
)
from tempme_export.bench.scaling import family


def tokens(every: Sequence[Results], runs: Sequence[Origin], pictures: Pictures) -> Section | Absent:
    """Tokens of a whole video through the blocks, one figure for each document."""
    parts = []
    for results in every:
        panels: dict[str, list[charts.Tokens]] = {}
        for entry in results.entries("tokens"):
            within = [clips * count for clips, count in zip(entry["clips"], entry["attention"], strict=True)]
            after = [clips * count for clips, count in zip(entry["clips"], entry["mlp"], strict=True)]
            profile = without_method(str(entry.get("profile") or UNNAMED), str(entry["method"]))
            title = f"{family(profile, entry['frames'])}, {entry['frames']} frames"
            line = charts.Tokens(str(entry["method"]), within, after)
            if line not in panels.setdefault(title, []):
                panels[title].append(line)
        if not panels:
            continue
        drawn = list(panels.items())
        described = "; ".join(
            f"{title}, {one.label}: {one.attention[0]} in the first block, {one.after[-1]} after the last"
            for title, lines in drawn
            for one in lines
        )
        parts.append(
            pictures.figure(
                "tokens_per_block",
                partial(charts.tokens_per_block, drawn),
                f"Tokens of a video in every block. {described}.",
                join(
                    [
                        "Tokens of a whole video in the attention of each block and, half a step on, after it. From ",
                        join([link(origin) for origin in runs if origin.results is results] or [results.source], ", "),
                        ".",
                    ]
                ),
            )
        )
        parts.append(_token_table(drawn))
    if not parts:
        return Absent("Tokens per block", "no token counts in these results.")
    return Section("tokens", "Tokens per block", join(parts))


def _token_table(panels: Sequence[tuple[str, Sequence[charts.Tokens]]]) -> Html:
    lines = [(title, one) for title, drawn in panels for one in drawn]
    blocks = max(len(one.after) for _, one in lines)
    columns = [
        Column("method", figures=False),
        Column("profile", figures=False),
        *(Column(str(block)) for block in range(1, blocks + 1)),
    ]
    rows = [[one.label, title, *map(str, one.after), *[NONE] * (blocks - len(one.after))] for title, one in lines]
    return table("Tokens of a whole video after each block", columns, rows)
