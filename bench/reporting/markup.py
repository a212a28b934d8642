"""HTML from values: whatever is not markup already is escaped."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

NONE = "\N{EN DASH}"
_VOID = frozenset({"img", "meta"})


class Html(str):
    """Markup. A plain str is text, and is escaped where it enters."""

    __slots__ = ()


def element(tag: str, *children: str, **attributes: str) -> Html:
    """`<tag attributes>children</tag>`. An attribute's trailing underscore is dropped, other ones become hyphens."""
    written = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{html.escape(value)}"' for name, value in attributes.items()
    )
    if tag in _VOID:
        return Html(f"<{tag}{written}>")
    return Html(f"<{tag}{written}>{join(children)}</{tag}>")


def join(children: Sequence[str], between: str = "") -> Html:
    """The children one after the other, texts escaped."""
    safe = (child if isinstance(child, Html) else html.escape(child) for child in children)
    return Html(html.escape(between).join(safe))


@dataclass(frozen=True)
class Column:
    """A column's head; `figures` are set flush right in digits of one width."""

    head: str
    figures: bool = True


def table(caption: str, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> Html:
    """A table that scrolls within itself where the page is narrower. The first cell of a row is its head."""
    heads = [element("th", column.head, scope="col", class_=_class(column)) for column in columns]
    body = []
    for row in rows:
        cells = []
        for i, (column, cell) in enumerate(zip(columns, row, strict=True)):
            named = {"class_": _class(column)}
            cells.append(element("td", cell, **named) if i else element("th", cell, scope="row", **named))
        body.append(element("tr", *cells))
    title = element("caption", element("span", caption))
    whole = element("table", title, element("thead", element("tr", *heads)), element("tbody", *body))
    label = caption if not isinstance(caption, Html) else columns[0].head
    return element("div", whole, class_="scroll", role="region", tabindex="0", aria_label=label)


def _class(column: Column) -> str:
    return "figures" if column.figures else "words"


def decimals(values: Sequence[float | None]) -> int:
    """Decimals for a column of figures, by the largest: three digits or more, and none that are noise."""
    largest = max((abs(value) for value in values if value is not None), default=0.0)
    for bound, places in ((1, 3), (100, 2), (1000, 1)):
        if largest < bound:
            return places
    return 0


def number(value: float | None, places: int) -> str:
    """A figure with so many decimals; a dash for None."""
    return NONE if value is None or not math.isfinite(value) else f"{value:.{places}f}".replace("-", "\N{MINUS SIGN}")


def column_of(values: Sequence[float | None]) -> list[str]:
    """The figures of one column, all with the same decimals."""
    places = decimals(values)
    return [number(value, places) for value in values]


def distance(value: float | None) -> str:
    """1 − cosine, of which only the magnitude matters."""
    if value is None:
        return "not compared"
    return "0" if value == 0 else f"{value:.1e}".replace("-", "\N{MINUS SIGN}")
