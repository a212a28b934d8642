"""Files of `torch.save`: read without running anything, and only when every byte is what was written."""

import pickle
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from tempme_export.encoder.checkpoint.facts import listing
from tempme_export.errors import CheckpointError

_PART = 1 << 22
_UNREADABLE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError)


class _Inert(dict[Any, Any]):
    """Stands for whatever a pickle would build or call, and only remembers with what."""

    args: tuple[Any, ...] = ()

    def __new__(cls, *args: Any) -> "_Inert":
        self = super().__new__(cls)
        self.args = args
        return self

    def __init__(self, *args: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        self.args = (*self.args, state)


class _Storage(str):
    """The key of a storage, the last part of its record's name."""


class _Names(pickle.Unpickler):
    """Reads which storage each tensor lies in. Nothing that the pickle names is imported."""

    def find_class(self, module: str, name: str) -> Any:
        return _Inert

    def persistent_load(self, pid: Any) -> _Storage:
        return _Storage(pid[2])


def _storages(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """(storage's key, path of the tensor in it) of everything below."""
    if isinstance(value, _Storage):
        yield str(value), path
    if isinstance(value, dict):
        for key, one in value.items():
            yield from _storages(one, f"{path}.{key}" if path else str(key))
    if isinstance(value, _Inert):
        value = value.args
    if isinstance(value, list | tuple):
        for one in value:
            yield from _storages(one, path)


def _tensors_in(archive: zipfile.ZipFile, records: list[str]) -> list[str]:
    """Names of the tensors in the records; none where the list of names is what is damaged."""
    pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    try:
        with archive.open(pickles[0]) as stream:
            names = list(_storages(_Names(stream).load()))
    except Exception:  # a damaged pickle fails in whatever operation comes next
        return []
    return [name for key, name in names if any(record.endswith(f"/data/{key}") for record in records)]


def _is_whole(archive: zipfile.ZipFile, record: zipfile.ZipInfo) -> bool:
    try:
        with archive.open(record) as stream:
            while stream.read(_PART):
                pass
    except _UNREADABLE:
        return False
    return True


def _check_archive(path: Path) -> tuple[str, ...]:
    """Compare every record with its checksum. Returns what a person should know.

    Raises CheckpointError for damage, naming the tensors, and for TorchScript.
    """
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        if any(record.filename.endswith("/constants.pkl") for record in records):
            raise CheckpointError(
                f"{path} is a TorchScript archive, expected a state_dict. Convert it once: "
                f"torch.save(torch.jit.load({str(path)!r}).state_dict(), 'clip.pt')"
            )
        if not any(record.CRC for record in records):  # torch.serialization.set_crc32_options(False)
            return ("written without checksums, so damage could not be looked for",)
        damaged = [record.filename for record in records if not _is_whole(archive, record)]
        if damaged:
            tensors = _tensors_in(archive, damaged)
            what = f"the bytes of {listing(tensors)}" if tensors else f"the record {listing(damaged)}"
            raise CheckpointError(
                f"{path} is damaged: found {what} changed since it was written, expected every record to have its "
                "checksum. Copy or download the file again."
            )
    return ()


def read_torch_file(path: Path) -> tuple[Any, tuple[str, ...]]:
    """Content of the file, and remarks on it. Raises CheckpointError for damage, code, TorchScript and other files."""
    try:
        remarks = (
            _check_archive(path) if zipfile.is_zipfile(path) else ("PyTorch's old format, which has no checksums",)
        )
        with path.open("rb") as stream:  # of a path, torch reads the name first
            return torch.load(stream, map_location="cpu", weights_only=True), remarks
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds code or objects beside tensors, and loading those could run anything. "
            "Save the model's state_dict() alone."
        ) from error
    except Exception as error:  # a damaged pickle fails in whatever operation comes next
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} cannot be read, it may be truncated or no checkpoint: {reason}") from error
