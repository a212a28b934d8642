"""A file -> what it holds. Its first bytes say what it is; its name says nothing."""

import pickle
from pathlib import Path
from typing import Any

from tempme_export.encoder.checkpoint.safetensors_files import header_length, read_safetensors
from tempme_export.encoder.checkpoint.torch_files import read_torch_file
from tempme_export.errors import CheckpointError

_ARCHIVE = b"PK\x03\x04"
_OTHERS = (
    (b"version https://git-lfs", "It is a pointer of Git LFS: run git lfs pull."),
    (b"<", "It begins like a web page: download the file itself."),
    (b"\x1f\x8b", "It is compressed: unpack it with gunzip."),
    (b"GGUF", "It is a GGUF file: give the checkpoint that it was made from."),
    (b"\x89HDF", "It is an HDF5 file: give the PyTorch checkpoint of the model."),
)


def read_file(path: Path) -> tuple[Any, tuple[str, ...]]:
    """Content of a PyTorch or safetensors file, whatever it is called, and remarks on it.

    Raises CheckpointError for a damaged file, one that holds code, and any other.
    """
    try:
        with path.open("rb") as stream:
            beginning = stream.read(32)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}. Check its permissions.") from error
    if header_length(beginning) is not None:
        return read_safetensors(path), ()
    if beginning[:1] == pickle.PROTO or beginning.startswith(_ARCHIVE):
        return read_torch_file(path)
    hints = [hint for magic, hint in _OTHERS if beginning.startswith(magic)]
    raise CheckpointError(
        f"{path} is not a PyTorch or safetensors file, or it is truncated. "
        f"{hints[0] if hints else 'Give a file that torch.save or safetensors wrote.'}"
    )
