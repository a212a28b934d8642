"""Common base of the exporters: number formats, inputs to trace a tower with, and the size of its weights."""

from pathlib import Path

import torch
from torch import Tensor

from tempme_export.artifacts.artifact import Tower
from tempme_export.artifacts.graph_files import data_path
from tempme_export.encoder.recipe import Recipe

# What surrounds the products; int8 leaves everything else in float32.
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.float32}


def video_inputs(recipe: Recipe, batch: int, frame_mask: bool, device: str = "cpu") -> dict[str, Tensor]:
    """`frames` float32 [batch, F, 3, S, S], with `frame_mask` also bool [batch, F]; values mean nothing."""
    frames, size = recipe.profile.frames, recipe.backbone.image_size
    inputs = {"frames": torch.zeros(batch, frames, 3, size, size, device=device)}
    if frame_mask:
        inputs["frame_mask"] = torch.ones(batch, frames, dtype=torch.bool, device=device)
    return inputs


def tower_bytes(recipe: Recipe, tower: Tower, precision: str) -> int:
    """Bytes of a tower's weights; the rest of a checkpoint counts with the texts."""
    tensors = recipe.checkpoint.tensors.items()
    weights = sum(tensor.numel() for name, tensor in tensors if name.startswith("visual.") == (tower == "video"))
    return weights * {"fp32": 4, "int8": 1}.get(precision, 2)


def graph_names(file: str, weights: int, largest_file: int) -> list[str]:
    """The files of a graph with so many bytes of weights."""
    return [file, data_path(Path(file)).name] if weights > largest_file else [file]
