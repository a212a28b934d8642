"""A model small enough to rehearse a GPU check with on a CPU."""

import torch

from tempme_export.encoder.checkpoint import CheckpointFacts, expected_shapes, from_state_dict
from tempme_export.encoder.profile import FROM_CHECKPOINT, BatchRange, Profile
from tempme_export.encoder.recipe import Recipe, prepare
from tempme_export.encoder.schedule import MergePolicy

_SMALL = CheckpointFacts(
    image_size=64,
    patch=16,
    width=128,
    layers=4,
    embed=32,
    text_width=64,
    text_layers=1,
    context=16,
    vocab=64,
    lora_rank=2,
    clip_lengths=((2, 4), (3, 2)),
)
PROFILE = Profile(
    name="tiny (dry run)",
    backbone=FROM_CHECKPOINT,
    frames=4,
    text_length=8,
    merge=MergePolicy(1, (2, 3), (2, 2), 30, 10),
    batch=BatchRange(1, 2, 4),
)


def rehearsal_recipe() -> Recipe:
    """The small model with random weights, the same in every process."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in expected_shapes(_SMALL).items():
        centre = 1.0 if ".ln_" in f".{name}" and name.endswith("weight") else 0.0
        tensors[f"clip.{name}"] = centre + 0.2 * torch.randn(shape, generator=generator)
    return prepare(from_state_dict(tensors, source="random weights"), PROFILE)
