"""Rows of one size on disk, found by name and filled in any order; what a killed process wrote is still there."""

import errno
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from tempme_export.data.disk import Disk
from tempme_export.errors import ExportError, InputError
from tempme_export.files import write_file

EMPTY, FILLED, FAILED = range(3)

_ROWS, _STATE, _NAMES, _KEY, _LOCK, _FAILED = "rows.bin", "done.bin", "names.jsonl", "key.json", "lock", "failed.jsonl"
_LAYOUT = 2  # of the files in the folder
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DISK = Disk()

Name = tuple[str | int | float | None, ...]
"""Of a row, as a JSON list would hold it."""


class RowStore:
    """Rows of one shape and dtype in a folder, found by name.

    The folder holds rows.bin and done.bin, both memory-mapped, names.jsonl with the name of each row, failed.jsonl with
    the reasons, and key.json, which says what made the rows. It grows: names that it does not have are added. A row's
    bytes are allocated before its name appears, and it is written before its byte, so a killed process loses the row
    in hand and no other. A power cut may cost more: rows are forced to the disk when `locked` ends.

    Rows are numbered here in the order of the names that were asked for, whatever else the folder holds.
    """

    def __init__(
        self,
        folder: Path,
        key: Mapping[str, Any],
        names: Sequence[Name],
        shape: tuple[int, ...],
        dtype: str,
        disk: Disk = _DISK,
    ) -> None:
        """Open the store, or make it where the folder is new or empty, and add the names that it does not have.

        key  what made the rows, as JSON would hold it; a store opens again with an equal key only
        Raises InputError when the folder holds something else or rows in an older layout, is damaged, or has to grow
        while another process fills it; ExportError when it cannot be written or the disk has no room for all rows.
        """
        if min(len(names), *shape) < 1:
            raise InputError(
                f"found {len(names)} rows of shape {list(shape)} to keep, expected at least 1 of each. Name some."
            )
        own = {"layout": _LAYOUT, "shape": list(shape), "dtype": np.dtype(dtype).str}
        assert not own.keys() & key.keys(), "the store adds these itself"
        self.folder, self._disk = Path(folder), disk
        self._key: dict[str, Any] = json.loads(json.dumps({**own, **key}))
        self._row_bytes = {_ROWS: bytes_needed(1, shape, dtype) - 1, _STATE: 1}
        asked = list(dict.fromkeys(names))
        if not (self.folder / _KEY).exists():
            self._make(asked)
        self._check()
        known = self._known()
        if not known.keys() >= set(asked):
            with _exclusive(self.folder, self._disk):
                self._grow(asked)
            known = self._known()
        self._check_sizes(len(known))
        self._places = np.array([known[name] for name in names], np.int64)
        with _writing(self.folder):
            self._rows: np.memmap[Any, np.dtype[Any]] = np.memmap(
                self.folder / _ROWS, dtype, "r+", shape=(len(known), *shape)
            )
            self._state: np.memmap[Any, np.dtype[np.uint8]] = np.memmap(
                self.folder / _STATE, np.uint8, "r+", shape=(len(known),)
            )
        self._reasons = _read_reasons(self.folder / _FAILED)

    def __len__(self) -> int:
        return len(self._places)

    def states(self, indices: Any = slice(None)) -> NDArray[np.uint8]:
        """EMPTY, FILLED or FAILED of rows chosen as NumPy chooses; other processes' writes show at once."""
        return np.array(self._state[self._places[indices]])

    def todo(self) -> list[int]:
        """The rows that are empty, rising."""
        return [int(i) for i in np.flatnonzero(self.states() == EMPTY)]

    @property
    def failures(self) -> dict[int, str]:
        """The reason for each failed row, by its index."""
        failed = np.flatnonzero(self.states() == FAILED)
        return {int(i): self._reasons.get(int(self._places[i]), "its reason is not on record") for i in failed}

    def read(self, indices: Any) -> NDArray[Any]:
        """Copies of rows, chosen as NumPy chooses."""
        return np.array(self._rows[self._places[indices]])

    def write(self, i: int, row: NDArray[Any]) -> None:
        """Keep row i: the row first, then its byte. Raises InputError for another shape or dtype; IndexError."""
        self._check_index(i)
        if row.shape != self._rows.shape[1:] or row.dtype != self._rows.dtype:
            raise InputError(
                f"{self.folder}: found a row of shape {list(row.shape)} and dtype {row.dtype}, expected shape "
                f"{list(self._rows.shape[1:])} and dtype {self._rows.dtype}. Keep it in another folder."
            )
        self._rows[self._places[i]] = row
        self._state[self._places[i]] = FILLED

    def fail(self, i: int, reason: str) -> None:
        """Record that row i cannot be had: the reason first, then its byte. Raises IndexError; ExportError."""
        self._check_index(i)
        place = int(self._places[i])
        line = json.dumps({"row": place, "reason": reason}).encode() + b"\n"
        with _writing(self.folder), (self.folder / _FAILED).open("ab+") as stream:
            if stream.tell():
                stream.seek(-1, os.SEEK_END)
                if stream.read() != b"\n":  # a killed process left half a line
                    line = b"\n" + line
            stream.write(line)
        self._reasons[place] = reason
        self._state[place] = FAILED

    def clear(self, i: int) -> None:
        """Forget row i. Raises IndexError."""
        self._check_index(i)
        self._state[self._places[i]] = EMPTY

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other process from filling this store; at a good end all rows are forced to the disk.

        Raises InputError at once when another process has it; ExportError.
        """
        with _exclusive(self.folder, self._disk):
            yield
            with _writing(self.folder):
                for array in (self._rows, self._state):
                    self._disk.force(array)

    def _check_index(self, i: int) -> None:
        if not 0 <= i < len(self):
            raise IndexError(f"row {i} of {len(self)}")

    def _damaged(self, why: str, error: Exception | None = None) -> NoReturn:
        raise InputError(
            f"{self.folder}: found a damaged store ({why}), expected a whole one. Delete {self.folder}."
        ) from error

    def _check(self) -> None:
        """Compare the folder with the key."""
        try:
            found = json.loads((self.folder / _KEY).read_text())
        except (OSError, ValueError, RecursionError) as error:
            self._damaged(str(error), error)
        if not isinstance(found, dict):
            self._damaged(f"{_KEY} holds no object")
        if found.get("layout") != _LAYOUT:
            raise InputError(
                f"{self.folder}: found rows that another version of this package kept, layout "
                f"{found.get('layout', 1)}, expected layout {_LAYOUT}. Delete {self.folder} or choose another folder."
            )
        names = [name for name in {**self._key, **found} if found.get(name) != self._key.get(name)]
        if names:
            was, expected = (", ".join(f"{name} {side.get(name)}" for name in names) for side in (found, self._key))
            raise InputError(
                f"{self.folder}: found rows kept for {was}, expected {expected}. "
                f"Delete {self.folder} or choose another folder."
            )

    def _known(self) -> dict[Name, int]:
        """The place of each name. A last line that is not ended was being written when a process was killed."""
        try:
            lines = (self.folder / _NAMES).read_bytes().split(b"\n")[:-1]
            return {tuple(json.loads(line)): place for place, line in enumerate(lines)}
        except (OSError, ValueError, TypeError) as error:
            self._damaged(str(error), error)

    def _check_sizes(self, n: int) -> None:
        for name, size in self._row_bytes.items():
            path = self.folder / name
            found = path.stat().st_size if path.is_file() else -1
            if found < n * size:
                self._damaged(f"{name} has {max(found, 0)} bytes, and {n} rows take {n * size}")

    def _make(self, names: Sequence[Name]) -> None:
        """Write every file, key.json last; nothing stays behind when that fails."""
        folder = self.folder
        if folder.is_dir() and any(folder.iterdir()) and not (folder / _LOCK).exists():
            raise InputError(
                f"{folder}: found a folder with something else in it, expected an empty one or a store of rows. "
                "Choose another folder."
            )
        with _writing(folder):
            missing = [path for path in (folder, *folder.parents) if not path.exists()]
            folder.mkdir(parents=True, exist_ok=True)
        with _exclusive(folder, self._disk):
            if (folder / _KEY).exists():
                return
            try:
                with _writing(folder):
                    for name in (*self._row_bytes, _NAMES, _FAILED):  # what a killed process left half made
                        (folder / name).unlink(missing_ok=True)
                    for name in (*self._row_bytes, _NAMES):
                        (folder / name).touch()
                self._grow(names)
                write_file(folder / _KEY, (json.dumps(self._key, indent=1) + "\n").encode())
            except BaseException:
                for name in (*self._row_bytes, _NAMES, _LOCK):
                    (folder / name).unlink(missing_ok=True)
                for path in missing:
                    path.rmdir()
                raise

    def _grow(self, names: Sequence[Name]) -> None:
        """Add the names that are not there: their bytes first. Files are as they were when that fails."""
        known = self._known()
        self._check_sizes(len(known))
        new = [name for name in names if name not in known]
        if not new:
            return
        ends = {name: len(known) * size for name, size in self._row_bytes.items()}
        ends[_NAMES] = (self.folder / _NAMES).read_bytes().rfind(b"\n") + 1
        needed = len(new) * sum(self._row_bytes.values())
        if self._disk.free(self.folder) < needed:
            self._refuse_full(needed, len(new))
        try:
            for name, size in self._row_bytes.items():
                self._disk.extend(self.folder / name, ends[name], len(new) * size)
            with (self.folder / _NAMES).open("rb+") as stream:
                stream.truncate(ends[_NAMES])  # half a line that a killed process left
                stream.seek(0, os.SEEK_END)
                stream.write(b"".join(json.dumps(name).encode() + b"\n" for name in new))
        except BaseException as error:
            for name, end in ends.items():
                os.truncate(self.folder / name, end)
            if isinstance(error, OSError) and error.errno in _FULL:
                self._refuse_full(needed, len(new))
            with _writing(self.folder):
                raise

    def _refuse_full(self, needed: int, rows: int) -> NoReturn:
        free = self._disk.free(self.folder)
        raise ExportError(
            f"{self.folder}: found {free / 1e9:.3f} GB free on its disk, expected {needed / 1e9:.3f} GB for "
            f"{rows} rows. Free some space or choose another folder."
        )


def bytes_needed(n: int, shape: tuple[int, ...], dtype: str) -> int:
    """Bytes of disk that a store of n rows takes."""
    return n * (math.prod(shape) * np.dtype(dtype).itemsize + 1)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Raise ExportError for what the file system refuses."""
    try:
        yield
    except OSError as error:
        raise ExportError(
            f"{folder}: found that it cannot be written ({error}), expected a folder to keep rows in. "
            "Change its permissions or choose another folder."
        ) from error


@contextmanager
def _exclusive(folder: Path, disk: Disk) -> Iterator[None]:
    """Hold the folder's lock. It falls with the process that holds it, however that ends."""
    with _writing(folder):
        stream = (folder / _LOCK).open("ab")
    with stream:
        try:
            disk.lock(stream)
        except (BlockingIOError, PermissionError) as error:  # of Linux, of Windows
            raise InputError(
                f"{folder}: found a store being filled by another process, expected to be alone. Wait until it is done."
            ) from error
        except OSError as error:
            raise ExportError(
                f"{folder}: found a file system without locks ({error}), expected one with. Choose another folder."
            ) from error
        yield


def _read_reasons(path: Path) -> dict[int, str]:
    """The last reason on record for each row."""
    reasons = {}
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            entry = json.loads(line)
            reasons[int(entry["row"])] = str(entry["reason"])
        except (ValueError, KeyError, TypeError, RecursionError):  # half a line; its row has no byte
            continue
    return reasons
