import pytest

from tempme_export.bench.reporting.markup import NONE, Column, Html, column_of, distance, element, join, number, table


def test_text_is_escaped_and_markup_is_not():
    assert element("p", "a < b & c", element("b", "d")) == "<p>a &lt; b &amp; c<b>d</b></p>"
    assert join(["<", Html("<br>")], " & ") == "&lt; &amp; <br>"


def test_attributes_are_escaped_and_named_as_in_html():
    made = element("td", class_="words", aria_label='a "b" <c>')
    assert made == '<td class="words" aria-label="a &quot;b&quot; &lt;c&gt;"></td>'


def test_a_table_has_heads_in_both_directions_and_a_caption():
    made = table("Speed", [Column("name", figures=False), Column("videos/s")], [["<ort>", "1.5"]])
    assert '<th scope="col" class="figures">videos/s</th>' in made
    assert '<th scope="row" class="words">&lt;ort&gt;</th>' in made
    assert "<caption><span>Speed</span></caption>" in made and 'aria-label="Speed"' in made


def test_a_row_of_another_length_is_a_bug():
    with pytest.raises(ValueError, match="zip"):
        table("", [Column("a")], [["1", "2"]])


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([0.5, 0.0123], ["0.500", "0.012"]),
        ([1.0, 12.345, None], ["1.00", "12.35", NONE]),
        ([123.45, 1.0], ["123.5", "1.0"]),
        ([1234.5, 2.4], ["1234", "2"]),
        ([], []),
    ],
)
def test_figures_of_a_column_share_their_decimals(values, shown):
    assert column_of(values) == shown


def test_negative_and_unknown_figures():
    assert number(-1.5, 1) == "\N{MINUS SIGN}1.5"
    assert number(None, 1) == number(float("nan"), 1) == "\N{EN DASH}"
    assert [distance(value) for value in (None, 0.0, 3.21e-8)] == ["not compared", "0", "3.2e\N{MINUS SIGN}08"]
