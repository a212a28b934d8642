import dataclasses

import pytest
import torch

from tempme_export.bench.counting import tokens
from tempme_export.bench.counting.products import BlockTokens, tokens_of_schedule
from tempme_export.bench.counting.tokens import (
    check_tokens,
    tokens_of_artifact,
    tokens_of_encoder,
    tokens_of_original,
)
from tempme_export.encoder.model import VideoEncoder
from tempme_export.encoder.reference import ReferenceVideo
from tempme_export.errors import InputError, ParityError


@pytest.mark.parametrize("policy", ["none", "image", "clips", "joined", "no-bias"])
def test_original_and_fast_encoder_have_the_tokens_of_the_schedule(tiny_recipe, frames, policy):
    recipe = tiny_recipe(policy, "cpu")
    expected = tokens_of_schedule(recipe.schedule)
    assert tokens_of_original(ReferenceVideo(recipe), frames(3)) == expected
    assert tokens_of_encoder(VideoEncoder(recipe), frames(3)) == expected
    check_tokens(expected, recipe.schedule, policy)


@pytest.mark.parametrize(("policy", "precision"), [("none", "fp32"), ("clips", "fp32"), ("clips", "int8")])
def test_the_artifact_has_them_as_it_runs(tiny_recipe, artifact, frames, policy, precision):
    found = tokens_of_artifact(artifact(policy, precision), frames(2).numpy())
    assert found == tokens_of_schedule(tiny_recipe(policy).schedule)


def test_tokens_of_the_schedule_by_hand(tiny_recipe):
    """17 - 2 tokens; 2 x 15 - 30 % - 10 %; 2 x 19 - 30 % - 10 %, each rounded down."""
    assert tokens_of_schedule(tiny_recipe("clips").schedule) == BlockTokens((4, 2, 1), (17, 21, 27), (15, 19, 25))


def test_hooks_are_gone_afterwards(tiny_recipe, frames):
    encoder = VideoEncoder(tiny_recipe("clips", "cpu"))
    tokens_of_encoder(encoder, frames(1))
    assert not any(module._forward_pre_hooks for module in encoder.modules())


def test_an_encoder_that_drops_a_token_is_caught(tiny_recipe, frames):
    recipe = tiny_recipe("none", "cpu")

    class Drops(torch.nn.Module):
        def __init__(self, block):
            super().__init__()
            self.attn, self.mlp, self.block = block.attn, block.mlp, [block]

        def forward(self, stream, merges):
            return self.block[0](stream._replace(x=stream.x[:, :-1], delta=stream.delta[:, :-1]), merges)

    encoder = VideoEncoder(recipe)
    encoder.blocks[1] = Drops(encoder.blocks[1])
    found = tokens_of_encoder(encoder, frames(1))
    said = "the encoder does not have .*: block 1: 4 clips, 16 tokens in attention, 16 in the MLP instead of 4, 17, 17"
    with pytest.raises(ParityError, match=f"{said}; block 2"):
        check_tokens(found, recipe.schedule, "the encoder")


def test_an_encoder_that_skips_or_repeats_a_block_is_caught(tiny_recipe, frames):
    recipe = tiny_recipe("none", "cpu")
    skips = VideoEncoder(recipe)
    skips.blocks[1].forward = lambda stream, merges: stream
    with pytest.raises(ParityError, match=r"blocks \[1\] did not run exactly once"):
        tokens_of_encoder(skips, frames(1))
    twice = VideoEncoder(recipe)
    once = twice.blocks[2].forward
    twice.blocks[2].forward = lambda stream, merges: once(once(stream, merges), merges)
    with pytest.raises(ParityError, match=r"blocks \[2\] did not run exactly once"):
        tokens_of_encoder(twice, frames(1))


def test_an_original_that_runs_fewer_blocks_is_caught(tiny_recipe, frames):
    recipe = tiny_recipe("none", "cpu")
    short = ReferenceVideo(recipe)
    short.schedule = dataclasses.replace(short.schedule, blocks=short.schedule.blocks[:-1])
    found = tokens_of_original(short, frames(1))
    with pytest.raises(ParityError, match="the original ran 2 blocks, its schedule has 3"):
        check_tokens(found, recipe.schedule, "the original")


def test_the_artifact_of_another_schedule_is_caught(tiny_recipe, artifact, frames):
    found = tokens_of_artifact(artifact("clips"), frames(1).numpy())
    with pytest.raises(
        ParityError, match=r"block 0: 4 clips, 17 tokens in attention, 15 in the MLP instead of 4, 17, 17"
    ):
        check_tokens(found, tiny_recipe("none").schedule, "video.onnx")


def test_an_artifact_that_mixes_clips_up_is_caught(artifact, frames):
    class Mixing(tokens.OrtRunner):
        def infer(self, inputs):
            found = super().infer(inputs)
            last = list(found)[-1]
            return {**found, last: found[last][:1]}

    with pytest.raises(ParityError, match=r"blocks \[2\] have other clips in the MLP"):
        tokens_of_artifact(artifact("none"), frames(2).numpy(), Mixing)


def test_rows_that_are_no_multiple_of_the_videos_are_caught(artifact, frames):
    class Losing(tokens.OrtRunner):
        def infer(self, inputs):
            return {name: value[:-1] for name, value in super().infer(inputs).items()}

    with pytest.raises(ParityError, match="block 0 has 7 rows for 2 videos"):
        tokens_of_artifact(artifact("none"), frames(2).numpy(), Losing)


def test_an_artifact_without_clips_blocks_is_refused(artifact, frames, monkeypatch):
    real = tokens.count_graph

    def no_attention(path):
        counted = real(path)
        return dataclasses.replace(counted, items=tuple(one for one in counted.items if one.kind != "attention"))

    monkeypatch.setattr(tokens, "count_graph", no_attention)
    with pytest.raises(InputError, match="block 0 has no attention"):
        tokens_of_artifact(artifact("none"), frames(1).numpy())


def test_as_a_json_object():
    assert BlockTokens((2,), (5,), (4,)).to_dict() == {"clips": [2], "attention": [5], "mlp": [4]}
