"""The entry point of every command: its streams, its signals, its errors, its exit code."""

import sys
import warnings
from collections.abc import Callable
from typing import NoReturn

from tempme_export.cli import terminal
from tempme_export.cli.signals import stopping
from tempme_export.errors import LeftBehindWarning, TempMeExportError, making
from tempme_export.files import name_temporary_folder


def entry(
    app: Callable[[], object], show_error: Callable[[Exception], None] = terminal.show_error
) -> Callable[[], NoReturn]:
    """The function that runs a command, a typer app or any function, and exits.

    A user's error is one message and its exit code; anything else keeps its traceback, and exits with 1. A signal
    decides the exit code, whatever became of the work that it ended.
    """

    def main() -> NoReturn:
        name_temporary_folder()
        with terminal.usable_streams(), stopping() as stop:
            try:
                code = _run(app, show_error)
            except BaseException:
                if stop.exit_code is None:
                    raise
                code = stop.exit_code
            if stop.exit_code is not None:
                code = stop.exit_code
        sys.exit(code)

    return main


def _run(app: Callable[[], object], show_error: Callable[[Exception], None]) -> int | str | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", LeftBehindWarning)
            _show_as_lines()
            try:
                with making("this command"):
                    app()
            except SystemExit as done:
                sys.stdout.flush()
                return done.code
    except TempMeExportError as error:
        show_error(error)
        return error.exit_code
    return 0


def _show_as_lines() -> None:
    """Show a LeftBehindWarning as one line, and other warnings as they were."""
    show_other = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *where: object) -> None:
        if issubclass(category, LeftBehindWarning):
            terminal.show_warning(str(message))
        else:
            show_other(message, category, *where)  # type: ignore[arg-type]

    warnings.showwarning = show  # type: ignore[assignment]
