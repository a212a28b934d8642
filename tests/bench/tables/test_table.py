import io

import pytest
from rich.console import Console

from tempme_export.bench.tables.table import (
    NONE,
    Column,
    distances,
    estimates,
    fixed,
    hundredths,
    percents,
    products,
    tabled,
    words,
)
from tempme_export.bench.tables.terminal import say, show

MINUS, TIMES = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"


@pytest.mark.parametrize(
    ("write", "values", "shown"),
    [
        (fixed(1), [-1.5, None, float("nan")], [f"{MINUS}1.5", NONE, NONE]),
        (fixed(2, 1e-9), [53.02e9], ["53.02"]),
        (hundredths, [6299.8, 0.755], ["6299.80", "0.76"]),
        (percents, [0.579, None], ["57.9", NONE]),
        (words, ["ort", 3, None], ["ort", "3", NONE]),
        (distances, [None, 0.0, -1e-17, 3.21e-8, "not compared"], [NONE, "0", "0", f"3.2e{MINUS}08", "not compared"]),
        (estimates, [(12.3, 0.06, 2468.0), (1.0, None, None), (None,) * 3], ["12.3 (0.06-2468)", "1.00", NONE]),
        (products, [(12, 50), (None, 97), (None, None), None], [f"12 {TIMES} 50", "97", NONE, NONE]),
    ],
)
def test_a_value_that_is_not_there_is_a_dash(write, values, shown):
    assert write(values) == shown


COLUMNS = (Column("name", "name", words), Column("twice", lambda row: 2 * row["n"], fixed(0)), Column("n", "missing"))


def test_columns_that_say_nothing_are_left_out():
    made = tabled("numbers", COLUMNS, [{"name": "one", "n": 1}, {"name": "two", "n": 2}])
    assert (made.heads, made.figures) == (("name", "twice"), (False, True))
    assert made.rows == (("one", "2"), ("two", "4"))
    assert tabled("nothing", COLUMNS, []).rows == ()


def test_a_field_that_no_row_has_is_a_bug():
    with pytest.raises(AttributeError):
        tabled("", [Column("n", "n")], [object()])


def shown(table, **options):
    stream = io.StringIO()
    show(Console(file=stream, **options), table)
    return stream.getvalue()


LONG = [{"name": "word " * 40, "n": 1}]


@pytest.mark.parametrize("width", [40, 100, 300])
def test_off_a_terminal_a_table_is_ascii_and_fits_100_columns(width):
    text = shown(tabled(f"{MINUS}1 {TIMES} 2 " + "caption " * 30, COLUMNS, LONG), width=width)
    assert text.replace("\u2500", "-").isascii() and "-1 x 2 caption" in text
    assert 80 < max(map(len, text.splitlines())) <= 100
    assert text.split().count("word") == 40 and text.split().count("caption") == 30


def test_on_a_terminal_it_folds_to_its_width_and_figures_never_break():
    columns = [Column("name", "name", words), *(Column(f"column {i}", "n", fixed(9)) for i in range(3))]
    text = shown(tabled("", columns, LONG), width=60, force_terminal=True, color_system=None)
    assert max(map(len, text.splitlines())) <= 60 and text.count("1.000000000") == 3
    narrow = shown(tabled("", columns, LONG), width=20, force_terminal=True, color_system=None)
    assert narrow.count("1.000000000") == 3 and "\u2026" not in narrow


def test_a_sentence_is_broken_between_words_alone():
    stream, path = io.StringIO(), "/tmp/" + "x" * 150
    say(Console(file=stream, width=300, markup=False), "word " * 30 + path + " is [there]")
    lines = stream.getvalue().splitlines()
    assert [len(line.rstrip()) <= 100 for line in lines] == [True, True, False, True] and path in lines
    assert " ".join(stream.getvalue().split()) == "word " * 30 + path + " is [there]"
