"""Where the commands write for people: stderr, a label and a text per line."""

import sys

from rich.console import Console

_LOG_WIDTH = 140  # where there is no terminal to ask, wide enough for every table
STDERR = Console(stderr=True, highlight=False, emoji=False, width=None if sys.stderr.isatty() else _LOG_WIDTH)


def show_line(label: str, text: str) -> None:
    """One line; text is never taken for markup and never wrapped."""
    STDERR.print(f"{label:<10} {text}", markup=False, soft_wrap=True)
