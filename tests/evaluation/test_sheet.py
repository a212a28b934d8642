"""The picture of a search: every hit is on it, framed in the colour of its verdict."""

import numpy as np
import pytest
from PIL import Image

from tempme_export.errors import InputError
from tempme_export.evaluation.sheet import Hit, Query, contact_sheet, save_sheet

GREEN, RED, GREY = (40, 160, 70), (200, 60, 50), (150, 150, 150)


def hit(value, right=None, frames=2):
    return Hit(np.full((frames, 9, 7, 3), value, np.uint8), 0.5, right)


def counts(image):
    colours = np.asarray(image).reshape(-1, 3)
    return lambda colour: int((colours == colour).all(axis=1).sum())


def test_every_frame_is_shown_once():
    image = contact_sheet(
        [Query("a", [hit((10, 20, 30)), hit((40, 50, 60), frames=3)]), Query("b", [hit((70, 80, 90))])]
    )
    count = counts(image)
    assert [count(c) for c in ((10, 20, 30), (40, 50, 60), (70, 80, 90))] == [2 * 64 * 64, 3 * 64 * 64, 2 * 64 * 64]


@pytest.mark.parametrize("right, colour", [(True, GREEN), (False, RED), (None, GREY)])
def test_the_frame_tells_the_verdict(right, colour):
    count = counts(contact_sheet([Query("a", [hit((1, 2, 3), right)])]))
    for other in (GREEN, RED, GREY):
        assert (count(other) > 3 * 2 * (134 + 70) - 40) == (other == colour)


def test_the_text_is_drawn():
    short, long = (contact_sheet([Query(text, [hit((200, 200, 0))])]) for text in ("a", "a red square moves"))
    assert (np.asarray(long) < 60).sum() > (np.asarray(short) < 60).sum() > 64 * 64 * 2


def test_is_written_as_png(tmp_path):
    save_sheet([Query("a", [hit((1, 2, 3))])], tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as image:
        assert image.format == "PNG" and image.size == (12 + 134 + 12, 12 + 2 * 18 + 64 + 6 + 12)


@pytest.mark.parametrize(
    "queries, said",
    [
        ([], "nothing to draw"),
        ([Query("a", [])], "nothing to draw"),
        ([Query("a", [Hit(np.zeros((0, 4, 4, 3), np.uint8), 0.0)])], "without frames"),
        ([Query("a", [Hit(np.zeros((4, 4, 3), np.uint8), 0.0)])], "without frames"),
    ],
)
def test_nothing_to_draw(queries, said):
    with pytest.raises(InputError, match=said):
        contact_sheet(queries)
