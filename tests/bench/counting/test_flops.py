"""The reference of these tests is the formula of spec section 9, which counts nothing that runs."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tempme_export.bench.counting.claims import PromptedVideo
from tempme_export.bench.counting.flops import count_eager
from tempme_export.bench.counting.products import check_tokens, parts_of, tokens_of_schedule
from tempme_export.bench.counting.shapes import shape_frames
from tempme_export.encoder.complexity import complexity
from tempme_export.encoder.model import VideoEncoder
from tempme_export.encoder.reference import ReferenceVideo
from tempme_export.errors import InputError, ParityError, ProfileError
from tempme_export.kernels.reference import match_tokens_ref, split_ab


def without_merging(parts):
    return dataclasses.replace(parts, merging=0)


def original(recipe, device="meta"):
    return ReferenceVideo(recipe, device=device)


@pytest.mark.parametrize("build", [original, VideoEncoder], ids=["original", "fast"])
@pytest.mark.parametrize(
    ("policy", "videos"), [("none", 3), ("image", 1), ("clips", 1), ("clips", 3), ("joined", 1), ("no-bias", 1)]
)
def test_eager_is_the_formula(tiny_recipe, policy, build, videos):
    recipe = tiny_recipe(policy)
    counted = count_eager(build(recipe), shape_frames(recipe, videos))
    width = recipe.backbone.width
    assert without_merging(counted.parts(width)) == parts_of(complexity(recipe.schedule, recipe.backbone))
    assert counted.tokens(width) == tokens_of_schedule(recipe.schedule)
    assert (counted.parts(width).merging > 0) == bool(recipe.schedule.merges)


@pytest.mark.parametrize("build", [original, VideoEncoder], ids=["original", "fast"])
def test_gelu_is_counted_alike(tiny_recipe, build):
    recipe = tiny_recipe("clips", activation="gelu")
    counted = count_eager(build(recipe), shape_frames(recipe)).parts(recipe.backbone.width)
    assert without_merging(counted) == parts_of(complexity(recipe.schedule, recipe.backbone))


def test_meta_counts_what_the_processor_runs(tiny_recipe, frames):
    shapes, real = tiny_recipe("clips"), tiny_recipe("clips", "cpu")
    on_meta = count_eager(original(shapes), shape_frames(shapes, 2))
    assert on_meta == count_eager(original(real, "cpu"), frames(2))
    assert count_eager(VideoEncoder(shapes), shape_frames(shapes, 2)) == count_eager(VideoEncoder(real), frames(2))


def test_merging_of_the_original_path_is_its_scores(tiny_recipe):
    recipe = tiny_recipe("clips")
    counted = count_eager(original(recipe), shape_frames(recipe)).parts(recipe.backbone.width)
    expected = 0
    for merge in recipe.schedule.merges:
        block = recipe.schedule.blocks[merge.block]
        tokens = block.tokens_in * block.factor if merge.kind == "cross" else block.tokens_attention
        channels = recipe.backbone.width if merge.kind == "cross" else 64
        a, b = split_ab(tokens, merge.n_cls)
        expected += block.clips * len(a) * len(b) * channels
    assert counted.merging == expected > 0


def test_matching_on_meta_has_the_shape_of_an_assignment():
    class Matching(nn.Module):
        def forward(self, metric):
            self.assign = match_tokens_ref(metric, 3, 4)
            return self.assign

    module = Matching()
    counted = count_eager(module, torch.zeros(2, 18, 8, device="meta"))
    assert module.assign.shape == (2, 18) and module.assign.is_meta and module.assign.dtype == torch.int32
    a, b = split_ab(18, 3)
    assert [one.macs for one in counted.items] == [2 * len(a) * len(b) * 8]


def test_a_skipped_block_and_one_that_runs_twice_are_no_schedule(tiny_recipe):
    recipe = tiny_recipe("none")
    for blocks in ((0, 2), (0, 1, 2, 2)):
        other = VideoEncoder(recipe)
        other.blocks = nn.ModuleList(other.blocks[i] for i in blocks)
        found = count_eager(other, shape_frames(recipe)).tokens(recipe.backbone.width)
        with pytest.raises(ParityError, match=f"the encoder ran {len(blocks)} blocks, its schedule has 3"):
            check_tokens(found, recipe.schedule, "the encoder")


def test_a_dropped_block_a_doubled_mlp_and_a_dropped_token_are_seen(tiny_recipe):
    recipe = tiny_recipe("none")
    width, formula = recipe.backbone.width, parts_of(complexity(recipe.schedule, recipe.backbone))

    short = original(recipe)
    short.schedule = dataclasses.replace(short.schedule, blocks=short.schedule.blocks[:-1])
    counted = count_eager(short, shape_frames(recipe))
    assert counted.parts(width).mlp == formula.mlp * 2 // 3
    assert counted.tokens(width) != tokens_of_schedule(recipe.schedule)

    class Twice(nn.Module):
        def __init__(self, mlp):
            super().__init__()
            self.mlp = mlp

        def forward(self, h):
            return self.mlp(self.mlp(h))

    double = VideoEncoder(recipe)
    double.blocks[1].mlp = Twice(double.blocks[1].mlp)
    assert count_eager(double, shape_frames(recipe)).parts(width).mlp == formula.mlp * 4 // 3

    class Fewer(nn.Module):
        def __init__(self, block):
            super().__init__()
            self.block = block

        def forward(self, stream, merges):
            return self.block(stream._replace(x=stream.x[:, :-1], delta=stream.delta[:, :-1]), merges)

    fewer = VideoEncoder(recipe)
    fewer.blocks[2] = Fewer(fewer.blocks[2])
    counted = count_eager(fewer, shape_frames(recipe))
    assert counted.tokens(width).attention == (17, 17, 16)
    assert counted.parts(width).attention_products < formula.attention_products


def test_prompts_as_tokens_go_through_every_product(tiny_recipe):
    recipe = tiny_recipe("none")
    blocks = tuple(
        dataclasses.replace(block, tokens_attention=block.tokens_attention + 3, tokens_mlp=block.tokens_mlp + 3)
        for block in recipe.schedule.blocks
    )
    schedule = dataclasses.replace(recipe.schedule, blocks=blocks)
    counted = count_eager(PromptedVideo(recipe, 3, "meta"), shape_frames(recipe))
    assert counted.parts(recipe.backbone.width) == parts_of(complexity(schedule, recipe.backbone))


def test_prompted_video_returns_the_plain_tokens_and_refuses_to_merge(tiny_recipe, frames):
    recipe = tiny_recipe("none", "cpu")
    assert torch.equal(PromptedVideo(recipe, 0)(frames(1)), ReferenceVideo(recipe)(frames(1)))
    assert PromptedVideo(recipe, 2)(frames(2)).shape == (2, recipe.backbone.embed)
    with pytest.raises(ProfileError, match="profile image merges"):
        PromptedVideo(tiny_recipe("image"), 2, "meta")


class Calls(nn.Module):
    """A module that is one function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


