"""A work while it goes on: on a terminal a live line a step, elsewhere a line when it begins and when it ends."""

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from rich import progress as bars
from rich.console import Console
from rich.table import Column
from rich.text import Text

from tempme_export.cli import terminal
from tempme_export.cli.terminal import show_line
from tempme_export.progress import Progress, Step

Shows = Mapping[str, Callable[[Any], None]]
"""By the name of a fact's type, what prints it."""

_REDRAWN = 4  # times a second
_BAR = 12  # characters


def amount(done: float, total: float, unit: str) -> str:
    """Amount done of a total, in words."""
    return f"{done:.0f} %" if unit == "%" else f"{done:g} of {total:g} {unit}"


class _Told(Progress):
    """Facts as lines."""

    def __init__(self, shows: Shows) -> None:
        self._shows = shows

    def tell(self, fact: object) -> None:
        self._shows[type(fact).__name__](fact)


class Lines(_Told):
    """Log of the steps: a line when a step begins, and one with its seconds when it ended as it should."""

    def __init__(self, shows: Shows) -> None:
        super().__init__(shows)
        self._started: dict[Step, float] = {}

    def begin(self, step: Step) -> None:
        self._started[step] = time.monotonic()
        counted = step.total is not None and step.unit != "%"
        show_line("started", f"{step.name}, {step.total:g} {step.unit}" if counted else step.name)

    def end(self, step: Step) -> None:
        seconds = time.monotonic() - self._started.pop(step)
        if not step.failed:
            show_line("finished", f"{step.name}   {seconds:.1f} s")


def _whole() -> Column:
    """A column that is never cut nor wrapped."""
    return Column(no_wrap=True, min_width=1)


class _Bar(bars.BarColumn):
    """Nothing where the amount is not known: a bar that moves by itself says nothing."""

    def render(self, task: bars.Task) -> Any:
        return Text() if task.total is None else super().render(task)


class _Amount(bars.ProgressColumn):
    def render(self, task: bars.Task) -> Text:
        return Text() if task.total is None else Text(amount(task.completed, task.total, task.fields["unit"]))


class _Remaining(bars.TimeRemainingColumn):
    def render(self, task: bars.Task) -> Text:
        known = task.total is not None and task.time_remaining is not None
        return Text.assemble(super().render(task), " left") if known else Text()


class Bars(_Told):
    """Live display on a terminal: a line for each step that goes on, gone when it ends.

    ticking  a thread redraws the lines, so that time is seen to pass within a call that takes long; without it they are
             drawn when a step begins and advances, and nothing runs beside a measurement
    """

    def __init__(self, shows: Shows, console: Console, ticking: bool) -> None:
        super().__init__(shows)
        self._console, self._ticking = console, ticking
        self._tasks: dict[Step, bars.TaskID] = {}
        self._lock = threading.RLock()
        self._screen = self._new_screen()

    def _new_screen(self) -> bars.Progress:
        return bars.Progress(
            bars.TextColumn("{task.description}", markup=False),
            _Bar(_BAR, table_column=_whole()),
            _Amount(_whole()),
            bars.TimeElapsedColumn(_whole()),
            _Remaining(table_column=_whole()),
            bars.TextColumn("{task.fields[now]}", markup=False),
            console=self._console,
            auto_refresh=self._ticking,
            refresh_per_second=_REDRAWN,
            transient=True,
        )

    def begin(self, step: Step) -> None:
        with self._lock:
            if not self._tasks:
                self._screen = self._new_screen()
                self._screen.start()
            self._tasks[step] = self._screen.add_task(
                step.name, total=step.total, completed=int(step.done), unit=step.unit, now=step.now
            )

    def advance(self, step: Step) -> None:
        with self._lock:
            self._screen.update(self._tasks[step], completed=step.done, now=step.now, refresh=not self._ticking)

    def end(self, step: Step) -> None:
        with self._lock:
            self._screen.remove_task(self._tasks.pop(step))
            if not self._tasks:
                self._screen.stop()


def listener(shows: Shows, console: Console | None = None, ticking: bool = True) -> Progress:
    """Listener that shows a work on a console, by default stderr; `ticking` as `Bars` describes it."""
    console = console or terminal.STDERR
    if console.is_terminal and not console.is_dumb_terminal:
        return Bars(shows, console, ticking)
    return Lines(shows)
