"""Rows of one size on disk: filled in any order, and what a killed process wrote is still there."""

import errno
import fcntl
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from tempme_export.errors import ExportError, InputError

EMPTY, FILLED, FAILED = range(3)

_ROWS, _STATE, _KEY, _LOCK, _FAILED = "rows.bin", "done.bin", "key.json", "lock", "failed.jsonl"
_NEW_KEY = "key.json.new"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_FALLOCATE = (errno.EINVAL, errno.EOPNOTSUPP)


class RowStore:
    """Rows of one shape and dtype in a folder.

    The folder holds rows.bin and done.bin, both memory-mapped, failed.jsonl with the reasons, and key.json, which
    says what the rows belong to. Every byte is allocated before key.json appears, and only then is it a store. A
    row is written before its byte, so a killed process loses the row in hand and no other. A power cut may cost more:
    rows are forced to the disk when `locked` ends.

    rows   [n, *shape] of the dtype; read it freely, and write through `write`
    state  uint8 [n]: EMPTY, FILLED or FAILED; other processes' writes show at once
    """

    def __init__(self, folder: Path, key: Mapping[str, Any], n: int, shape: tuple[int, ...], dtype: str) -> None:
        """Open the store, or make it where the folder is new or empty.

        key  what the rows belong to, as JSON would hold it; a store opens again with an equal key only
        Raises InputError when the folder holds something else, is damaged, or is being made by another process;
        ExportError when it cannot be written or the disk has no room for all rows.
        """
        if min(n, *shape) < 1:
            raise InputError(f"found {n} rows of shape {list(shape)} to keep; expected at least 1 of each; name some")
        own = {"rows": n, "shape": list(shape), "dtype": np.dtype(dtype).str}
        assert not own.keys() & key.keys(), "the store adds these itself"
        self.folder = Path(folder)
        self._key: dict[str, Any] = json.loads(json.dumps({**key, **own}))
        self._sizes = {_ROWS: bytes_needed(n, shape, dtype) - n, _STATE: n}
        if not (self.folder / _KEY).exists():
            self._make()
        self._check()
        with _writing(self.folder):
            self.rows: np.memmap[Any, np.dtype[Any]] = np.memmap(self.folder / _ROWS, dtype, "r+", shape=(n, *shape))
            self.state: np.memmap[Any, np.dtype[np.uint8]] = np.memmap(self.folder / _STATE, np.uint8, "r+", shape=(n,))
        self._reasons = _read_reasons(self.folder / _FAILED)

    @property
    def failures(self) -> dict[int, str]:
        """The reason for each failed row, by its index."""
        failed = np.flatnonzero(self.state == FAILED)
        return {int(i): self._reasons.get(int(i), "its reason is not on record") for i in failed}

    def write(self, i: int, row: NDArray[Any]) -> None:
        """Keep row i: the row first, then its byte. Raises InputError for another shape or dtype; IndexError."""
        self._check_index(i)
        if row.shape != self.rows.shape[1:] or row.dtype != self.rows.dtype:
            raise InputError(
                f"{self.folder}: found a row of shape {list(row.shape)} and dtype {row.dtype}; expected shape "
                f"{list(self.rows.shape[1:])} and dtype {self.rows.dtype}; keep it in another folder"
            )
        self.rows[i] = row
        self.state[i] = FILLED

    def fail(self, i: int, reason: str) -> None:
        """Record that row i cannot be had: the reason first, then its byte. Raises IndexError; ExportError."""
        self._check_index(i)
        line = json.dumps({"row": int(i), "reason": reason}).encode() + b"\n"
        with _writing(self.folder), (self.folder / _FAILED).open("ab+") as stream:
            if stream.tell():
                stream.seek(-1, os.SEEK_END)
                if stream.read() != b"\n":  # a killed process left half a line
                    line = b"\n" + line
            stream.write(line)
        self._reasons[int(i)] = reason
        self.state[i] = FAILED

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other process from filling this store; at a good end all rows are forced to the disk.

        Raises InputError at once when another process has it; ExportError.
        """
        with _exclusive(self.folder):
            yield
            with _writing(self.folder):
                for array in (self.rows, self.state):
                    array.flush()

    def _check_index(self, i: int) -> None:
        if not 0 <= i < len(self.state):
            raise IndexError(f"row {i} of {len(self.state)}")

    def _check(self) -> None:
        """Compare the folder with the key and the sizes."""
        try:
            found = json.loads((self.folder / _KEY).read_text())
            sizes = {name: (self.folder / name).stat().st_size for name in self._sizes}
        except (OSError, ValueError) as error:
            raise InputError(
                f"{self.folder}: found a damaged store ({error}); expected a whole one; delete {self.folder}"
            ) from error
        names = [name for name in {**self._key, **found} if found.get(name) != self._key.get(name)]
        if names:
            was, wanted = (", ".join(f"{name} {side.get(name)}" for name in names) for side in (found, self._key))
            raise InputError(
                f"{self.folder}: found rows kept for {was}; expected {wanted}; "
                f"delete {self.folder} or choose another folder"
            )
        if sizes != self._sizes:
            raise InputError(
                f"{self.folder}: found files of {sizes} bytes; expected {self._sizes}; the store is damaged, "
                f"delete {self.folder}"
            )

    def _make(self) -> None:
        """Allocate every file, key.json last; nothing stays behind when that fails."""
        folder = self.folder
        if folder.is_dir() and any(folder.iterdir()) and not (folder / _LOCK).exists():
            raise InputError(
                f"{folder}: found a folder with something else in it; expected an empty one or a store of rows; "
                "choose another folder"
            )
        with _writing(folder):
            missing = [path for path in (folder, *folder.parents) if not path.exists()]
            folder.mkdir(parents=True, exist_ok=True)
        with _exclusive(folder):
            if (folder / _KEY).exists():
                return
            try:
                with _writing(folder):
                    self._allocate()
            except BaseException:
                for name in (*self._sizes, _NEW_KEY, _LOCK):
                    (folder / name).unlink(missing_ok=True)
                for path in missing:
                    path.rmdir()
                raise

    def _allocate(self) -> None:
        for name in self._sizes:  # what a killed process left half made
            (self.folder / name).unlink(missing_ok=True)
        needed = sum(self._sizes.values())
        if shutil.disk_usage(self.folder).free < needed:
            self._refuse_full(needed)
        for name, size in self._sizes.items():
            try:
                _allocate(self.folder / name, size)
            except OSError as error:
                if error.errno in _FULL:
                    self._refuse_full(needed)
                raise
        (self.folder / _NEW_KEY).write_text(json.dumps(self._key, indent=1) + "\n")
        (self.folder / _NEW_KEY).replace(self.folder / _KEY)

    def _refuse_full(self, needed: int) -> NoReturn:
        free = shutil.disk_usage(self.folder).free
        raise ExportError(
            f"{self.folder}: found {free / 1e9:.3f} GB free on its disk; expected {needed / 1e9:.3f} GB for "
            f"{self._sizes[_STATE]} rows; free some space or choose another folder"
        )


def bytes_needed(n: int, shape: tuple[int, ...], dtype: str) -> int:
    """How many bytes of disk a store of n rows takes."""
    return n * (math.prod(shape) * np.dtype(dtype).itemsize + 1)


def _allocate(path: Path, size: int) -> None:
    """Make a file of zeros whose every block is on the disk: a write to a hole on a full disk is a SIGBUS."""
    with path.open("wb") as stream:
        if hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(stream.fileno(), 0, size)
                return
            except OSError as error:
                if error.errno not in _NO_FALLOCATE:
                    raise
        block = bytes(min(size, 1 << 24))
        for start in range(0, size, len(block)):
            stream.write(block[: size - start])


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """What the file system refuses becomes ExportError."""
    try:
        yield
    except OSError as error:
        raise ExportError(
            f"{folder}: found that it cannot be written ({error}); expected a folder to keep rows in; "
            "change its permissions or choose another folder"
        ) from error


@contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    """Hold the folder's lock. It falls with the process that holds it, however that ends."""
    with _writing(folder):
        stream = (folder / _LOCK).open("ab")
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"{folder}: found a store being filled by another process; expected to be alone; wait until it is done"
            ) from error
        except OSError as error:
            raise ExportError(
                f"{folder}: found a file system without locks ({error}); expected one with; choose another folder"
            ) from error
        yield


def _read_reasons(path: Path) -> dict[int, str]:
    """The last reason on record for each row."""
    reasons = {}
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            entry = json.loads(line)
        except ValueError:  # half a line; its row has no byte
            continue
        reasons[int(entry["row"])] = str(entry["reason"])
    return reasons
