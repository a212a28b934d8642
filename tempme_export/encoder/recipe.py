"""Checkpoint + profile -> Recipe: one consistent description of the encoder to build, and its weights."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from tempme_export.encoder.backbone import ACTIVATIONS, HEAD_WIDTH, OTHER_HEADS, Backbone, open_clip_backbone
from tempme_export.encoder.checkpoint import CLIP_POSITION, LORA_A, LORA_B, Checkpoint, load_checkpoint
from tempme_export.encoder.conventions import FIXED, About, Statement, agreed
from tempme_export.encoder.profile import FROM_CHECKPOINT, Profile, load_profile, shipped_profiles
from tempme_export.encoder.schedule import Schedule
from tempme_export.errors import CheckpointError, ProfileError, UsageError

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


Origin = Literal["asked", "declared", "inferred"]
_Known = Mapping[About, Statement]
_TOLD: tuple[About, ...] = ("activation", "mean", "std", "heads", "text_heads")  # fields of a Backbone, too
_CLIP_OWN = "CLIP's own defaults"


@dataclass(frozen=True)
class Recipe:
    """Everything that an encoder of this package is built from. `origin` says where the profile is from: the caller,
    the checkpoint's own file, or the checkpoint's shapes. `conventions` lists what shapes cannot tell, and who says
    it."""

    checkpoint: Checkpoint
    profile: Profile
    backbone: Backbone
    schedule: Schedule
    origin: Origin = "asked"
    conventions: tuple[Statement, ...] = ()


def _check_activation(activation: str | None) -> None:
    if activation not in (None, *ACTIVATIONS):
        raise UsageError(f"activation: found {activation!r}, expected one of {', '.join(ACTIVATIONS)}.")


def _heads(known: _Known, about: Literal["heads", "text_heads"], width: int, name: str) -> int:
    if (told := known.get(about)) is None:
        if width % HEAD_WIDTH:
            raise CheckpointError(f"{name} = {width} is not a multiple of the head width {HEAD_WIDTH}.")
        return width // HEAD_WIDTH
    if told.value < 1 or width % told.value:
        raise CheckpointError(f"{about} is {told.value} by {told.source}, expected a divisor of {name} = {width}.")
    return int(told.value)


def _backbone_from_shapes(checkpoint: Checkpoint, known: _Known) -> Backbone:
    facts = checkpoint.facts
    other = OTHER_HEADS.get((facts.width, facts.layers))
    if other is not None and known.get("heads") is None:
        raise ProfileError(
            f"found backbone {FROM_CHECKPOINT!r} for {checkpoint.source}, whose width {facts.width} and {facts.layers} "
            f"blocks are {other}'s, and its heads are not {HEAD_WIDTH} wide, as is assumed where nothing tells them. "
            f"Name the backbone in the profile: {other}-14-quickgelu, or another that open_clip calls {other}."
        )
    return Backbone(
        name=FROM_CHECKPOINT,
        heads=_heads(known, "heads", facts.width, "width"),
        text_heads=_heads(known, "text_heads", facts.text_width, "text_width"),
        **{size: getattr(facts, size) for size in _SIZES},
    )


def _backbone_for(profile: Profile, checkpoint: Checkpoint, known: _Known, overruled: bool) -> Backbone:
    """The profile's backbone with what is known about the checkpoint. Activation and heads of a named backbone stay,
    and may contradict it, unless the activation is `overruled`."""
    by_name = profile.backbone != FROM_CHECKPOINT
    backbone = open_clip_backbone(profile.backbone) if by_name else _backbone_from_shapes(checkpoint, known)
    free = {"mean", "std"} | ({"activation"} if overruled or not by_name else set())
    changes: dict[str, Any] = {about: known[about].value for about in _TOLD if about in known and about in free}
    return replace(backbone, **changes)


def _conventions(profile: Profile, backbone: Backbone, known: _Known, origin: Origin) -> tuple[Statement, ...]:
    """Everything that shapes cannot tell: what is known, and what is assumed because nobody says it."""
    named = f"profile {profile.name} (its backbone {backbone.name})" if backbone.name != FROM_CHECKPOINT else None
    assumed = [
        Statement("activation", backbone.activation, named or _CLIP_OWN, assumed=True),
        Statement("mean", backbone.mean, _CLIP_OWN, assumed=True),
        Statement("std", backbone.std, _CLIP_OWN, assumed=True),
        Statement("heads", backbone.heads, named or f"a head width of {HEAD_WIDTH}", assumed=True),
        Statement("text_heads", backbone.text_heads, named or f"a head width of {HEAD_WIDTH}", assumed=True),
        *(Statement(about, value, _CLIP_OWN, assumed=True) for about, value in FIXED.items()),
    ]
    merge = profile.merge
    settings = (
        f"image_r {merge.image_r}, cross {merge.cross_percent:g} %, intra {merge.intra_percent:g} %, clip factors "
        f"{list(merge.clip_factors)}, size bias {'on' if merge.size_bias else 'off'}, clip position "
        f"{'on' if merge.clip_position else 'off'}, text length {profile.text_length}"
    )
    by_profile = Statement("profile", settings, f"profile {profile.name}", assumed=origin == "inferred")
    return (*(known.get(one.about, one) for one in assumed), by_profile)


def _contradictions(checkpoint: Checkpoint, profile: Profile, backbone: Backbone, known: _Known) -> list[str]:
    """Everything the checkpoint tells that the profile denies, each naming both."""
    facts, merge = checkpoint.facts, profile.merge
    found = [
        f"{size} is {getattr(facts, size)} in the checkpoint and {getattr(backbone, size)} in {backbone.name}"
        for size in _SIZES
        if getattr(facts, size) != getattr(backbone, size)
    ]
    found += [
        f"{about} is {known[about].value} by {known[about].source} and {getattr(backbone, about)} in {backbone.name}"
        for about in ("activation", "heads", "text_heads")
        if about in known and known[about].value != getattr(backbone, about)
    ]
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


def infer_profile(checkpoint: Checkpoint, activation: str | None = None) -> Profile:
    """The one shipped profile that the checkpoint's shapes allow, with `activation` where one is asked for.

    Raises ProfileError when none or several do, and lists them: image_r, the percentages, the last factor,
    the size term and the text length cannot be told from shapes, and a wrong guess would load.
    """
    known = _known(checkpoint, activation)
    profiles = [load_profile(name) for name in shipped_profiles()]
    backbones = [_backbone_for(profile, checkpoint, known, activation is not None) for profile in profiles]
    matches = [
        profile
        for profile, backbone in zip(profiles, backbones, strict=True)
        if not _contradictions(checkpoint, profile, backbone, known)
    ]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise ProfileError(
            f"{checkpoint.source} fits {len(matches)} profiles: {', '.join(p.name for p in matches)}. "
            "Its shapes cannot tell which. Choose one with --profile."
        )
    f, told = checkpoint.facts, known.get("activation")
    activated = "" if told is None else f", {told.value} by {told.source}"
    confirm = "" if told is None else f", or confirm with --activation {told.value} where only that differs"
    raise ProfileError(
        f"{checkpoint.source} (patch {f.patch}, width {f.width}, {f.layers} blocks, image {f.image_size}, clip "
        f"positions {dict(f.clip_lengths) or 'none'}{activated}) fits no shipped profile. Write one and give its path "
        f"with --profile{confirm}. Shipped: {', '.join(shipped_profiles())}."
    )


def _known(checkpoint: Checkpoint, activation: str | None) -> _Known:
    asked = () if activation is None else (Statement("activation", activation, "--activation, as asked"),)
    return agreed((*asked, *checkpoint.statements), checkpoint.source)


def prepare(
    checkpoint: Checkpoint, profile: Profile | str | Path | None = None, activation: str | None = None
) -> Recipe:
    """Bring a checkpoint and a profile together; without a profile, take the checkpoint's own or infer it.

    activation  what the towers compute, where no file says it; it overrules the backbone that a profile names, and
                nothing that the checkpoint says itself

    Raises ProfileError where they contradict each other, where the profile is ambiguous, or where its
    settings do not fit the backbone; CheckpointError where the checkpoint contradicts `activation`; UsageError for
    another activation than `ACTIVATIONS`.
    """
    _check_activation(activation)
    known = _known(checkpoint, activation)
    origin: Origin = "asked"
    if profile is None and checkpoint.profile is not None:
        profile, origin = checkpoint.profile, "declared"
    elif profile is None:
        profile, origin = infer_profile(checkpoint, activation), "inferred"
    elif not isinstance(profile, Profile):
        profile = load_profile(profile)
    overruled = activation is not None or origin == "declared"
    backbone = _backbone_for(profile, checkpoint, known, overruled)
    schedule = profile.schedule(backbone)
    found = _contradictions(checkpoint, profile, backbone, known)
    if found:
        told = known.get("activation")
        advice = f", or confirm with --activation {told.value}" if told and told.value != backbone.activation else ""
        raise ProfileError(
            f"checkpoint {checkpoint.source} and profile {profile.name} contradict each other: "
            f"{'; '.join(found)}. Choose the profile that the model was trained with (--profile){advice}."
        )
    return Recipe(checkpoint, profile, backbone, schedule, origin, _conventions(profile, backbone, known, origin))


def open_recipe(
    source: Checkpoint | str | Path, profile: Profile | str | Path | None = None, activation: str | None = None
) -> Recipe:
    """Load a checkpoint and prepare it: the one door of every command. Raises as `load_checkpoint` and `prepare`."""
    _check_activation(activation)
    checkpoint = source if isinstance(source, Checkpoint) else load_checkpoint(source)
    return prepare(checkpoint, profile, activation)


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
        for each in recipe.schedule.blocks:
            if each.factor > 1:
                prefix = f"transformer.resblocks.{each.index}."
                position = source.get(tower + prefix + CLIP_POSITION)
                if position is None:
                    position = torch.zeros(1, each.clips_in, 1, recipe.backbone.width)
                weights[prefix + "clip_position"] = position[0, :, 0].to(dtype)
    return weights
