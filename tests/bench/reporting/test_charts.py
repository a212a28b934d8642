import functools
import io
import sys

import numpy as np
import pytest
from PIL import Image

from tempme_export.bench.reporting import charts
from tempme_export.bench.reporting.charts import Bar, Line, Point, Points, Stage, Tokens
from tempme_export.errors import BackendError, InputError

pytest.importorskip("matplotlib")

MINUS = "\N{MINUS SIGN}"
NONE, SMALL = f"1 {MINUS} cos 0", f"1 {MINUS} cos 3e{MINUS}08"
BARS = [Bar("original", 1.5, 1.4, 1.6, NONE), Bar("ort", 3.1, None, None, SMALL, "DID NOT SETTLE")]
SERIES = [
    Points("none", NONE, [Point(106.0, 1.6, 1.5, 1.7)]),
    Points("tempme", SMALL, [Point(69.5, 2.3, None, None, "FAILED PARITY")]),
]
CASES = {
    "videos_per_s": [("batch 1", BARS), ("batch 4", BARS[:1])],
    "operations_and_speed": [("batch 1", SERIES)],
    "tokens_per_block": [
        ("12 frames", [Tokens("none", [600, 600], [600, 600]), Tokens("tome", [600, 576], [576, 552])])
    ],
    "stage_times": [("ort", [Stage("decode", 95.0, 110.0, False), Stage("encode", 300.0, 320.0, True)])],
    "cost_against_frames": [("Counted", "GMACs", [Line("TempMe", [8, 12, 64], [23.2, 34.8, 186.3])])],
}


@functools.cache
def drawn(name, width=charts.WIDE):
    return getattr(charts, name)(CASES[name], width=width)


def image(png):
    return Image.open(io.BytesIO(png)).convert("RGB")


def texts(monkeypatch, name, panels):
    """Every word a chart draws."""
    found = []
    original = charts._png

    def spy(figure):
        from matplotlib.text import Text

        found.extend(text.get_text() for text in figure.findobj(Text))
        return original(figure)

    monkeypatch.setattr(charts, "_png", spy)
    getattr(charts, name)(panels, width=charts.NARROW)
    return "\n".join(found)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("width", [charts.WIDE, charts.NARROW])
def test_a_chart_is_a_picture_of_its_width_on_white(name, width):
    picture = image(drawn(name, width))
    assert abs(picture.width - 180 * width) <= 1
    assert picture.getpixel((0, 0)) == (255, 255, 255)
    assert len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) > 50


def test_the_same_values_give_the_same_bytes():
    assert charts.stage_times(CASES["stage_times"]) == drawn("stage_times")


@pytest.mark.parametrize("name", CASES)
def test_a_chart_carries_the_mark_of_the_tool(name):
    assert Image.open(io.BytesIO(drawn(name))).info["Software"] == charts.SOFTWARE


@pytest.mark.parametrize(
    ("name", "panels", "words"),
    [
        ("videos_per_s", CASES["videos_per_s"], [SMALL, "DID NOT SETTLE", "3.1", "batch 4"]),
        ("operations_and_speed", CASES["operations_and_speed"], [f"none: {NONE}", "FAILED PARITY", "in proportion"]),
        ("tokens_per_block", CASES["tokens_per_block"], ["tome: 552 at the end"]),
        ("stage_times", CASES["stage_times"], ["300 ms, the limit", "95 ms"]),
        ("cost_against_frames", CASES["cost_against_frames"], ["TempMe", "GMACs"]),
    ],
)
def test_a_chart_says_accuracy_and_doubt_beside_the_figure(monkeypatch, name, panels, words):
    said = texts(monkeypatch, name, panels)
    assert [word for word in words if word not in said] == []


def test_operations_that_are_all_the_same_need_no_curve(monkeypatch):
    alike = [Points(name, "", [Point(69.5, speed, None, None)]) for name, speed in (("original", 1.5), ("ort", 3.0))]
    assert "in proportion" not in texts(monkeypatch, "operations_and_speed", [("batch 1", alike)])


def test_operations_over_a_wide_range_keep_plain_figures(monkeypatch):
    points = [Point(46.3, 5.0, None, None), Point(372.0, 0.6, None, None)]
    said = texts(monkeypatch, "operations_and_speed", [("batch 1", [Points("ort", "", points)])])
    assert "372" in said.splitlines() and "10^" not in said


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("empty", [[], "panel"])
def test_nothing_to_draw_is_refused(name, empty):
    panels = [(*CASES[name][0][:-1], [])] if empty == "panel" else []
    with pytest.raises(InputError, match="nothing to draw"):
        getattr(charts, name)(panels)


def test_without_matplotlib_the_command_that_installs_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.style", None)
    with pytest.raises(BackendError, match=r"pip install 'tempme-export\[plot\]'"):
        charts.stage_times(CASES["stage_times"])


def test_the_users_own_style_changes_nothing():
    import matplotlib

    with matplotlib.rc_context({"figure.facecolor": "black", "font.size": 30}):
        assert charts.stage_times(CASES["stage_times"]) == drawn("stage_times")
    assert "matplotlib.pyplot" not in sys.modules or matplotlib.rcParams["figure.facecolor"] != "black"


def contrast(colour):
    """WCAG 2 contrast with white."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 1.05 / (0.2126 * red + 0.7152 * green + 0.0722 * blue + 0.05)


def test_colours_of_lines_and_words_stand_out_from_white():
    assert contrast("#ffffff") == pytest.approx(1) and contrast("#000000") == pytest.approx(21)
    assert all(contrast(colour) >= 4.5 for colour in (*charts.SERIES, charts.ACCENT, charts.INK, charts.MUTED))


def test_colours_differ_for_the_colour_blind():
    """The first five in simulated deuteranopia (Viénot, Brettel and Mollon 1999), by distance in linear RGB."""
    rgb = np.array([[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in charts.SERIES[:5]]) ** 2.2
    seen = rgb @ np.array([[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]]).T
    far = np.linalg.norm(seen[:, None] - seen[None], axis=-1)[np.triu_indices(5, 1)]
    assert far.min() > 0.05
