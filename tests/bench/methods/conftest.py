import pytest
import torch

from tempme_export.encoder.checkpoint import CheckpointFacts, expected_shapes, from_state_dict, load_checkpoint
from tempme_export.encoder.profile import BatchRange, Profile
from tempme_export.encoder.recipe import Recipe, prepare
from tempme_export.encoder.schedule import MergePolicy

# Twelve blocks and frames, so that the paper's schedules apply; 25 patches, so that percentages do not come out even.
DEEP = CheckpointFacts(
    image_size=80,
    patch=16,
    width=128,
    layers=12,
    embed=32,
    text_width=64,
    text_layers=1,
    context=16,
    vocab=64,
    lora_rank=2,
    clip_lengths=((8, 12), (9, 6), (10, 3)),
)
PROFILE = Profile(
    name="deep",
    backbone="checkpoint",
    frames=12,
    text_length=8,
    merge=MergePolicy(1, (8, 9, 10), (2, 2, 3), 30, 10),
    batch=BatchRange(1, 2, 4),
)


@pytest.fixture(scope="module")
def shallow(tiny) -> Recipe:
    """The tiny model: 4 frames, 4 blocks, 2 of which join clips."""
    checkpoint, profile = tiny
    return prepare(load_checkpoint(checkpoint), profile)


@pytest.fixture(scope="module")
def deep(one_thread) -> Recipe:
    """A narrow model with the paper's 12 frames, 12 blocks and clip layers, and two heads."""
    generator = torch.Generator().manual_seed(11)
    tensors = {}
    for name, shape in expected_shapes(DEEP).items():
        centre = 1.0 if ".ln_" in f".{name}" and name.endswith("weight") else 0.0
        tensors[name] = centre + 0.15 * torch.randn(shape, generator=generator)
    return prepare(from_state_dict(tensors, "deep"), PROFILE)


@pytest.fixture
def frames_for():
    """Normalised pixels [B, F, 3, S, S] for a recipe."""

    def draw(recipe: Recipe, batch: int = 2, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        size = recipe.backbone.image_size
        generator = torch.Generator().manual_seed(3)
        return torch.randn(batch, recipe.profile.frames, 3, size, size, generator=generator, dtype=dtype)

    return draw
