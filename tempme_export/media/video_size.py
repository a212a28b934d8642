"""Size of a video file by its own account: a file that ends before its frames do was cut short.

Frame counts and lengths in headers do not tell: edit lists hide frames, recorders write lengths they guess, sound may
be longer. How many bytes hold the frames is what a reader needs, and every container but MPEG's streams says it.
"""

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

_SEGMENT, _CLUSTER, _CUES = 0x18538067, 0x1F43B675, 0x1C53BB6B  # of Matroska


def end_of_frames(path: Path, container: str) -> int:
    """The byte at which the frames of a file end, as its container declares; 0 where it declares nothing.

    container  FFmpeg's name of the format
    """
    with open(path, "rb") as file:
        try:
            for name, read in _READERS.items():
                if name in container.split(","):
                    return max(read(file), default=0)
        except (struct.error, OSError, OverflowError, ValueError):  # a header ends early, or names what no file has
            return 0
    return 0


def _unpack(file: BinaryIO, layout: str) -> tuple[Any, ...]:
    return struct.unpack(layout, file.read(struct.calcsize(layout)))


def _mp4(file: BinaryIO) -> Iterator[int]:
    """Ends of the top boxes that hold frames or their index."""
    at, size = 0, os.fstat(file.fileno()).st_size
    while at + 8 <= size:
        file.seek(at)
        length, kind = _unpack(file, ">I4s")
        if length == 1:
            (length,) = _unpack(file, ">Q")
        if length < 8:  # 0: to the end of the file
            return
        at += length
        if kind in (b"mdat", b"moof", b"moov"):
            yield at


def _avi(file: BinaryIO) -> Iterator[int]:
    """Ends of the lists `movi`; a file above 1 GB has several. A recorder that was stopped leaves a length of 0."""
    at, size = 0, os.fstat(file.fileno()).st_size
    while at + 12 <= size:
        file.seek(at)
        kind, length, form = _unpack(file, "<4sI4s")
        if kind == b"LIST" and form == b"movi" and length:
            yield at + 8 + length
        at += 12 if kind == b"RIFF" else 8 + length + length % 2


def _number(file: BinaryIO, keep_marker: bool = False) -> int | None:
    """An EBML number; None for "unknown", and for what is none."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    more = 8 - first[0].bit_length()
    marker = 1 << 7 * (more + 1)
    number = int.from_bytes(first + file.read(more), "big")
    if keep_marker:
        return number
    return None if number ^ marker == marker - 1 else number ^ marker


def _matroska(file: BinaryIO) -> Iterator[int]:
    """Ends of the clusters; of the segment too where no index of them is met first. A live recording declares none."""
    file.seek(4)
    file.seek(_number(file) or 0, os.SEEK_CUR)
    if _number(file, keep_marker=True) != _SEGMENT or (length := _number(file)) is None:
        return
    end, size = file.tell() + length, os.fstat(file.fileno()).st_size
    indexed = False
    while file.tell() < min(end, size):
        kind, length = _number(file, keep_marker=True), _number(file)
        if kind is None or length is None:
            return
        indexed |= kind == _CUES
        if kind == _CLUSTER:
            yield file.tell() + length
        file.seek(length, os.SEEK_CUR)
    if not indexed:
        yield end


def _flv(file: BinaryIO) -> Iterator[int]:
    """The file's size, which many writers put into the first tag."""
    head = file.read(4096)
    at = head.find(b"\0\x08filesize\0")
    if at >= 0:
        yield int(struct.unpack_from(">d", head, at + 11)[0])


def _asf(file: BinaryIO) -> Iterator[int]:
    """End of the data object, which follows the header object. A broadcast leaves its length 0."""
    file.seek(16)
    (header,) = _unpack(file, "<Q")
    file.seek(header + 16)
    (length,) = _unpack(file, "<Q")
    yield header + length


_READERS = {"mp4": _mp4, "avi": _avi, "matroska": _matroska, "flv": _flv, "asf": _asf}
