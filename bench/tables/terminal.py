"""Tables and sentences on a terminal or in a file: whole wherever they go, and 100 columns wide where they can be."""

import textwrap

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table as RichTable

from tempme_export.bench.tables.table import Table
from tempme_export.cli.terminal import WIDTH

_UNBOUNDED = 10_000
_ASCII = str.maketrans(
    {"\N{EN DASH}": "-", "\N{MINUS SIGN}": "-", "\N{MULTIPLICATION SIGN}": "x", "\N{NO-BREAK SPACE}": " "}
    | {"\N{PLUS-MINUS SIGN}": "+-", "\N{SUPERSCRIPT TWO}": "^2", "\N{RIGHT SINGLE QUOTATION MARK}": "'"}
)


def say(console: Console, sentence: str) -> None:
    """Print a sentence, broken between words where it is too long; a path or a number stays whole."""
    width = console.width if console.is_terminal else WIDTH
    lines = textwrap.wrap(sentence, width, break_long_words=False, break_on_hyphens=False)
    console.print("\n".join(lines), soft_wrap=True)


def show(console: Console, table: Table) -> None:
    """Print a table in ASCII and a blank line: words folded to the width, and nothing ever cut off."""
    drawn = rich_table(table)
    needed = Measurement.get(console, console.options.update(width=_UNBOUNDED), drawn).minimum
    console.width = max(console.width if console.is_terminal else WIDTH, needed)
    console.print(drawn)
    console.print()


def rich_table(table: Table) -> RichTable:
    """Figures never break."""
    drawn = RichTable(
        title=table.caption.translate(_ASCII),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
    )
    rows = [[cell.translate(_ASCII) for cell in row] for row in table.rows]
    for i, (head, figures) in enumerate(zip(table.heads, table.figures, strict=True)):
        name = head.translate(_ASCII)
        if figures:
            least = max(cell_len(cell) for cell in (name, *(row[i] for row in rows)))
            drawn.add_column(name, justify="right", no_wrap=True, min_width=least)
        else:
            drawn.add_column(name, overflow="fold")
    for row in rows:
        drawn.add_row(*row)
    return drawn
