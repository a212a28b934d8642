import functools
import io
import re
import sys
from importlib import resources

import numpy as np
import pytest
from PIL import Image

from tempme_export.bench.reporting import charts
from tempme_export.bench.reporting.charts import Bar, Bars, Line, Lines, Panel, Point
from tempme_export.errors import InputError

pytest.importorskip("matplotlib")

STYLE = resources.files("tempme_export.bench.reporting") / "report.mplstyle"

MINUS = "\N{MINUS SIGN}"
NONE, SMALL = f"1 {MINUS} cos 0", f"1 {MINUS} cos 3e{MINUS}08"
BARS = [Bar("original", 1.5, 1.4, 1.6, "", NONE), Bar("ort", 3.1, None, None, "DID NOT SETTLE", SMALL, hollow=True)]
SERIES = [
    Line(f"none: {NONE}", [Point(106.0, 1.6, 1.5, 1.7)]),
    Line(f"tempme: {SMALL}, FAILED PARITY", [Point(69.5, 2.3, hollow=True)]),
]
FRAMES = [Line("none", [Point(8, 35.4), Point(12, 53.0)]), Line("TempMe", [Point(8, 23.2), Point(12, 34.8)])]
CASES = {
    "bars": Bars("videos/s", [("batch 1", BARS), ("batch 4", BARS[:1])]),
    "inverse": Lines([Panel("batch 1", "GFLOPs", "videos/s", SERIES)], inverse=True),
    "lines": Lines([Panel("Counted", "frames", "GMACs", FRAMES), Panel("Other", "block", "tokens", FRAMES[:1])]),
}


@functools.cache
def drawn(name, width=charts.WIDE):
    return CASES[name].draw(width)


def image(png):
    return Image.open(io.BytesIO(png)).convert("RGB")


def texts(chart):
    """Every word a chart draws."""
    from matplotlib.text import Text

    return "\n".join(text.get_text() for text in chart.figure(charts.NARROW).findobj(Text))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("width", [charts.WIDE, charts.NARROW])
def test_a_chart_is_a_picture_of_its_width_on_white(name, width):
    picture = image(drawn(name, width))
    assert abs(picture.width - 180 * width) <= 1
    assert picture.getpixel((0, 0)) == (255, 255, 255)
    assert len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) > 50


def test_the_same_values_give_the_same_bytes():
    assert CASES["bars"].draw() == drawn("bars")


@pytest.mark.parametrize("name", CASES)
def test_a_chart_carries_the_mark_of_the_tool(name):
    assert Image.open(io.BytesIO(drawn(name))).info["Software"] == charts.SOFTWARE


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("bars", [SMALL, "3.1  DID NOT SETTLE", "batch 4", "videos/s"]),
        ("inverse", [f"none: {NONE}", "FAILED PARITY", "in proportion to operations, from none"]),
        ("lines", ["TempMe", "GMACs", "tokens"]),
    ],
)
def test_a_chart_says_accuracy_and_doubt_beside_the_figure(name, words):
    said = texts(CASES[name])
    assert [word for word in words if word not in said] == []


def test_a_chart_is_told_in_words():
    assert str(CASES["bars"]) == "batch 1: original 1.5, ort 3.1; batch 4: original 1.5"
    assert str(CASES["lines"]).startswith("Counted, none, GMACs at frames: 35.4 at 8, 53 at 12; ")
    many = Line("tome", [Point(block, 600 - block) for block in range(24)])
    assert str(Lines([Panel("p", "block", "tokens", [many])])) == "p, tome, tokens at block: 600 at 0, 577 at 23"


def test_operations_that_are_all_the_same_need_no_curve():
    alike = [Line(name, [Point(69.5, speed)]) for name, speed in (("original", 1.5), ("ort", 3.0))]
    assert "in proportion" not in texts(Lines([Panel("batch 1", "GFLOPs", "videos/s", alike)], inverse=True))


def test_operations_over_a_wide_range_keep_plain_figures():
    line = Line("ort", [Point(46.3, 5.0), Point(372.0, 0.6)])
    said = texts(Lines([Panel("batch 1", "GFLOPs", "videos/s", [line])], inverse=True))
    assert "372" in said.splitlines() and "10^" not in said


EMPTY = [
    Bars("", []),
    Bars("", [("batch 1", [])]),
    Lines([]),
    Lines([Panel("", "", "", [])]),
    Lines([Panel("", "", "", [Line("none", [])])]),
]


@pytest.mark.parametrize("chart", EMPTY, ids=range(len(EMPTY)))
def test_nothing_to_draw_is_refused(chart):
    with pytest.raises(InputError, match="nothing to draw"):
        chart.draw()


def test_the_users_own_style_changes_nothing():
    import matplotlib

    with matplotlib.rc_context({"figure.facecolor": "black", "font.size": 30}):
        assert CASES["bars"].draw() == drawn("bars")
    assert "matplotlib.pyplot" not in sys.modules or matplotlib.rcParams["figure.facecolor"] != "black"


def contrast(colour):
    """WCAG 2 contrast with white."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 1.05 / (0.2126 * red + 0.7152 * green + 0.0722 * blue + 0.05)


def test_colours_of_lines_and_words_stand_out_from_white():
    assert contrast("#ffffff") == pytest.approx(1) and contrast("#000000") == pytest.approx(21)
    style = dict(re.findall(r"(\S+color): ([0-9a-f]{6})\n", STYLE.read_text()))
    words = [f"#{style[name]}" for name in ("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor")]
    assert all(contrast(colour) >= 4.5 for colour in (*charts.SERIES, charts.ACCENT, charts.MUTED, *words))


def test_colours_differ_for_the_colour_blind():
    """The first five in simulated deuteranopia (Viénot, Brettel and Mollon 1999), by distance in linear RGB."""
    rgb = np.array([[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in charts.SERIES[:5]]) ** 2.2
    seen = rgb @ np.array([[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]]).T
    far = np.linalg.norm(seen[:, None] - seen[None], axis=-1)[np.triu_indices(5, 1)]
    assert far.min() > 0.05
