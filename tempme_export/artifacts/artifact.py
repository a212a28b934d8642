"""Artifact: one kind of file that a bundle may hold, and who builds it."""

from dataclasses import dataclass
from typing import Literal

Tower = Literal["video", "text"]


@dataclass(frozen=True)
class Artifact:
    """One kind of file of a bundle.

    file      its name in the bundle
    tower     what it encodes
    exporter  the module that builds it, imported when something is built
    option    what an export must be asked for to write it, and where the manifest keeps what it says of itself; None:
              every bundle has it
    bound     it runs only on the kind of machine that it was built for
    """

    file: str
    tower: Tower
    exporter: str
    option: str | None = None
    bound: bool = False
