"""Options that several commands of the benchmark share, and how their lists are read."""

from enum import StrEnum
from functools import partial
from typing import Annotated

import typer

from tempme_export.bench.config import DEFAULT_FRAMES
from tempme_export.cli.options import complete_profile
from tempme_export.errors import UsageError

MODEL, PROTOCOL = "Candidates", "Timing protocol"


class Mode(StrEnum):
    """Measured quantities."""

    LATENCY = "latency"
    THROUGHPUT = "throughput"
    END_TO_END = "end-to-end"


class Count(StrEnum):
    """Ways to count besides the formula."""

    EAGER = "eager"
    GRAPH = "graph"


ProfileOption = Annotated[
    str | None,
    typer.Option(
        "--profile",
        metavar="NAME|FILE",
        rich_help_panel=MODEL,
        autocompletion=complete_profile,
        help="A shipped profile, or a .toml file. Default: inferred from a CKPT, else ViT-B/32 of --frames.",
    ),
]
_frames = partial(typer.Option, "--frames", metavar="N,N", rich_help_panel=MODEL)
FramesOption = Annotated[
    str | None, _frames(help=f"ViT-B/32 of N frames, without a profile. Default: {DEFAULT_FRAMES}.")
]
SweepOption = Annotated[
    str | None,
    _frames(
        help=f"ViT-B/32 of N frames, without a profile. Several: a sweep with fitted costs. Default: {DEFAULT_FRAMES}."
    ),
]
BatchesOption = Annotated[
    str | None, typer.Option("--batches", metavar="N,N", rich_help_panel=MODEL, help="Videos per call.")
]
SeedOption = Annotated[
    int, typer.Option("--seed", rich_help_panel=PROTOCOL, help="Seed of inputs, random weights and bootstrap.")
]


def listed(option: str, text: str) -> list[str]:
    """Items of a comma-separated option. Raises UsageError for an empty or repeated one."""
    items = [item.strip() for item in text.split(",")]
    if "" in items or len(set(items)) < len(items):
        raise UsageError(f"{option}: found {text!r}, expected different items with commas between.")
    return items


def names(option: str, text: str | None) -> tuple[str, ...] | None:
    """Items of a comma-separated option; None where it was not given."""
    return None if text is None else tuple(listed(option, text))


def numbers(option: str, text: str | None) -> tuple[int, ...] | None:
    """Positive whole numbers of a comma-separated option. Raises UsageError for anything else."""
    if text is None:
        return None
    items = listed(option, text)
    for item in items:
        if not item.isdecimal() or int(item) < 1:
            raise UsageError(f"{option}: found {item!r}, expected a whole number from 1 up.")
    return tuple(map(int, items))


def number(option: str, text: str | None) -> int | None:
    """The only number of a comma-separated option. Raises UsageError for several."""
    found = numbers(option, text)
    if found is not None and len(found) > 1:
        raise UsageError(f"{option}: found {len(found)} numbers, expected one here.")
    return None if found is None else found[0]


def slowdown(text: str) -> tuple[str, float]:
    """NAME:P, a candidate and a percentage above 0. Raises UsageError for anything else."""
    name, _, percent = text.rpartition(":")
    try:
        value = float(percent)
    except ValueError:
        value = -1.0
    if not name or not 0 < value < float("inf"):
        raise UsageError(f"--slow-down: found {text!r}, expected NAME:P with a percentage above 0, such as ort:10.")
    return name, value
