"""HTML from values: whatever is not markup already is escaped."""

import html
from collections.abc import Sequence

from tempme_export.bench.tables.table import Bad, Table

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
    """The children one after the other, texts escaped; bad ones stand out by weight and a sign, not by colour alone."""
    return Html(html.escape(between).join(_safe(child) for child in children))


def _safe(child: str) -> str:
    if isinstance(child, Html):
        return child
    if isinstance(child, Bad):
        return element("strong", f"\N{WARNING SIGN} {child}", class_="bad")
    return html.escape(child)


def table_of(table: Table) -> Html:
    """A table that scrolls within itself where the page is narrower. The first cell of a row is its head."""
    named = ["figures" if figures else "words" for figures in table.figures]
    heads = [element("th", head, scope="col", class_=kind) for head, kind in zip(table.heads, named, strict=True)]
    body = [
        element("tr", element("th", row[0], scope="row", class_=named[0]),
                *(element("td", cell, class_=kind) for cell, kind in zip(row[1:], named[1:], strict=True)))
        for row in table.rows
    ]  # fmt: skip
    title = element("caption", element("span", table.caption))
    whole = element("table", title, element("thead", element("tr", *heads)), element("tbody", *body))
    return element("div", whole, class_="scroll", role="region", tabindex="0", aria_label=table.caption)
