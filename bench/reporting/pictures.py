"""Charts on their way to the page: drawn for wide and narrow screens, embedded, and kept as PNG files.

The style sheet shows one of the two. A `picture` element would do so by itself, but Chromium prints its narrow one.
"""

import base64
import re
import struct
from collections.abc import Callable

from tempme_export.bench.reporting.charts import NARROW, WIDE
from tempme_export.bench.reporting.markup import Html, element


class Pictures:
    """The charts of one page. `files` are the wide ones, by file name."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def figure(self, name: str, draw: Callable[..., bytes], alt: str, caption: str) -> Html:
        """Draw a chart twice and return its figure.

        name     of the file without suffix; a number follows where it is taken
        draw     takes `width` in inches by name, returns PNG
        alt      what the chart shows, in words and figures
        caption  stands below; text, or markup

        Raises BackendError without matplotlib.
        """
        wide, narrow = draw(width=WIDE), draw(width=NARROW)
        taken = sum(re.fullmatch(rf"{re.escape(name)}(_\d+)?\.png", file) is not None for file in self.files)
        self.files[f"{name}_{taken + 1}.png" if taken else f"{name}.png"] = wide
        return element(
            "figure",
            element("img", src=_embedded(wide), alt=alt, class_="wide", **_size(wide)),
            element("img", src=_embedded(narrow), alt=alt, class_="narrow", **_size(narrow)),
            element("figcaption", caption),
        )


def _embedded(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"


def _size(png: bytes) -> dict[str, str]:
    """Width and height in pixels, which the header of a PNG says in bytes 16 to 23."""
    width, height = struct.unpack(">II", png[16:24])
    return {"width": str(width), "height": str(height)}
