from tempme_export.bench.reporting.markup import Html, element, join, table_of
from tempme_export.bench.tables.table import Bad, Table


def test_text_is_escaped_and_markup_is_not():
    assert element("p", "a < b & c", element("b", "d")) == "<p>a &lt; b &amp; c<b>d</b></p>"
    assert join(["<", Html("<br>")], " & ") == "&lt; &amp; <br>"


def test_attributes_are_escaped_and_named_as_in_html():
    made = element("td", class_="words", aria_label='a "b" <c>')
    assert made == '<td class="words" aria-label="a &quot;b&quot; &lt;c&gt;"></td>'


def test_what_is_bad_stands_out_and_is_escaped():
    assert join([Bad("<no>")]) == '<strong class="bad">\N{WARNING SIGN} &lt;no&gt;</strong>'


def test_a_table_has_heads_in_both_directions_and_a_caption():
    made = table_of(Table("Speed", ("name", "videos/s"), (False, True), (("<ort>", "1.5"),)))
    assert '<th scope="col" class="figures">videos/s</th>' in made
    assert '<th scope="row" class="words">&lt;ort&gt;</th>' in made
    assert '<td class="figures">1.5</td>' in made
    assert "<caption><span>Speed</span></caption>" in made and 'aria-label="Speed"' in made
