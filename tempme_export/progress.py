"""Progress of a long work: it tells a listener, and nothing below the commands prints.

Made of steps, each with a beginning, an end and an amount where that is known, and of facts: objects with a type of
their own, such as a recipe, a file that is complete or a verdict, which a step leaves when it ends.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import final


@dataclass(frozen=True)
class Written:
    """A file that is complete."""

    path: Path


@dataclass(frozen=True)
class Note:
    """Something to know that stops nothing."""

    text: str


@dataclass(frozen=True)
class LogLine:
    """A line that a library wrote to its log."""

    library: str
    text: str


@final
class Step:
    """One step of a work, from its beginning to its end.

    name    what is done, in words
    total   how much there is to do; None: it cannot be known
    unit    what is counted, in the plural
    done    how much of it is done
    now     what is being done at the moment, in words
    failed  it ended with an exception
    """

    def __init__(self, listener: "Progress", name: str, total: float | None, unit: str, done: float) -> None:
        self.name, self.total, self.unit = name, total, unit
        self.done, self.now, self.failed = done, "", False
        self._listener = listener

    def advance(self, done: float, now: str = "") -> None:
        """So much is done by now, of `total`."""
        self.done, self.now = done, now
        self._listener.advance(self)


class Progress:
    """A listener to a work. This one disregards all it hears; a subclass overrides what it wants to know.

    It may be called from any thread, one call at a time for each step. What it raises ends the work.
    """

    def begin(self, step: Step) -> None:
        """A step begins, perhaps within another one."""

    def advance(self, step: Step) -> None:
        """More of a step is done."""

    def end(self, step: Step) -> None:
        """A step ended; with an exception where it `failed`."""

    def tell(self, fact: object) -> None:
        """Something was found, built or decided."""

    @final
    @contextmanager
    def step(self, name: str, total: float | None = None, unit: str = "", done: float = 0) -> Iterator[Step]:
        """Begin a step and end it with the context; the arguments are as `Step` describes them."""
        step = Step(self, name, total, unit, done)
        self.begin(step)
        try:
            yield step
        except BaseException:
            step.failed = True
            raise
        finally:
            self.end(step)


SILENT = Progress()
