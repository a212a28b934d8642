"""The streams of the commands: stderr for people, a label and a text per line; stdout for data."""

import errno
import io
import json
import os
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console

from tempme_export.errors import ExportError
from tempme_export.names import as_text, command, printable

WIDTH = 100  # columns of text, on a wider terminal and where there is none
_LABEL = 11  # columns
_IS_TERMINAL = sys.stderr is not None and sys.stderr.isatty()
STDERR = Console(stderr=True, highlight=False, emoji=False, width=None if _IS_TERMINAL else WIDTH)


def folded(label: str, text: str, width: int) -> str:
    """A label and a text in lines of `width` columns, broken at spaces alone: a path stays whole, however long."""
    return _filled(as_text(text), width, f"{label:<{_LABEL - 1}} ", " " * _LABEL) or label


def _filled(text: str, width: int, first: str, others: str) -> str:
    return textwrap.fill(
        text,
        max(width, 2 * _LABEL),
        initial_indent=first,
        subsequent_indent=others,
        break_long_words=False,
        break_on_hyphens=False,
    )


def show_line(label: str, text: str, style: str = "") -> None:
    """A label and a text, which is never taken for markup."""
    line = folded(label, text, min(WIDTH, STDERR.width))
    STDERR.print(line, style=style, markup=False, soft_wrap=True)


def show_command(label: str, line: str) -> None:
    """A label and a command line of `names.command`, whole, so that it can be copied."""
    STDERR.print(f"{label:<{_LABEL - 1}} {as_text(line)}", markup=False, soft_wrap=True)


def show_next(*commands: str) -> None:
    """The last lines of a command: the ones to copy next."""
    for one in commands:
        show_command("next", one)


def show_again(name: str, *also: str, without: str = "") -> None:
    """This very command as the one to copy next, without an option that it had, or with further words."""
    show_next(command(name, *(word for word in sys.argv[1:] if word != without), *also))


def show_error(error: Exception) -> None:
    """One refusal."""
    STDERR.print(f"error: {as_text(str(error))}", style="red", markup=False, soft_wrap=True)


def show_warning(text: str) -> None:
    """Something to know that stops nothing."""
    line = _filled(as_text(text), min(WIDTH, STDERR.width), "warning: ", " " * len("warning: "))
    STDERR.print(line, style="yellow", markup=False, soft_wrap=True)


def json_text(document: Any) -> str:
    """A document as JSON, in characters that every encoding has."""
    return json.dumps(printable(document), indent=1) + "\n"


def write_json(document: Any) -> None:
    """One JSON document to stdout. Raises ExportError where that cannot be written."""
    sys.stdout.write(json_text(document))
    sys.stdout.flush()


class _ForPeople(io.FileIO):
    """A stream that may have lost its reader. What cannot be written is lost, and ends no work."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except OSError:
            return len(data)


class _ForResults(io.FileIO):
    """A stream of results. A reader who has gone wanted no more of them; anything else is an error, once."""

    failed = False

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except OSError as error:
            if error.errno == errno.EPIPE or self.failed:
                return len(data)
            self.failed = True
            raise ExportError(
                f"stdout could not be written ({error.strerror}). Make room, or send it somewhere else."
            ) from error


class _Closed(_ForResults):
    """The null device in place of a stdout that the caller closed."""

    def write(self, data: Any) -> int:
        if not self.failed:
            self.failed = True
            show_warning("stdout is closed; what belongs there is lost.")
        return len(data)


@contextmanager
def usable_streams() -> Iterator[None]:
    """Within, stdin, stdout and stderr are there, take every character, and fail only where results are lost.

    One that the caller closed becomes the null device: the next file that is opened would get its number, and with it
    whatever a library prints.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    before = sys.stdin, sys.stdout, sys.stderr
    if sys.stdin is None:
        sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)))
    if sys.stdout is sys.__stdout__:
        sys.stdout = _text(_Closed if sys.stdout is None else _ForResults, sys.stdout)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _text(_ForPeople, sys.stderr)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdin, sys.stdout, sys.stderr = before


def _text(kind: type[io.FileIO], given: Any) -> io.TextIOWrapper:
    raw = kind(2 if kind is _ForPeople else 1, "w", closefd=False)
    encoding = "utf-8" if given is None else given.encoding
    by_line = kind is _ForPeople or raw.isatty()
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, errors="backslashreplace", line_buffering=by_line)
