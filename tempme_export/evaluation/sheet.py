"""Contact sheet of a search: one row for each query, one strip of frames for each hit."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from tempme_export.errors import InputError

_TILE, _GAP, _BORDER, _TEXT = 64, 12, 3, 18  # pixels
_RIGHT, _WRONG, _PLAIN = (40, 160, 70), (200, 60, 50), (150, 150, 150)


@dataclass(frozen=True)
class Hit:
    """One video that was found.

    frames  uint8 [n, H, W, 3], what is shown of it, at least one
    score   its similarity with the query
    right   whether it is what was asked for; None where nobody knows
    """

    frames: NDArray[np.uint8]
    score: float
    right: bool | None = None


@dataclass(frozen=True)
class Query:
    """A text and what it found, best first."""

    text: str
    hits: Sequence[Hit]


def contact_sheet(queries: Sequence[Query]) -> Image.Image:
    """Draw queries below each other, their hits side by side: green is right, red is wrong, grey is unknown.

    Raises InputError for no query, or hits without frames.
    """
    if not queries or not all(query.hits for query in queries):
        raise InputError("found nothing to draw, expected at least one query, each with at least one hit.")
    if any(hit.frames.ndim != 4 or len(hit.frames) == 0 for query in queries for hit in query.hits):
        raise InputError("found a hit without frames, expected uint8 [n, H, W, 3], n at least 1.")
    strip = max(len(hit.frames) for query in queries for hit in query.hits) * _TILE + 2 * _BORDER
    most = max(len(query.hits) for query in queries)
    height = 2 * _TEXT + _TILE + 2 * _BORDER + _GAP
    sheet = Image.new("RGB", (most * (strip + _GAP) + _GAP, len(queries) * height + _GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for row, query in enumerate(queries):
        top = _GAP + row * height
        draw.text((_GAP, top), query.text, fill="black", font=font)
        for column, hit in enumerate(query.hits):
            _draw_hit(sheet, hit, _GAP + column * (strip + _GAP), top + _TEXT, font)
    return sheet


def _draw_hit(
    sheet: Image.Image, hit: Hit, left: int, top: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont
) -> None:
    colour = _PLAIN if hit.right is None else _RIGHT if hit.right else _WRONG
    draw, width = ImageDraw.Draw(sheet), len(hit.frames) * _TILE + 2 * _BORDER
    draw.rectangle((left, top, left + width - 1, top + _TILE + 2 * _BORDER - 1), outline=colour, width=_BORDER)
    for index, frame in enumerate(hit.frames):
        tile = Image.fromarray(frame).resize((_TILE, _TILE), Image.Resampling.BICUBIC)
        sheet.paste(tile, (left + _BORDER + index * _TILE, top + _BORDER))
    draw.text((left, top + _TILE + 2 * _BORDER + 1), f"{hit.score:.2f}", fill=colour, font=font)


def save_sheet(queries: Sequence[Query], path: Path) -> None:
    """Write the contact sheet as PNG. Raises InputError as `contact_sheet`."""
    contact_sheet(queries).save(path, format="PNG")
