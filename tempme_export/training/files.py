"""Files that are whole or not there: written beside their place, then renamed."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from tempme_export.errors import ExportError
from tempme_export.recipe import Recipe


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a hidden sibling of `path`, bring it to the disk, and rename it.

    Whatever happens, `path` is the old file or the whole new one. Raises ExportError when it cannot be written.
    """
    beside = path.with_name(f".{path.name}.tmp")
    try:
        try:
            with beside.open("wb") as stream:
                write(stream)
                stream.flush()
                os.fsync(stream.fileno())
            beside.replace(path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch.save turns some failed writes into a RuntimeError
        where = next(folder for folder in path.absolute().parents if folder.exists())
        free = shutil.disk_usage(where).free
        kept = f"; {path.name} of before is intact" if path.is_file() else ""
        raise ExportError(
            f"{path} could not be written ({str(error).splitlines()[0]}); {free / 1e6:.0f} MB are free there{kept}. "
            "Make room or choose another folder."
        ) from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save_model(path: Path, state: dict[str, Tensor], recipe: Recipe, store: str) -> None:
    """A checkpoint that this package and the original read, with the profile, activation and pixel statistics it was
    trained with.

    state  names with `clip.` and float32 tensors (spec section 7)
    store  "fp32", or "fp16" for half the size
    Raises ExportError when it cannot be written, or when a value does not fit into float16.
    """
    if store == "fp16":
        state = {name: tensor.half() for name, tensor in state.items()}
        too_large = [name for name, tensor in state.items() if not bool(tensor.isfinite().all())]
        if too_large:
            raise ExportError(f"{path}: {too_large[0]} has values beyond float16's 65504. Use --store fp32.")
    backbone = recipe.backbone
    document = {
        "state_dict": state,
        "profile": recipe.profile.to_dict(),
        "activation": backbone.activation,
        "mean": list(backbone.mean),
        "std": list(backbone.std),
    }
    write_whole(path, lambda stream: torch.save(document, stream))
