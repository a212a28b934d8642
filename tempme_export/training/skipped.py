"""Videos that a run leaves out, each once, with the reason."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tempme_export.files import write_file
from tempme_export.training.log import read_rows


@dataclass(frozen=True)
class Skipped:
    """A video that could not be read: before the first step, or in step `step`."""

    split: str
    video: str
    path: str
    reason: str
    step: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """As a line of skipped.jsonl."""
        return asdict(self)


class SkippedLog:
    """The videos left out so far, and the file of JSON lines that records them.

    Before `begin` nothing is written.
    """

    def __init__(self, path: Path) -> None:
        self.found: list[Skipped] = []
        self._path, self._begun = path, False

    def begin(self, step: int) -> None:
        """Take up what an earlier run recorded up to a step, and write the file from now on."""
        rows = read_rows(self._path)
        self.found += [Skipped(**row) for row in rows if row["step"] is not None and row["step"] <= step]
        self._begun = True
        self._write()

    def add(self, skipped: Sequence[Skipped]) -> list[Skipped]:
        """Record those that are not known yet, and return them."""
        known = {(one.split, one.video) for one in self.found}
        new = [one for one in skipped if (one.split, one.video) not in known]
        self.found += new
        if new and self._begun:
            self._write()
        return new

    def _write(self) -> None:
        lines = "".join(json.dumps(one.to_dict()) + "\n" for one in self.found)
        write_file(self._path, lines.encode())
