"""Random weights in the original's checkpoint layout, for demonstrations and measurements without a trained model.

Scales follow a trained CLIP closely enough that attention is peaked, LoRA matters and no activation overflows.
"""

import torch
from torch import Tensor

from tempme_export.encoder.backbone import Backbone, open_clip_backbone
from tempme_export.encoder.checkpoint import (
    CLIP_POSITION,
    LORA_A,
    LORA_B,
    Checkpoint,
    CheckpointFacts,
    expected_shapes,
    from_state_dict,
)
from tempme_export.encoder.profile import FROM_CHECKPOINT, Profile
from tempme_export.errors import ProfileError

LORA_RANK = 8
LOGIT_SCALE = 4.6052  # log(100), where training clamps it


def facts_of(backbone: Backbone, profile: Profile | None = None, lora_rank: int | None = None) -> CheckpointFacts:
    """The facts of a CLIP of these sizes: a plain one, or with the clip positions of a profile, or with LoRA too."""
    blocks = () if profile is None or not profile.merge.clip_position else profile.schedule(backbone).blocks
    return CheckpointFacts(
        image_size=backbone.image_size,
        patch=backbone.patch,
        width=backbone.width,
        layers=backbone.layers,
        embed=backbone.embed,
        text_width=backbone.text_width,
        text_layers=backbone.text_layers,
        context=backbone.context,
        vocab=backbone.vocab,
        lora_rank=lora_rank,
        clip_lengths=tuple((block.index, block.clips_in) for block in blocks if block.factor > 1),
    )


def _facts(profile: Profile) -> CheckpointFacts:
    if profile.backbone == FROM_CHECKPOINT:
        raise ProfileError(
            f"profile {profile.name} takes its sizes from a checkpoint, so none can be drawn for it. "
            "Give a checkpoint, or a profile that names an open_clip backbone."
        )
    return facts_of(open_clip_backbone(profile.backbone), profile, LORA_RANK)


def _mean_and_std(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    fan_in = shape[-1] if shape else 1
    last = name.rsplit(".", 1)[-1]
    if ".ln_" in f".{name}":
        return (1.0, 0.1) if last == "weight" else (0.0, 0.05)
    if last == "bias" or last == "in_proj_bias":
        return 0.0, 0.05
    rules = {
        LORA_A: fan_in**-0.5,
        LORA_B: 0.15,
        CLIP_POSITION: 0.1,
        "conv1.weight": 0.6 * (shape[1] * shape[2] * shape[3]) ** -0.5 if len(shape) == 4 else 0.0,
        "visual.class_embedding": 0.5,
        "visual.positional_embedding": 0.3,
        "positional_embedding": 0.01,
        "token_embedding.weight": 0.02,
        "in_proj_weight": 1.3 * fan_in**-0.5,
        "out_proj.weight": 0.4 * fan_in**-0.5,
        "c_fc.weight": 0.7 * fan_in**-0.5,
        "c_proj.weight": 0.4 * fan_in**-0.5,
        "proj": shape[0] ** -0.5 if shape else 0.0,
        "text_projection": shape[0] ** -0.5 if shape else 0.0,
    }
    return 0.0, next(std for ending, std in rules.items() if name.endswith(ending))


def draw_state_dict(profile: Profile, seed: int) -> dict[str, Tensor]:
    """A flat float32 state dict with the original's names (`clip.` in front), the same for the same seed.

    Raises ProfileError for a profile that takes its sizes from a checkpoint.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = {}
    for name, shape in expected_shapes(_facts(profile)).items():
        mean, std = (LOGIT_SCALE, 0.0) if name == "logit_scale" else _mean_and_std(name, shape)
        drawn[f"clip.{name}"] = torch.randn(shape, generator=generator) * std + mean
    return drawn


def draw_checkpoint(profile: Profile, seed: int) -> Checkpoint:
    """A checkpoint that was never a file; its source names the seed."""
    return from_state_dict(draw_state_dict(profile, seed), source=f"random weights (seed {seed})")
