"""Encoders that are shapes and no numbers, so that any size is counted in a second and without memory; their graphs."""

import dataclasses

import onnx
import torch
from torch import Tensor

from tempme_export.bench.paper import Claim
from tempme_export.encoder.backbone import Backbone
from tempme_export.encoder.checkpoint import Checkpoint, expected_shapes
from tempme_export.encoder.model import VideoEncoder
from tempme_export.encoder.profile import BatchRange, Profile
from tempme_export.encoder.random_weights import facts_of
from tempme_export.encoder.recipe import Recipe
from tempme_export.encoder.schedule import build_schedule
from tempme_export.exporters.common import video_inputs
from tempme_export.exporters.onnx import DEFAULT_OPSET, TracedVideo, to_proto


def claim_profile(claim: Claim) -> Profile:
    """The profile of a claim's merge policy; of a claim with a schedule of its own, the profile that it starts from."""
    return Profile(claim.label, claim.backbone, claim.frames, 1, claim.merge, BatchRange(1, 1, 1))


def shape_recipe(
    profile: Profile,
    backbone: Backbone,
    *,
    device: str = "meta",
    adapter: int | None = None,
    prompts: int | None = None,
) -> Recipe:
    """A recipe whose tensors have the sizes of `backbone` and no values: on `meta`, or zeros on another device.

    adapter  inner width of adapters, prompts  tokens in each block; None: without
    LoRA is left out: it is folded before anything runs. Raises ProfileError for settings that do not fit.
    """
    schedule = build_schedule(
        profile.merge, layers=backbone.layers, frames=profile.frames, tokens_per_frame=backbone.tokens_per_frame
    )
    facts = dataclasses.replace(facts_of(backbone, profile), adapter=adapter, prompts=prompts)
    tensors: dict[str, Tensor] = {
        name: torch.zeros(shape, device=device)
        for name, shape in expected_shapes(facts).items()
        if name.startswith("visual.")
    }
    return Recipe(Checkpoint(f"shapes of {profile.name}", "", tensors, facts), profile, backbone, schedule)


def shape_frames(recipe: Recipe, videos: int = 1, device: str = "meta") -> Tensor:
    """[videos, F, 3, S, S] float32 without values."""
    size = recipe.backbone.image_size
    return torch.zeros(videos, recipe.profile.frames, 3, size, size, device=device)


def graph_of(recipe: Recipe) -> onnx.ModelProto:
    """The graph of `export_video` in float32, merges as further outputs, kept in memory: to be counted, not shipped.

    The recipe's tensors may be zeros. Saves the checks of the written file, a third of an export.
    """
    merges = [name for merge in recipe.schedule.merges for name in (merge.assign_name, merge.tokens_name)]
    return to_proto(
        TracedVideo(VideoEncoder(recipe)), video_inputs(recipe, 1, False), ["video_embedding", *merges], DEFAULT_OPSET
    )
