"""A table is a caption and columns over rows; a column knows its values and how they are written, all at once."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NONE = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
COSINE = f"1\N{NO-BREAK SPACE}{MINUS}\N{NO-BREAK SPACE}cos"
"""Head of a distance from what the original path computes."""


class Bad(str):
    """A cell that has to stand out."""

    __slots__ = ()


Write = Callable[[Sequence[Any]], list[str]]
"""Values of one column -> cells; None is a value that is not there."""


def words(values: Sequence[Any]) -> list[str]:
    """Texts as they are."""
    return [NONE if value is None else value if isinstance(value, str) else str(value) for value in values]


def texts(values: Sequence[str | None]) -> list[str]:
    """Texts among figures: flush right."""
    return words(values)


def number(value: float | None, places: int) -> str:
    """A figure with so many decimals; a dash for None."""
    return NONE if value is None or not math.isfinite(value) else f"{value:.{places}f}".replace("-", MINUS)


def fixed(places: int, times: float = 1) -> Write:
    """Figures with so many decimals, each `times` as large."""
    return lambda values: [number(None if value is None else times * value, places) for value in values]


whole, hundredths = fixed(0), fixed(2)
percents = fixed(1, 100)
"""Shares of one, in per cent."""


def distance(value: float) -> str:
    """1 - cosine, of which only the magnitude matters, and where rounding may leave less than nothing."""
    return "0" if value <= 0 else f"{value:.1e}".replace("-", MINUS)


def distances(values: Sequence[float | str | None]) -> list[str]:
    """Distances; a text says why there is none."""
    return words([distance(value) if isinstance(value, int | float) else value for value in values])


def short(value: float) -> str:
    """A ratio in four characters, and in more where it has more digits before the point."""
    return number(value, 2 if value < 9.995 else 1 if value < 99.95 else 0)


def estimates(values: Sequence[tuple[float | None, float | None, float | None]]) -> list[str]:
    """Value, low and high: ratios with their 95 % intervals."""
    return [
        NONE if value is None else f"{short(value)}{interval(low, high, ' ({}-{})')}" for value, low, high in values
    ]


def interval(low: float | None, high: float | None, form: str = "{}-{}") -> str:
    """An interval; nothing where there is none."""
    return "" if low is None or high is None else form.format(short(low), short(high))


def products(values: Sequence[tuple[int | None, int | None] | None]) -> list[str]:
    """Clips by tokens, as the paper writes them."""
    pairs = [(None, None) if value is None else value for value in values]
    return [
        NONE if count is None else str(count) if clips is None else f"{clips} \N{MULTIPLICATION SIGN} {count}"
        for clips, count in pairs
    ]


@dataclass(frozen=True)
class Column:
    """A column of a table.

    value  of a row: a field's name, or a function
    write  of all values together; `words` stand flush left, all else are figures and stand flush right
    """

    head: str
    value: str | Callable[[Any], Any]
    write: Write = hundredths

    def cells(self, rows: Sequence[Any]) -> list[str]:
        """The column written."""
        return self.write([self._of(row) for row in rows])

    def _of(self, row: Any) -> Any:
        if not isinstance(self.value, str):
            return self.value(row)
        return row.get(self.value) if isinstance(row, Mapping) else getattr(row, self.value)


@dataclass(frozen=True)
class Table:
    """A table written: heads, whether each column is of figures, and cells by row."""

    caption: str
    heads: tuple[str, ...]
    figures: tuple[bool, ...]
    rows: tuple[tuple[str, ...], ...]


def tabled(caption: str, columns: Sequence[Column], rows: Sequence[Any]) -> Table:
    """The rows under those columns that say anything."""
    every = [(column, column.cells(rows)) for column in columns]
    written = [(column, cells) for column, cells in every if any(cell != NONE for cell in cells)]
    return Table(
        caption,
        tuple(column.head for column, _ in written),
        tuple(column.write is not words for column, _ in written),
        tuple(zip(*(cells for _, cells in written), strict=True)),
    )
