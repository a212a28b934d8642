"""Safetensors files: a length, a JSON header of names, shapes and places, and the bytes. There are no checksums, so
what can be checked is that the header accounts for every byte."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

from torch import Tensor

from tempme_export.errors import CheckpointError
from tempme_export.files import library_path

MOST_HEADER = 100_000_000  # the format's own limit, bytes
_LENGTH = 8
_BYTES = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
}


def header_length(beginning: bytes) -> int | None:
    """Bytes of the header by a file's first nine bytes; None where it is no safetensors file."""
    length = int.from_bytes(beginning[:_LENGTH], "little")
    return length if beginning[_LENGTH : _LENGTH + 1] == b"{" and 2 <= length <= MOST_HEADER else None


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    repeated = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
    if repeated:
        raise ValueError(f"{repeated[0]} stands in it twice")
    return dict(pairs)


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header, and how many bytes follow it."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = header_length(stream.read(_LENGTH + 1))
        if length is None or _LENGTH + length > size:
            raise CheckpointError(
                f"{path} is truncated: found {size} bytes, expected a header of {length}. Copy or download it again."
            )
        stream.seek(_LENGTH)
        text = stream.read(length)
    try:
        header = json.loads(text, object_pairs_hook=_pairs)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} cannot be read as safetensors, its header is damaged: {error}. Copy or download it again."
        ) from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path} cannot be read as safetensors: its header is no table of tensors.")
    return header, size - _LENGTH - length


def _counts(value: Any) -> list[int] | None:
    """A list of whole numbers from 0 up; None for anything else."""
    fine = isinstance(value, list) and all(type(one) is int and one >= 0 for one in value)
    return value if fine else None


def _place(name: str, entry: Any, path: Path) -> tuple[int, int]:
    """Begin and end of a tensor's bytes, found to be as many as its shape takes."""
    entry = entry if isinstance(entry, dict) else {}
    shape, place = _counts(entry.get("shape")), _counts(entry.get("data_offsets"))
    if shape is None or place is None or len(place) != 2:
        raise CheckpointError(f"{path} is damaged: {name} has no shape and place in its header. Copy it again.")
    width = _BYTES.get(str(entry.get("dtype")))
    needed = None if width is None else width * math.prod(shape)
    if needed not in (None, place[1] - place[0]):
        raise CheckpointError(
            f"{path} is damaged: {name} {entry['dtype']} {shape} takes {needed} bytes, found {place[1] - place[0]} in "
            "its header. Copy or download the file again."
        )
    return place[0], place[1]


def _check_places(path: Path) -> None:
    """Raises CheckpointError, naming the tensor, where the header and the bytes do not go together."""
    header, size = _read_header(path)
    places = sorted((_place(name, entry, path), name) for name, entry in header.items() if name != "__metadata__")
    end = 0
    for (first, last), name in places:
        if first != end:
            raise CheckpointError(
                f"{path} is damaged: {name} begins at byte {first}, expected {end}, where the tensor before it ends. "
                "Copy or download the file again."
            )
        if last > size:
            raise CheckpointError(
                f"{path} is truncated: {name} ends at byte {last}, found {size} bytes. Copy or download it again."
            )
        end = last
    if end != size:
        raise CheckpointError(
            f"{path} is damaged: found {size - end} bytes that belong to no tensor, behind "
            f"{places[-1][1] if places else 'the header'}. Copy or download the file again."
        )


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Named tensors. Raises CheckpointError for a file that is damaged, truncated or something else."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    _check_places(path)
    try:
        with library_path(path) as named:
            tensors: dict[str, Tensor] = load_file(named)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors: {error}") from error
    return tensors
