"""Disk of a store of rows: room that is really there, and a lock."""

import errno
import importlib
import os
import shutil
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

_CANNOT_ALLOCATE = (errno.EINVAL, errno.EOPNOTSUPP)


class Disk:
    """The disk under a folder. Everything here raises OSError where it refuses."""

    def free(self, folder: Path) -> int:
        """Bytes that can still be written."""
        return shutil.disk_usage(folder).free

    def allocate(self, descriptor: int, start: int, size: int) -> None:
        """Give a part of an open file its blocks."""
        if not hasattr(os, "posix_fallocate"):
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        os.posix_fallocate(descriptor, start, size)

    def extend(self, path: Path, end: int, size: int) -> None:
        """Put zeros behind the first `end` bytes, their every block on the disk: a write to a hole on a full disk is a
        SIGBUS. What a killed process left behind them goes."""
        with path.open("rb+") as stream:
            stream.truncate(end)
            try:
                return self.allocate(stream.fileno(), end, size)
            except OSError as error:
                if error.errno not in _CANNOT_ALLOCATE:
                    raise
            stream.seek(end)
            block = bytes(min(size, 1 << 24))
            for start in range(0, size, len(block)):
                stream.write(block[: size - start])

    def force(self, rows: "np.memmap[Any, Any]") -> None:
        """Have rows survive a power cut."""
        rows.flush()

    def lock(self, stream: BinaryIO) -> None:
        """Take a lock that falls with its process, or raise OSError at once."""
        try:
            import fcntl
        except ImportError:  # Windows
            msvcrt: Any = importlib.import_module("msvcrt")
            msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
