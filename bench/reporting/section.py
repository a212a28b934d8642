"""Parts that the sections of the page share: figures, links to where a number comes from, remarks."""

import base64
import re
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tempme_export.bench.reporting.charts import NARROW, Chart
from tempme_export.bench.reporting.groups import PARITY, Origin, Side
from tempme_export.bench.reporting.markup import Html, element, join
from tempme_export.bench.reporting.read import Results
from tempme_export.bench.tables.rows import accuracy
from tempme_export.bench.tables.table import COSINE, Bad, Column, words

PARITY_COLUMN = Column("parity", lambda side: PARITY[side.parity], words)


@dataclass(frozen=True)
class Section:
    """A part of the page. `title` is plain text."""

    anchor: str
    title: str
    body: Html


@dataclass(frozen=True)
class Absent:
    """A part that these results have nothing for, and why, in one line."""

    title: str
    reason: str


class Pictures:
    """The charts of one page, for wide and narrow screens and as PNG files: `files` are the wide ones, by file name.

    The style sheet shows one of the two. A `picture` element would do so by itself, but Chromium prints its narrow one.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def figure(self, name: str, title: str, chart: Chart, caption: str) -> Html:
        """Draw a chart twice and return its figure. Raises BackendError without matplotlib.

        name   of the file without suffix; a number follows where it is taken
        title  in words, for those who cannot see it
        """
        wide, narrow = chart.draw(), chart.draw(NARROW)
        taken = sum(re.fullmatch(rf"{re.escape(name)}(_\d+)?\.png", file) is not None for file in self.files)
        self.files[f"{name}_{taken + 1}.png" if taken else f"{name}.png"] = wide
        alt = f"{title}. {chart}."
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


def link(origin: Origin) -> Html:
    """To where the command, machine and versions of a number stand."""
    return element("a", origin.name, href=f"#{origin.anchor}")


FROM = Column("from", lambda side: link(side.origin), words)


def made_by(origins: Iterable[Origin]) -> Html:
    """Origins of the numbers of a figure, each once."""
    unique = {origin.number: origin for origin in origins}
    said = [join([link(origin), f": {origin.machine}, ", _days(origin)]) for origin in unique.values()]
    return join(["Measured in ", join(said, "; "), "."])


def _days(origin: Origin) -> Html:
    """Days of the measurement, from the first to the last. Not broken over lines."""
    days = sorted({str(time)[:10] for time in origin.values("time")})
    said = " to ".join(dict.fromkeys((days[0], days[-1]))) if days else "at an unknown time"
    return element("span", said, class_="whole")


def accurate(name: str, sides: Iterable[Side]) -> str:
    """A candidate's name with its worst accuracy."""
    worst = max(sides, key=lambda side: side.one_minus_cosine or 0.0)
    return f"{name}: {COSINE} {accuracy(worst)}"


def doubt(sides: Iterable[Side]) -> str:
    """Objections to any of them, in a few words."""
    return ", ".join(dict.fromkeys(said for side in sides for said in side.doubts))


def remarks(items: Sequence[str]) -> Html:
    """Remarks beside the figures; nothing where there are none."""
    return element("ul", *(element("li", item) for item in items), class_="remarks") if items else Html()


def document_remarks(results: Results, *, again: bool = False) -> list[str]:
    """Parts left out of a whole document: cut short, missing, failed; in one line where it has been told before."""
    if again:
        said = [f"missing: {', '.join(results.missing)}"] if results.missing else []
        said += [Bad(f"failed parity: {', '.join(results.failed)}")] if results.failed else []
        said += ["the run was cut short"] if results.notes else []
        return [join(["Of the same run, as said above: ", join(said, "; "), "."])] if said else []
    return [
        *results.notes,
        *(join([element("strong", f"{name} is missing"), f": {said}"]) for name, said in results.missing.items()),
        *(join([Bad(f"{name} failed parity"), f" and is not timed: {said}"]) for name, said in results.failed.items()),
    ]
