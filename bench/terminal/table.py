"""Tables that stay whole wherever they go."""

from collections.abc import Sequence

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

_UNBOUNDED = 10_000


def show(console: Console, table: Table) -> None:
    """Print a table and a blank line: words folded to the width of a terminal, and nothing ever cut off."""
    for column in table.columns:
        if column.no_wrap:
            column.min_width = max(cell_len(str(cell)) for cell in (column.header, *column.cells))
    needed = Measurement.get(console, console.options.update(width=_UNBOUNDED), table)
    console.width = max(console.width, needed.minimum) if console.is_terminal else needed.maximum
    console.print(table)
    console.print()


def new_table(title: str, words: Sequence[str], figures: Sequence[str]) -> Table:
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True
    )
    for name in words:
        table.add_column(name, overflow="fold")
    for name in figures:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def figure(value: float | None, form: str) -> str:
    """A figure in a format, or nothing for None."""
    return "" if value is None else format(value, form)


def percent(share: float | None) -> str:
    """A share of one as per cent, or nothing for None."""
    return figure(None if share is None else 100 * share, ".1f")
