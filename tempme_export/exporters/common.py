"""What every exporter starts from: number formats and the inputs that a tower is traced with."""

import torch
from torch import Tensor

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
