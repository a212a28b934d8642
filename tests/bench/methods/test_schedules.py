"""Schedules that are no merge policy."""

import dataclasses
import itertools
import math

import pytest

from tempme_export.bench.methods.schedules import evit_schedule, within_frames
from tempme_export.encoder.backbone import open_clip_backbone
from tempme_export.encoder.complexity import complexity
from tempme_export.encoder.profile import load_profile

B32 = open_clip_backbone("ViT-B-32-quickgelu")


def test_evit_keeps_seventy_percent_of_the_patches_and_one_fused_token():
    schedule = evit_schedule(12, B32)
    assert [block.tokens_attention for block in schedule.blocks] == [50] * 4 + [37] * 3 + [28] * 3 + [21] * 2
    assert [block.r_intra for block in schedule.blocks] == [0] * 3 + [13] + [0] * 2 + [9] + [0] * 2 + [7] + [0] * 2
    assert all((block.clips, block.n_cls, block.factor, block.r_cross) == (12, 1, 1, 0) for block in schedule.blocks)


@pytest.mark.parametrize("grid", range(1, 15))
@pytest.mark.parametrize("keep", [0.3, 0.7, 0.99, 1.0])
def test_evit_never_adds_a_token(grid, keep):
    backbone = dataclasses.replace(B32, image_size=grid * B32.patch)
    schedule = evit_schedule(2, backbone, keep)
    for block in schedule.blocks:
        patches = block.tokens_attention - 1
        left_over = patches - math.ceil(keep * patches)
        fuses = block.index in (3, 6, 9) and left_over > 1
        assert block.tokens_mlp == (math.ceil(keep * patches) + 2 if fuses else block.tokens_attention)
    assert all(a.tokens_mlp == b.tokens_in for a, b in itertools.pairwise(schedule.blocks))


def test_keeping_everything_fuses_nothing():
    assert all(block.r_intra == 0 for block in evit_schedule(12, B32, 1.0).blocks)


def test_within_frames_charges_each_frame_its_share_of_the_attention():
    schedule = load_profile("vit-b-32-12f").schedule(B32)
    full, within = complexity(schedule, B32), within_frames(schedule, B32)
    expected = sum(2 * b.clips * (b.tokens_attention**2 // b.n_cls) * B32.width for b in schedule.blocks)
    assert within.attention_products == expected < full.attention_products
    assert within.mlp == full.mlp
    assert within.attention_projections == full.attention_projections


def test_within_frames_is_the_full_count_where_no_clips_are_joined():
    schedule = load_profile("vit-b-32-12f-tome").schedule(B32)
    assert within_frames(schedule, B32) == complexity(schedule, B32)
