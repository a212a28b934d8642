"""Charts as PNG from plain values: one function each, which knows nothing of results or pages.

Each takes the width in inches, so that a phone gets a picture of its own with letters as large as elsewhere.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, ParamSpec

from tempme_export.errors import BackendError, InputError

SOFTWARE = "tempme-bench"
"""Written into every PNG, so that a later report knows its own files."""

WIDE, NARROW = 7.4, 3.7
_BREAK = 5.0  # below this width in inches, panels stand one below the other
_DPI = 180
_DECADES = 3.0  # operations that span more than this factor get logarithmic axes

ACCENT, INK, MUTED, RULE = "#0b5cad", "#1f2328", "#59636e", "#d9dee3"
SERIES = (ACCENT, "#b3480b", "#00775a", "#7b3f9e", "#1f2328", "#b02a5b", "#59636e", "#8a6a00")
"""Told apart with every common colour blindness, the more so since each comes with its own marker."""

_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")


_STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 8,
    "axes.edgecolor": RULE,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlepad": 8.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": "#eceff2",
    "grid.linewidth": 0.8,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8.5,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "legend.handlelength": 2.6,
    "figure.facecolor": "white",
}

_Values = ParamSpec("_Values")


def _styled(draw: Callable[_Values, bytes]) -> Callable[_Values, bytes]:
    """Draw in the report's style, whatever the user's. Raises BackendError without matplotlib."""

    @functools.wraps(draw)
    def styled(*values: _Values.args, **named: _Values.kwargs) -> bytes:
        try:
            import matplotlib.style
        except ImportError as error:
            raise BackendError(
                "found no matplotlib, which draws the charts of a report; run: pip install 'tempme-export[plot]'"
            ) from error
        with matplotlib.style.context(["default", _STYLE]):
            return draw(*values, **named)

    return styled


@dataclass(frozen=True)
class Bar:
    """One candidate's speed in videos/s with its 95 % interval; `accuracy` is written beside it.

    doubt  why it is not to be relied upon; such a mark is hollow
    """

    label: str
    value: float
    low: float | None
    high: float | None
    accuracy: str
    doubt: str = ""


@dataclass(frozen=True)
class Point:
    """A speed in videos/s, with its 95 % interval, against the operations of a video in GFLOPs."""

    gflops: float
    value: float
    low: float | None
    high: float | None
    doubt: str = ""


@dataclass(frozen=True)
class Points:
    """One candidate's points by rising operations; `accuracy` is written beside its name."""

    label: str
    accuracy: str
    points: Sequence[Point]


@dataclass(frozen=True)
class Tokens:
    """Tokens of a whole video in every block: within its attention, and after it."""

    label: str
    attention: Sequence[int]
    after: Sequence[int]


@dataclass(frozen=True)
class Stage:
    """One stage of the way from file to embedding, in ms of one video."""

    label: str
    p50: float
    p90: float
    limit: bool


@dataclass(frozen=True)
class Line:
    """Figures against frames, one value for each of `frames`."""

    label: str
    frames: Sequence[float]
    values: Sequence[float]


@_styled
def videos_per_s(panels: Sequence[tuple[str, Sequence[Bar]]], *, width: float = WIDE) -> bytes:
    """Speed of every candidate with its interval, one panel per batch size, all from zero."""
    _require(panels and all(bars for _, bars in panels))
    heights = [0.62 + 0.5 * len(bars) for _, bars in panels]
    figure, axes = _panels(width, heights)
    for axis, (title, bars) in zip(axes, panels, strict=True):
        end = max(bar.high or bar.value for bar in bars)
        for y, bar in enumerate(bars):
            colour = ACCENT if y else MUTED
            face = "white" if bar.doubt else colour
            axis.barh(y, bar.value, height=0.12, color=RULE, zorder=1)
            if bar.low is not None and bar.high is not None:
                axis.plot([bar.low, bar.high], [y, y], color=colour, linewidth=2.2, zorder=2, solid_capstyle="butt")
                axis.plot([bar.low, bar.high], [y, y], "|", color=colour, markersize=9, markeredgewidth=1.6, zorder=2)
            axis.plot(bar.value, y, "o", markersize=6.5, color=colour, markerfacecolor=face, zorder=3)
            words = f"{_short(bar.value)}" + (f"  {bar.doubt}" if bar.doubt else "")
            axis.annotate(words, (0, y), (0, 7), textcoords="offset points", weight="bold", fontsize=8.5)
            axis.annotate(
                bar.accuracy, (1, y), (0, 8), xycoords=("axes fraction", "data"), textcoords="offset points",
                ha="right", color=MUTED, fontsize=7.5,
            )  # fmt: skip
        axis.set_yticks(range(len(bars)), [bar.label for bar in bars])
        axis.set(xlim=(0, 1.04 * end), ylim=(len(bars) - 0.55, -0.8), xlabel="videos/s")
        axis.set_title(title)
        axis.grid(axis="y", visible=False)
        axis.tick_params(axis="y", length=0)
    return _png(figure)


