"""The walk over an encoder's launches against the encoder itself, and the shipped profiles."""

import pytest
import torch

from tempme_export.bench.kernels import shapes
from tempme_export.encoder import ops
from tempme_export.encoder.backbone import open_clip_backbone
from tempme_export.encoder.model import VideoEncoder
from tempme_export.encoder.profile import load_profile, shipped_profiles
from tempme_export.kernels import attention, match, merge

LAUNCHERS = {
    "attention": attention,
    "attention_match": attention,
    "match_clips": match,
    "merge_norm": merge,
    "add_norm": merge,
    "layer_norm": merge,
}


def told(argument):
    """What a launch depends on: shape, strides and dtype of a tensor, a number itself."""
    if isinstance(argument, torch.Tensor):
        return tuple(argument.shape), argument.stride(), argument.dtype
    return argument


def listening(monkeypatch, holder, name, heard):
    original = getattr(holder, name)

    def listen(*arguments):
        heard.append((name, *map(told, arguments)))
        return original(*arguments)

    monkeypatch.setattr(holder, name, listen)


def test_the_walk_launches_what_the_encoder_calls(tiny_recipe, monkeypatch):
    called, walked = [], []
    for name, module in LAUNCHERS.items():
        listening(monkeypatch, ops, name, called)
        listening(monkeypatch, module, name, walked)
    recipe, batch = tiny_recipe, 2
    size = recipe.backbone.image_size
    VideoEncoder(recipe)(torch.randn(batch, recipe.profile.frames, 3, size, size))
    shapes.encoder_launches(recipe.schedule, recipe.backbone.width, batch, torch.float32)
    assert {name for name, *_ in called} == set(LAUNCHERS) - {"attention"}
    assert walked == called


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", shipped_profiles())
def test_every_merge_of_every_shipped_profile_is_launched(name, dtype):
    profile = load_profile(name)
    backbone = open_clip_backbone(profile.backbone)
    schedule, batch = profile.schedule(backbone), profile.batch.opt
    launches = shapes.encoder_launches(schedule, backbone.width, batch, dtype)
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
    backbone = open_clip_backbone(profile.backbone)
    launches = shapes.encoder_launches(
        profile.schedule(backbone), backbone.width, 1, torch.float32, size_bias=False, clip_position=False
    )
    inputs = {(one.variant.name, operand.name) for one in launches for operand in one.inputs}
    assert ("attention_match_kernel", "bias") not in inputs and ("merge_kernel", "position") not in inputs
    assert ("merge_kernel", "size") in inputs
