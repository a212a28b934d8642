"""Bars and lines as PNG, from plain values: charts know nothing of results or pages.

Each is drawn at a width in inches, so that a phone gets a picture of its own with letters as large as elsewhere, and
says in words what it shows.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from io import BytesIO
from typing import Any

from tempme_export.errors import BackendError, InputError

SOFTWARE = "tempme-bench"
"""Written into every PNG, so that a later report knows its own files."""

WIDE, NARROW = 7.4, 3.7
_BREAK = 5.0  # below this width in inches, panels stand one below the other
_DPI = 180
_DECADES = 3.0  # values that span more than this factor get logarithmic axes
_MOST_SAID = 8  # points of a line that are all said; of more, the first and the last

ACCENT, MUTED, RULE = "#0b5cad", "#59636e", "#d9dee3"
SERIES = (ACCENT, "#b3480b", "#00775a", "#7b3f9e", "#1f2328", "#b02a5b", MUTED, "#8a6a00")
"""Told apart with every common colour blindness, the more so since each comes with its own marker."""

_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")


@dataclass(frozen=True)
class Bar:
    """A value with an interval or a tail.

    words   beside the value; note  at the right, in small letters
    hollow  a mark that is not to be relied upon; muted  one that is not what the eye should look for
    """

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    words: str = ""
    note: str = ""
    hollow: bool = False
    muted: bool = False


class Chart(ABC):
    """A chart: drawn at any width, and told in words."""

    @abstractmethod
    def __str__(self) -> str: ...

    @abstractmethod
    def _figure(self, width: float) -> Any: ...

    def figure(self, width: float = WIDE) -> Any:
        """As a figure of matplotlib's. Raises BackendError without it, InputError where there is nothing to draw."""
        with _style():
            return self._figure(width)

    def draw(self, width: float = WIDE) -> bytes:
        """As PNG. Raises as `figure`."""
        with _style():
            picture = BytesIO()
            self._figure(width).savefig(picture, format="png", dpi=_DPI, metadata={"Software": SOFTWARE})
        return picture.getvalue()


@dataclass(frozen=True)
class Bars(Chart):
    """Bars from zero, in panels one below the other: title and bars of each."""

    axis: str
    panels: Sequence[tuple[str, Sequence[Bar]]]

    def __str__(self) -> str:
        said = (f"{title}: {', '.join(f'{bar.label} {bar.value:.3g}' for bar in bars)}" for title, bars in self.panels)
        return "; ".join(said)

    def _figure(self, width: float) -> Any:
        _require(self.panels and all(bars for _, bars in self.panels))
        heights = [0.62 + 0.5 * len(bars) for _, bars in self.panels]
        figure = _empty(width, sum(heights))
        axes = figure.subplots(len(heights), 1, squeeze=False, gridspec_kw={"height_ratios": heights})
        for axis, (title, bars) in zip(axes[:, 0], self.panels, strict=True):
            for y, bar in enumerate(bars):
                _bar(axis, y, bar)
            axis.set_yticks(range(len(bars)), [bar.label for bar in bars])
            end = max(bar.high or bar.value for bar in bars)
            axis.set(xlim=(0, 1.04 * end), ylim=(len(bars) - 0.55, -0.8), xlabel=self.axis)
            axis.set_title(title)
            axis.grid(axis="y", visible=False)
            axis.tick_params(axis="y", length=0)
        return figure


def _bar(axis: Any, y: int, bar: Bar) -> None:
    colour = MUTED if bar.muted else ACCENT
    axis.barh(y, bar.value, height=0.12, color=RULE, zorder=1)
    if bar.low is not None and bar.high is not None:
        axis.plot([bar.low, bar.high], [y, y], color=colour, linewidth=2.2, zorder=2, solid_capstyle="butt")
        axis.plot([bar.low, bar.high], [y, y], "|", color=colour, markersize=9, markeredgewidth=1.6, zorder=2)
    face = "white" if bar.hollow else colour
    axis.plot(bar.value, y, "o", markersize=6.5, color=colour, markerfacecolor=face, zorder=3)
    words = f"{_short(bar.value)}  {bar.words}".strip()
    axis.annotate(words, (0, y), (0, 7), textcoords="offset points", weight="bold", fontsize=8.5)
    at = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
    axis.annotate(bar.note, (1, y), (0, 8), ha="right", color=MUTED, fontsize=7.5, **at)