@_styled
def operations_and_speed(panels: Sequence[tuple[str, Sequence[Points]]], *, width: float = WIDE) -> bytes:
    """Speed against counted operations. The dashed curve is where time would follow the first point's operations."""
    _require(panels and all(series and all(one.points for one in series) for _, series in panels))
    across = 1 if width < _BREAK else min(2, len(panels))
    most = max(len(series) for _, series in panels)
    figure, axes = _grid(width, len(panels), across, 2.9 + 0.17 * most)
    for axis, (title, series) in zip(axes, panels, strict=True):
        every = [point for one in series for point in one.points]
        least, right = min(point.gflops for point in every), max(point.gflops for point in every)
        top, bottom = max(point.high or point.value for point in every), min(point.value for point in every)
        wide = right > _DECADES * least
        axis.set(xlabel="GFLOPs of a video", ylabel="videos/s")
        if wide:
            axis.set(xscale="log", yscale="log", xlim=(0.8 * least, 1.25 * right), ylim=(0.7 * bottom, 1.5 * top))
            _plain_ticks(axis, sorted({point.gflops for point in every}), bottom, top)
        else:
            axis.set(xlim=(0, 1.12 * right), ylim=(0, 1.18 * top))
        if right > least:
            _equal_rate(axis, series[0].label, series[0].points[0])
        for i, one in enumerate(series):
            _points(axis, one, i, joined=wide)
        axis.set_title(title)
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17))
    return _png(figure)


def _equal_rate(axis: Any, label: str, point: Point) -> None:
    """The curve on which every operation takes as long as at `point`."""
    (left, right), top = axis.get_xlim(), axis.get_ylim()[1]
    left = max(left, point.gflops * point.value / top)
    at = [left * (right / left) ** (i / 80) for i in range(81)]
    speeds = [point.gflops * point.value / x for x in at]
    words = f"time in proportion to operations, from {label}"
    axis.plot(at, speeds, color=MUTED, linestyle=(0, (4, 3)), linewidth=1, label=words)


def _points(axis: Any, one: Points, i: int, *, joined: bool) -> None:
    colour, marker = SERIES[i % len(SERIES)], _MARKERS[i % len(_MARKERS)]
    if joined:
        axis.plot([p.gflops for p in one.points], [p.value for p in one.points], color=colour, linewidth=1)
    for point in one.points:
        if point.low is not None and point.high is not None:
            axis.plot([point.gflops] * 2, [point.low, point.high], color=colour, linewidth=1.6)
        face = "white" if point.doubt else colour
        axis.plot(point.gflops, point.value, marker, color=colour, markersize=7, markerfacecolor=face)
    doubts = ", ".join(dict.fromkeys(point.doubt for point in one.points if point.doubt))
    said = f"{one.label}: {one.accuracy}" + (f", {doubts}" if doubts else "")
    axis.plot([], [], marker, color=colour, markersize=7, label=said, markerfacecolor="white" if doubts else colour)


def _plain_ticks(axis: Any, gflops: Sequence[float], bottom: float, top: float) -> None:
    """Ticks of logarithmic axes as plain figures: the operations that occur, and 1, 2, 5 of every decade."""
    speeds = [step * 10.0**power for power in range(-6, 7) for step in (1, 2, 5)]
    speeds = [speed for speed in speeds if 0.7 * bottom <= speed <= 1.5 * top]
    axis.set_xticks(gflops, [_short(value) for value in gflops])
    axis.set_yticks(speeds, [_short(value) for value in speeds])
    axis.minorticks_off()


