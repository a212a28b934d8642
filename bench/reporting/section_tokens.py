"""Tokens of a video through the blocks."""

from collections.abc import Sequence

from tempme_export.bench.reporting.charts import Line, Lines, Panel, Point
from tempme_export.bench.reporting.groups import UNNAMED, Origin, without_method
from tempme_export.bench.reporting.markup import join, table_of
from tempme_export.bench.reporting.read import Results
from tempme_export.bench.reporting.section import Absent, Pictures, Section, link
from tempme_export.bench.scaling import family
from tempme_export.bench.tables.runs import Values
from tempme_export.bench.tables.table import Column, Table, tabled, whole, words


def tokens(every: Sequence[Results], runs: Sequence[Origin], pictures: Pictures) -> Section | Absent:
    """Tokens of a whole video through the blocks, one figure for each document."""
    parts = []
    for results in every:
        panels: dict[str, dict[str, Values]] = {}
        for entry in results.entries("tokens"):
            profile = without_method(str(entry.get("profile") or UNNAMED), str(entry["method"]))
            title = f"{family(profile, entry['frames'])}, {entry['frames']} frames"
            panels.setdefault(title, {}).setdefault(str(entry["method"]), entry)
        if not panels:
            continue
        chart = Lines(
            [Panel(title, "block", "tokens of a video", [*map(_line, own.values())]) for title, own in panels.items()]
        )
        origins: list[str] = [link(origin) for origin in runs if origin.results is results] or [results.source]
        said = "Tokens of a whole video in the attention of each block and, half a step on, after it. From "
        caption = join([said, join(origins, ", "), "."])
        parts.append(pictures.figure("tokens_per_block", "Tokens of a video in every block", chart, caption))
        parts.append(table_of(_table([{**one, "of": title} for title, own in panels.items() for one in own.values()])))
    if not parts:
        return Absent("Tokens per block", "no token counts in these results.")
    return Section("tokens", "Tokens per block", join(parts))


def _after(entry: Values) -> list[int]:
    """Tokens of the whole video after each block."""
    return [clips * count for clips, count in zip(entry["clips"], entry["mlp"], strict=True)]


def _line(entry: Values) -> Line:
    within = [clips * count for clips, count in zip(entry["clips"], entry["attention"], strict=True)]
    after = _after(entry)
    points = [
        Point(block + half, count)
        for block, pair in enumerate(zip(within, after, strict=True), 1)
        for half, count in zip((0, 0.5), pair, strict=True)
    ]
    return Line(f"{entry['method']}: {after[-1]} at the end", points)


def _table(entries: Sequence[Values]) -> Table:
    def at(block: int) -> Column:
        return Column(str(block + 1), lambda one: one["after"][block] if block < len(one["after"]) else None, whole)

    rows = [{**one, "after": _after(one)} for one in entries]
    blocks = [at(block) for block in range(max(len(one["after"]) for one in rows))]
    columns = [Column("method", "method", words), Column("profile", "of", words), *blocks]
    return tabled("Tokens of a whole video after each block", columns, rows)