@dataclass(frozen=True)
class Point:
    """A value at x, with an interval; hollow where it is not to be relied upon."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    hollow: bool = False


@dataclass(frozen=True)
class Line:
    """Points by rising x."""

    label: str
    points: Sequence[Point]


@dataclass(frozen=True)
class Panel:
    """Lines over one pair of axes."""

    title: str
    x: str
    y: str
    lines: Sequence[Line]


@dataclass(frozen=True)
class Lines(Chart):
    """Lines in panels, two of them in a row.

    inverse  y times x would be the same everywhere if nothing else mattered: a dashed curve shows it from the first
             point on, points are joined only where they span decades, and axes are logarithmic there
    """

    panels: Sequence[Panel]
    inverse: bool = False

    def __str__(self) -> str:
        return "; ".join(_said(panel, line) for panel in self.panels for line in panel.lines)

    def _figure(self, width: float) -> Any:
        _require(self.panels and all(panel.lines and all(line.points for line in panel.lines) for panel in self.panels))
        across = 1 if width < _BREAK else min(2, len(self.panels))
        most = max(len(panel.lines) for panel in self.panels)
        rows = -(-len(self.panels) // across)
        figure = _empty(width, rows * (2.9 + 0.17 * most * self.inverse))
        axes = list(figure.subplots(rows, across, squeeze=False).ravel())
        for axis, panel in zip(axes, self.panels, strict=False):
            self._panel(axis, panel)
        for spare in axes[len(self.panels) :]:
            spare.remove()
        return figure

    def _panel(self, axis: Any, panel: Panel) -> None:
        xs = [point.x for point in _points(panel)]
        wide = self.inverse and max(xs) > _DECADES * min(xs)
        axis.set(xlabel=panel.x, ylabel=panel.y)
        axis.set_title(panel.title)
        if wide:
            _plain_logarithms(axis, panel)
        else:
            top = max(point.high or point.y for point in _points(panel))
            axis.set(xlim=(0, 1.08 * max(xs)), ylim=(0, 1.14 * top))
            axis.xaxis.get_major_locator().set_params(integer=True)
        if self.inverse and max(xs) > min(xs):
            _equal_rate(axis, panel.lines[0])
        for i, line in enumerate(panel.lines):
            _line(axis, i, line, joined=wide or not self.inverse)
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.17)}
        axis.legend(**(below if self.inverse else {"loc": "best"}))


def _points(panel: Panel) -> Iterator[Point]:
    return (point for line in panel.lines for point in line.points)


def _said(panel: Panel, line: Line) -> str:
    shown = line.points if len(line.points) <= _MOST_SAID else (line.points[0], line.points[-1])
    values = ", ".join(f"{point.y:.4g} at {point.x:.4g}" for point in shown)
    return f"{panel.title}, {line.label}, {panel.y} at {panel.x}: {values}"


def _line(axis: Any, i: int, line: Line, *, joined: bool) -> None:
    colour, marker = SERIES[i % len(SERIES)], _MARKERS[i % len(_MARKERS)]
    if joined:  # thinner with every further line, so that one below another shows on both sides
        xs, ys = [point.x for point in line.points], [point.y for point in line.points]
        axis.plot(xs, ys, color=colour, linewidth=max(1.3, 3.6 - 0.9 * i))
    size = 4.5 if joined else 7
    for point in line.points:
        if point.low is not None and point.high is not None:
            axis.plot([point.x] * 2, [point.low, point.high], color=colour, linewidth=1.6)
        face = "white" if point.hollow else colour
        axis.plot(point.x, point.y, marker, color=colour, markersize=size, markerfacecolor=face)
    face = "white" if any(point.hollow for point in line.points) else colour
    axis.plot([], [], marker, color=colour, markersize=size, label=line.label, markerfacecolor=face)


def _equal_rate(axis: Any, line: Line) -> None:
    """The curve on which x times y is what it is at the line's first point."""
    first, (left, right), top = line.points[0], axis.get_xlim(), axis.get_ylim()[1]
    left = max(left, first.x * first.y / top)
    at = [left * (right / left) ** (i / 80) for i in range(81)]
    words = f"time in proportion to operations, from {line.label.split(':')[0]}"
    axis.plot(at, [first.x * first.y / x for x in at], color=MUTED, linestyle=(0, (4, 3)), linewidth=1, label=words)


def _plain_logarithms(axis: Any, panel: Panel) -> None:
    """Logarithmic axes with plain figures: each x that occurs, and 1, 2, 5 of every decade of y."""
    xs = sorted({point.x for point in _points(panel)})
    bottom = 0.7 * min(point.y for point in _points(panel))
    top = 1.5 * max(point.high or point.y for point in _points(panel))
    axis.set(xscale="log", yscale="log", xlim=(0.8 * xs[0], 1.25 * xs[-1]), ylim=(bottom, top))
    ys = [y for power in range(-6, 7) for step in (1, 2, 5) if bottom <= (y := step * 10.0**power) <= top]
    axis.set_xticks(xs, [_short(x) for x in xs])
    axis.set_yticks(ys, [_short(y) for y in ys])
    axis.minorticks_off()


def _require(there: object) -> None:
    if not there:
        raise InputError("found nothing to draw, expected one panel with one entry or more. Leave the chart out.")


def _short(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _style() -> Any:
    """The report's style, whatever the user's."""
    try:
        import matplotlib.style
    except ImportError as error:
        raise BackendError(
            "found no matplotlib, which draws the charts of a report. Run: pip install 'tempme-export[plot]'"
        ) from error
    return matplotlib.style.context(["default", str(resources.files(__package__) / "report.mplstyle")])


def _empty(width: float, height: float) -> Any:
    """A figure of its own, without pyplot's global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(h_pad=0.09))
    FigureCanvasAgg(figure)
    return figure