@_styled
def tokens_per_block(panels: Sequence[tuple[str, Sequence[Tokens]]], *, width: float = WIDE) -> bytes:
    """Tokens of a whole video through the blocks: k at the attention of block k, k + 1/2 after it."""
    _require(panels and all(series for _, series in panels))
    across = 1 if width < _BREAK else min(2, len(panels))
    figure, axes = _grid(width, len(panels), across, 2.9)
    for axis, (title, series) in zip(axes, panels, strict=True):
        for i, one in enumerate(series):
            x = [block + half for block in range(1, len(one.attention) + 1) for half in (0, 0.5)]
            y = [count for pair in zip(one.attention, one.after, strict=True) for count in pair]
            axis.plot(
                x, y, linewidth=_thickness(i), marker=_MARKERS[i % len(_MARKERS)], markersize=3.6,
                markevery=2, color=SERIES[i % len(SERIES)], label=f"{one.label}: {one.after[-1]} at the end",
            )  # fmt: skip
        blocks = max(len(one.attention) for one in series)
        axis.set(xlabel="block", ylabel="tokens of a video", ylim=(0, None), xlim=(0.6, blocks + 0.9))
        axis.set_xticks(range(1, blocks + 1, 1 if blocks <= 12 and width > _BREAK / across else 2))
        axis.set_title(title)
        axis.legend(loc="lower left")
    return _png(figure)


@_styled
def stage_times(panels: Sequence[tuple[str, Sequence[Stage]]], *, width: float = WIDE) -> bytes:
    """Median time of every stage, a line to the ninetieth percentile, the limiting stage in colour."""
    _require(panels and all(stages for _, stages in panels))
    figure, axes = _panels(width, [0.7 + 0.42 * len(stages) for _, stages in panels])
    for axis, (title, stages) in zip(axes, panels, strict=True):
        end = max(stage.p90 for stage in stages)
        for y, stage in enumerate(stages):
            colour = ACCENT if stage.limit else "#8a949e"
            axis.barh(y, stage.p50, height=0.56, color=colour)
            axis.plot([stage.p50, stage.p90], [y, y], color=INK, linewidth=1.2)
            axis.plot(stage.p90, y, "|", color=INK, markersize=7)
            words = f"{_short(stage.p50)} ms" + (", the limit" if stage.limit else "")
            axis.annotate(
                words, (stage.p90, y), (6, 0), textcoords="offset points", va="center", fontsize=8.5,
                weight="bold" if stage.limit else "normal",
            )  # fmt: skip
        axis.set_yticks(range(len(stages)), [stage.label for stage in stages])
        axis.set(xlim=(0, (1.34 if width > _BREAK else 1.75) * end), ylim=(len(stages) - 0.4, -0.6))
        axis.set_xlabel("ms of one video: median, line to the 90th percentile")
        axis.set_title(title)
        axis.grid(axis="y", visible=False)
        axis.tick_params(axis="y", length=0)
    return _png(figure)


@_styled
def cost_against_frames(panels: Sequence[tuple[str, str, Sequence[Line]]], *, width: float = WIDE) -> bytes:
    """Figures against frames: title, unit and lines of each panel."""
    _require(panels and all(lines for _, _, lines in panels))
    across = 1 if width < _BREAK else min(2, len(panels))
    figure, axes = _grid(width, len(panels), across, 2.9)
    for axis, (title, unit, lines) in zip(axes, panels, strict=True):
        for i, line in enumerate(lines):
            axis.plot(
                line.frames, line.values, linewidth=_thickness(i), marker=_MARKERS[i % len(_MARKERS)],
                markersize=4.5, color=SERIES[i % len(SERIES)], label=line.label,
            )  # fmt: skip
        axis.set(xlabel="frames of a video", ylabel=unit, ylim=(0, None), xlim=(0, None))
        axis.set_title(title)
        axis.legend(loc="best")
    return _png(figure)


def _require(there: object) -> None:
    if not there:
        raise InputError("found nothing to draw, expected one panel with one entry or more. Leave the chart out.")


def _thickness(i: int) -> float:
    """Thinner with every further line, so that one below another shows on both sides."""
    return max(1.3, 3.6 - 0.9 * i)


def _short(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _figure(width: float, height: float) -> Any:
    """A figure of its own, without pyplot's global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(h_pad=0.09))
    FigureCanvasAgg(figure)
    return figure


def _panels(width: float, heights: Sequence[float]) -> tuple[Any, list[Any]]:
    """Axes one below the other, each as high as said, in inches."""
    figure = _figure(width, sum(heights))
    axes = figure.subplots(len(heights), 1, squeeze=False, gridspec_kw={"height_ratios": heights})
    return figure, list(axes[:, 0])


def _grid(width: float, count: int, across: int, height: float) -> tuple[Any, list[Any]]:
    """`count` axes, `across` of them in a row."""
    rows = -(-count // across)
    figure = _figure(width, rows * height)
    axes = figure.subplots(rows, across, squeeze=False).ravel()
    for spare in axes[count:]:
        spare.remove()
    return figure, list(axes[:count])


def _png(figure: Any) -> bytes:
    picture = BytesIO()
    figure.savefig(picture, format="png", dpi=_DPI, metadata={"Software": SOFTWARE})
    return picture.getvalue()
