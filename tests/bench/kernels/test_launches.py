"""Launches of an encoder that is run on shapes alone, against its schedule and the shipped profiles."""

import dataclasses

import pytest
import torch

from tempme_export.bench.counting.shapes import shape_frames, shape_recipe
from tempme_export.bench.kernels.calls import fused_calls
from tempme_export.bench.kernels.resources import encoder_launches
from tempme_export.encoder.backbone import open_clip_backbone
from tempme_export.encoder.model import VideoEncoder
from tempme_export.encoder.profile import load_profile, shipped_profiles


def told(argument):
    """What a launch depends on: shape, strides and dtype of a tensor, a number itself."""
    if isinstance(argument, torch.Tensor):
        return tuple(argument.shape), argument.stride(), argument.dtype
    return argument


def test_shapes_alone_call_what_values_do():
    profile = load_profile("mini-8f")
    backbone = open_clip_backbone(profile.backbone)
    heard = []
    for device in ("meta", "cpu"):
        recipe = shape_recipe(profile, backbone, device=device)
        calls = fused_calls(VideoEncoder(recipe), shape_frames(recipe, 2, device))
        heard.append([(call.name, *map(told, call.inputs)) for call in calls])
    assert heard[0] == heard[1]
    assert {name for name, *_ in heard[0]} >= {"attention_match", "match_clips", "merge_norm", "add_norm", "layer_norm"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", shipped_profiles())
def test_every_merge_of_every_shipped_profile_is_launched(name, dtype):
    profile = load_profile(name)
    backbone = open_clip_backbone(profile.backbone)
    schedule, batch = profile.schedule(backbone), profile.batch.opt
    launches = encoder_launches(profile, dtype)
    merged = [one.outputs[0].shape for one in launches if one.variant.name == "merge_kernel"]
    expected = []
    for block in schedule.blocks:
        if block.r_cross:
            expected.append((batch * block.clips, block.tokens_attention, backbone.width))
        if block.r_intra:
            expected.append((batch * block.clips, block.tokens_mlp, backbone.width))
    assert merged == expected
    assert sum(one.variant.name.startswith("attention") for one in launches) == backbone.layers


def test_without_size_bias_and_positions_they_are_compiled_out():
    profile = load_profile("vit-b-32-12f")
    merge = dataclasses.replace(profile.merge, size_bias=False, clip_position=False)
    launches = encoder_launches(dataclasses.replace(profile, merge=merge), torch.float32)
    inputs = {(one.variant.name, operand.name) for one in launches for operand in one.inputs}
    assert ("attention_match_kernel", "bias") not in inputs and ("merge_kernel", "position") not in inputs
    assert ("merge_kernel", "size") in inputs
