"""Events that a run tells its listener while it goes on."""

from dataclasses import dataclass

from tempme_export.training.log import Row
from tempme_export.training.run import RunLength
from tempme_export.training.skipped import Skipped
from tempme_export.training.split import Split
from tempme_export.training.state import Position


@dataclass(frozen=True)
class Opened:
    """A part of the data is ready, and these of its videos are left out."""

    split: Split
    skipped: list[Skipped]


@dataclass(frozen=True)
class Trains:
    """Number of trained parameters, by kind."""

    counts: dict[str, int]


@dataclass(frozen=True)
class Started:
    """The steps of the run, and where it begins."""

    length: RunLength
    position: Position


@dataclass(frozen=True)
class LeftOut:
    """Videos that could be read no more."""

    videos: list[Skipped]


@dataclass(frozen=True)
class Evaluated:
    """A row of the log after an epoch, and whether it is the best so far."""

    row: Row
    better: bool


@dataclass(frozen=True)
class Saved:
    """The state from which the run can be resumed."""

    position: Position
