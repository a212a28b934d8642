"""Length and result of a training run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tempme_export.training.batches import Deck, Ints, equal_rows
from tempme_export.training.config import TrainConfig
from tempme_export.training.folder import BEST
from tempme_export.training.skipped import Skipped
from tempme_export.training.state import Best


@dataclass(frozen=True)
class RunLength:
    """Length of a run. `lengths`: batches of each epoch; `dropped`: captions that an epoch leaves out at most."""

    lengths: tuple[int, ...]
    dropped: int
    batch: int

    @property
    def steps(self) -> int:
        """Number of steps of the whole run."""
        return sum(self.lengths)


def deal(config: TrainConfig, owner: Ints, token_ids: Ints) -> tuple[Deck, RunLength]:
    """Deal the captions into batches and count the steps; owner [T], token_ids [T, L].

    Raises InputError where no batch can be filled.
    """
    deck = Deck(owner, equal_rows(token_ids), config.batch, config.seed)
    lengths = deck.lengths(config.epochs)
    return deck, RunLength(lengths, len(token_ids) - min(lengths) * config.batch, config.batch)


@dataclass(frozen=True)
class TrainResult:
    """Result of a run.

    finished  whether it came to its last step; otherwise it can be resumed
    steps     done, of `total`
    best      of the evaluations; None without validation data
    files     what was written, by name, in `out`
    skipped   videos that could not be read
    """

    out: Path
    finished: bool
    steps: int
    total: int
    best: Best | None
    files: tuple[str, ...]
    skipped: tuple[Skipped, ...]
    seconds: float

    @property
    def model(self) -> Path | None:
        """The checkpoint to use, where there is one."""
        return self.out / BEST if BEST in self.files else None

    def to_dict(self) -> dict[str, Any]:
        """Values for JSON."""
        return {
            "out": str(self.out),
            "finished": self.finished,
            "steps": self.steps,
            "total_steps": self.total,
            "best": None if self.best is None else vars(self.best),
            "files": list(self.files),
            "skipped": [one.to_dict() for one in self.skipped],
            "seconds": self.seconds,
        }
