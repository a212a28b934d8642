"""Rows on disk that were made from clips: one row a clip, and what it was made from."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tempme_export.data.clip import Clip
from tempme_export.data.store import FILLED, RowStore, bytes_needed


class ClipRows:
    """A row of one shape for each of some clips, in a folder that may hold rows of others too.

    A row belongs to the absolute path and the range of its clip, and remembers the file's size and time of change and
    whether damage was allowed. A file that was replaced is to be read again; one that was deleted is not missed. What
    was read without allowing damage serves those who allow it too, and not the other way round.

    changed  bool [n]: the file is there and another than the one the row was made from
    """

    def __init__(
        self,
        folder: Path,
        key: Mapping[str, Any],
        clips: Sequence[Clip],
        shape: tuple[int, ...],
        dtype: str,
        allow_damaged: bool,
    ) -> None:
        """Open the folder, or make it, and add the clips that it does not have. Raises as RowStore."""
        names = [(os.path.abspath(clip.path), clip.start, clip.end) for clip in clips]
        self._rows = RowStore(folder, key, names, shape, dtype)
        self._made_from = RowStore(Path(folder) / "made_from", key, names, (3,), "int64")
        self._allow_damaged = allow_damaged
        self._now = np.array([[*_stamp(clip.path), allow_damaged] for clip in clips], np.int64)
        differs = (self._made_from.read(slice(None))[:, :2] != self._now[:, :2]).any(axis=1)
        self.changed = (self._made_from.states() == FILLED) & differs & (self._now[:, 0] >= 0)

    @staticmethod
    def estimate(n: int, shape: tuple[int, ...], dtype: str) -> int:
        """Bytes of disk for n clips."""
        return bytes_needed(n, shape, dtype) + bytes_needed(n, (3,), "int64")

    @property
    def folder(self) -> Path:
        """Folder of the rows."""
        return self._rows.folder

    def filled(self, indices: Any = slice(None)) -> NDArray[np.bool_]:
        """Mask of the clips that have a row that serves this request."""
        as_strict = self._made_from.read(indices)[..., 2] <= self._allow_damaged
        return (self._rows.states(indices) == FILLED) & ~self.changed[indices] & as_strict

    @property
    def failures(self) -> dict[int, str]:
        """Reasons why clips could not be read, by their index; those that may be readable now left out."""
        as_patient = self._made_from.read(slice(None))[:, 2] >= self._allow_damaged
        return {i: reason for i, reason in self._rows.failures.items() if as_patient[i]}

    def todo(self, retry: bool | NDArray[np.bool_] = False) -> list[int]:
        """Clips that have to be read, rising; of those that failed, where `retry` [n] says so."""
        waiting = ~self.filled()
        waiting[list(self.failures)] &= np.broadcast_to(retry, len(self))[list(self.failures)]
        return [int(i) for i in np.flatnonzero(waiting)]

    def read(self, indices: Any) -> NDArray[Any]:
        """Copies of rows, as they are."""
        return self._rows.read(indices)

    def write(self, i: int, row: NDArray[Any]) -> None:
        """Keep the row of clip i. Raises as RowStore."""
        self._rows.clear(i)
        self._note(i)
        self._rows.write(i, row)

    def fail(self, i: int, reason: str) -> None:
        """Record that clip i cannot be read. Raises as RowStore."""
        self._rows.clear(i)
        self._note(i)
        self._rows.fail(i, reason)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other process from filling these rows. Raises as RowStore."""
        with self._rows.locked(), self._made_from.locked():
            yield

    def __len__(self) -> int:
        return len(self._now)

    def _note(self, i: int) -> None:
        self._made_from.write(i, self._now[i])
        self.changed[i] = False


def _stamp(path: Path) -> tuple[int, int]:
    """Size in bytes and time of change in nanoseconds, -1 where there is no such file."""
    try:
        stat = os.stat(path)
    except OSError:
        return -1, -1
    return stat.st_size, stat.st_mtime_ns
