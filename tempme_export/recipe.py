"""Checkpoint + profile -> Recipe: one consistent description of the encoder to build, and its weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from tempme_export.backbone import HEAD_WIDTH, Backbone, open_clip_backbone
from tempme_export.checkpoint import CLIP_POSITION, LORA_A, LORA_B, Checkpoint
from tempme_export.errors import CheckpointError, ProfileError
from tempme_export.profile import FROM_CHECKPOINT, Profile, load_profile, shipped_profiles
from tempme_export.schedule import Schedule

_SIZES = (
    "image_size",
    "patch",
    "width",
    "layers",
    "embed",
    "text_width",
    "text_layers",
    "context",
    "vocab",
)


@dataclass(frozen=True)
class Recipe:
    """What every encoder of this package is built from. `origin` says where the profile is from: the caller, the
    checkpoint's own file, or the checkpoint's shapes."""

    checkpoint: Checkpoint
    profile: Profile
    backbone: Backbone
    plan: Schedule
    origin: Literal["asked", "declared", "inferred"] = "asked"


def _backbone_from_shapes(checkpoint: Checkpoint) -> Backbone:
    facts = checkpoint.facts
    odd = [f"{k} = {v}" for k in ("width", "text_width") if (v := getattr(facts, k)) % HEAD_WIDTH]
    if odd:
        raise CheckpointError(f"{', '.join(odd)} is not a multiple of the head width {HEAD_WIDTH}.")
    sizes = {size: getattr(facts, size) for size in _SIZES}
    return Backbone(
        name=FROM_CHECKPOINT,
        heads=facts.width // HEAD_WIDTH,
        text_heads=facts.text_width // HEAD_WIDTH,
        activation=checkpoint.activation or "quickgelu",
        **sizes,
    )


def _backbone_for(profile: Profile, checkpoint: Checkpoint) -> Backbone:
    if profile.backbone == FROM_CHECKPOINT:
        return _backbone_from_shapes(checkpoint)
    return open_clip_backbone(profile.backbone)


def _contradictions(checkpoint: Checkpoint, profile: Profile, backbone: Backbone) -> list[str]:
    """Everything the checkpoint tells that the profile denies, each naming both."""
    facts, merge = checkpoint.facts, profile.merge
    found = [
        f"{size} is {getattr(facts, size)} in the checkpoint and {getattr(backbone, size)} in {backbone.name}"
        for size in _SIZES
        if getattr(facts, size) != getattr(backbone, size)
    ]
    if checkpoint.activation not in (None, backbone.activation):
        found.append(
            f"activation is {checkpoint.activation} in the checkpoint and {backbone.activation} in {backbone.name}"
        )
    expected, clips = {}, profile.frames
    for layer, factor in zip(merge.clip_layers, merge.clip_factors, strict=True):
        if merge.clip_position and factor > 1:
            expected[layer] = clips
        clips //= factor
    if dict(facts.clip_lengths) != expected and not facts.is_plain_clip:
        found.append(
            f"clip positions {{block: clips}} are {dict(facts.clip_lengths)} in the checkpoint and {expected} "
            "by the profile's frames, clip_layers and clip_factors"
        )
    return found


def infer_profile(checkpoint: Checkpoint) -> Profile:
    """The one shipped profile that the checkpoint's shapes allow.

    Raises ProfileError when none or several do, and lists them: image_r, the percentages, the last factor,
    the size term and the text length cannot be told from shapes, and a wrong guess would load.
    """
    profiles = [load_profile(name) for name in shipped_profiles()]
    matches = [p for p in profiles if not _contradictions(checkpoint, p, _backbone_for(p, checkpoint))]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise ProfileError(
            f"{checkpoint.source} fits {len(matches)} profiles: {', '.join(p.name for p in matches)}. "
            "Its shapes cannot tell which; choose one with --profile."
        )
    f = checkpoint.facts
    raise ProfileError(
        f"{checkpoint.source} (patch {f.patch}, width {f.width}, {f.layers} blocks, image {f.image_size}, clip "
        f"positions {dict(f.clip_lengths) or 'none'}) fits no shipped profile. Write one and give its path with "
        f"--profile. Shipped: {', '.join(shipped_profiles())}."
    )


def prepare(checkpoint: Checkpoint, profile: Profile | str | Path | None = None) -> Recipe:
    """Bring a checkpoint and a profile together; without a profile, take the checkpoint's own or infer it.

    Raises ProfileError where they contradict each other, where the profile is ambiguous, or where its
    settings do not fit the backbone.
    """
    origin: Literal["asked", "declared", "inferred"] = "asked"
    if profile is None and checkpoint.profile is not None:
        profile, origin = checkpoint.profile, "declared"
    elif profile is None:
        profile, origin = infer_profile(checkpoint), "inferred"
    elif not isinstance(profile, Profile):
        profile = load_profile(profile)
    backbone = _backbone_for(profile, checkpoint)
    plan = profile.plan(backbone)
    found = _contradictions(checkpoint, profile, backbone)
    if found:
        raise ProfileError(
            f"checkpoint {checkpoint.source} and profile {profile.name} contradict each other: "
            f"{'; '.join(found)}. Choose the profile that the model was trained with (--profile)."
        )
    return Recipe(checkpoint, profile, backbone, plan, origin)


def folded_weights(recipe: Recipe, tower: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Weights of one tower with LoRA folded in float64, then cast: W + B A (scale exactly 1).

    tower  "visual." or "" for text; names come back without it
    Clip positions come back as `...resblocks.I.clip_position` [clips, D], zeros for a plain CLIP.
    """
    source: Mapping[str, Tensor] = recipe.checkpoint.tensors
    names = [n for n in source if n.startswith(tower) and (tower or not n.startswith("visual."))]
    weights: dict[str, Tensor] = {}
    for name in names:
        short, tensor = name.removeprefix(tower), source[name]
        if name.endswith((LORA_A, LORA_B, CLIP_POSITION)):
            continue
        if name.endswith("attn.in_proj_weight"):
            block = name.removesuffix("attn.in_proj_weight")
            if block + LORA_A in source:
                tensor = tensor.double() + source[block + LORA_B].double() @ source[block + LORA_A].double()
        weights[short] = tensor.to(dtype)
    if tower and recipe.profile.merge.clip_position:
        for plan in recipe.plan.blocks:
            if plan.factor > 1:
                prefix = f"transformer.resblocks.{plan.index}."
                position = source.get(tower + prefix + CLIP_POSITION)
                if position is None:
                    position = torch.zeros(1, plan.clips_in, 1, recipe.backbone.width)
                weights[prefix + "clip_position"] = position[0, :, 0].to(dtype)
    return weights
