"""Parts that the sections of the page share."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tempme_export.bench.reporting.groups import Group, Origin, Side
from tempme_export.bench.reporting.markup import NONE, Column, Html, column_of, distance, element, join, table
from tempme_export.bench.reporting.read import Results

DISTANCE = "1\N{NO-BREAK SPACE}\N{MINUS SIGN}\N{NO-BREAK SPACE}cosine"
INTERVAL = "95\N{NO-BREAK SPACE}%"


@dataclass(frozen=True)
class Section:
    """A part of the page. `title` is plain text."""

    anchor: str
    title: str
    body: Html


@dataclass(frozen=True)
class Absent:
    """A part that these results have nothing for, and why, in one line."""

    title: str
    reason: str


def link(origin: Origin) -> Html:
    """To where the command, machine and versions of a number stand."""
    return element("a", origin.name, href=f"#{origin.anchor}")


def made_by(origins: Iterable[Origin]) -> Html:
    """Origins of the numbers of a figure, each once."""
    unique = {origin.number: origin for origin in origins}
    said = [join([link(origin), f": {origin.machine}, ", day(origin)]) for origin in unique.values()]
    return join(["Measured in ", join(said, "; "), "."])


def day(origin: Origin) -> Html:
    """Days of the measurement, from the first to the last. Not broken over lines."""
    days = sorted({str(time)[:10] for time in origin.values("time")})
    said = " to ".join(dict.fromkeys((days[0], days[-1]))) if days else "at an unknown time"
    return element("span", said, class_="whole")


def interval_cells(low: Sequence[float | None], high: Sequence[float | None]) -> list[str]:
    """95 % intervals of one column, all with the same decimals; a dash where there is none."""
    texts = column_of([*low, *high])
    pairs = zip(texts[: len(low)], texts[len(low) :], strict=True)
    return [NONE if NONE in pair else f"{pair[0]} \N{EN DASH} {pair[1]}" for pair in pairs]


def verdict(side: Side) -> str:
    """Parity in a word; one that failed stands out, for the eye that runs down the column."""
    return mark(side.parity, good=side.parity == "pass")


def mark(word: str, *, good: bool) -> str:
    """A word that stands out where it is bad, by weight and a sign and not by colour alone."""
    return word if good else element("strong", f"\N{WARNING SIGN} {word}", class_="bad")


def accuracy(side: Side) -> str:
    """Accuracy in a few characters, for charts and captions."""
    value = side.row.one_minus_cosine
    return "1 \N{MINUS SIGN} cos not compared" if value is None else f"1 \N{MINUS SIGN} cos {distance(value)}"


def remarks(items: Sequence[str]) -> Html:
    """Remarks beside the figures; nothing where there are none."""
    return element("ul", *(element("li", item) for item in items), class_="remarks") if items else Html()


def document_remarks(results: Results) -> list[str]:
    """Parts left out of a whole document: cut short, missing, failed."""
    return [
        *results.notes,
        *(join([element("strong", f"{name} is missing"), f": {said}"]) for name, said in results.missing.items()),
        *(
            join([element("strong", f"{name} failed parity", class_="bad"), f" and is not timed: {said}"])
            for name, said in results.failed.items()
        ),
    ]


def brief_remarks(results: Results) -> list[str]:
    """The same in one line, where it has been told in full before."""
    missing = [f"missing: {', '.join(results.missing)}"] if results.missing else []
    failed = [element("strong", f"failed parity: {', '.join(results.failed)}", class_="bad")] if results.failed else []
    cut = ["the run was cut short"] if results.notes else []
    said = [*missing, *failed, *cut]
    return [join(["Of the same run, as said above: ", join(said, "; "), "."])] if said else []


def without_empty(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> tuple[list[Column], list[list[str]]]:
    """The table without columns that hold dashes alone."""
    kept = [i for i in range(len(columns)) if any(row[i] != NONE for row in rows)]
    return [columns[i] for i in kept], [[row[i] for i in kept] for row in rows]


def full_table(caption: str, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> Html:
    """A table without columns that hold dashes alone."""
    return table(caption, *without_empty(columns, rows))


def batches(groups: Sequence[Group]) -> str:
    """Batch sizes in words."""
    return ", ".join(str(group.batch) for group in groups)