def chooses(x):
    return x @ x.transpose(-1, -2)


def test_products_of_a_named_function_are_merging():
    module, x = Calls(lambda x: chooses(x) @ x), torch.zeros(2, 5, 3, device="meta")
    assert [one.kind for one in count_eager(module, x, merging=(chooses,)).items] == ["merging", "attention"]
    assert [one.kind for one in count_eager(module, x).items] == ["attention", "attention"]


def test_a_convolution_counts_its_places_and_its_groups():
    weight = torch.zeros(6, 2, 3, 3, device="meta")
    module = Calls(lambda x: F.conv2d(x, weight, stride=2, groups=2))
    (only,) = count_eager(module, torch.zeros(2, 4, 9, 9, device="meta")).items
    assert only.macs == 2 * 4 * 4 * 6 * 2 * 9


@torch.library.custom_op("tempme_test::hides", mutates_args=())
def hides(x: torch.Tensor) -> torch.Tensor:
    return x @ x


hides.register_fake(torch.empty_like)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (hides, "hides its products"),
        (lambda x: x @ x[0], "part by part"),
        (lambda x: F.scaled_dot_product_attention(x[None, None], x[None, None], x[None, None]), "part by part"),
    ],
    ids=["operator", "vector", "fused attention"],
)
def test_what_cannot_be_read_is_refused(function, said):
    with pytest.raises(InputError, match=said):
        count_eager(Calls(function), torch.zeros(4, 4))


class OffByOne(FlopCounterMode):
    def get_total_flops(self):
        return super().get_total_flops() - 1


def test_torchs_counter_has_the_last_word():
    with pytest.raises(ParityError, match="add up to 128 operations, torch's counter says 127"):
        count_eager(Calls(lambda x: x @ x), torch.zeros(4, 4), torchs=OffByOne)
