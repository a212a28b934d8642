"""A trained model as a checkpoint file."""

from pathlib import Path

import torch
from torch import Tensor

from tempme_export.encoder.recipe import Recipe
from tempme_export.errors import ExportError
from tempme_export.files import write_file


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
    write_file(path, lambda stream: torch.save(document, stream))
