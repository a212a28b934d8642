"""The differentiable encoder equals the reference, trains what it should and writes checkpoints that load."""

import dataclasses
import functools

import pytest
import torch

from tempme_export.encoder.backbone import open_clip_backbone
from tempme_export.encoder.checkpoint import from_state_dict
from tempme_export.encoder.model import TextEncoder, VideoEncoder
from tempme_export.encoder.profile import Expect, load_profile
from tempme_export.encoder.random_weights import facts_of
from tempme_export.encoder.recipe import prepare
from tempme_export.encoder.reference import ReferenceText, ReferenceVideo
from tempme_export.errors import CheckpointError
from tempme_export.kernels.reference import match_tokens_ref, merge_tokens_ref
from tempme_export.pipeline.export import export
from tempme_export.training.encoder import TUNES, Stream, TrainableModel, VideoBlock
from tempme_export.training.init import draw_clip


@pytest.fixture(scope="module")
def recipe():
    """The small backbone from scratch, all in small: 8 frames of 64 pixels."""
    profile = load_profile("mini-8f")
    return prepare(draw_clip(open_clip_backbone(profile.backbone), seed=3), profile)


@pytest.fixture(scope="module")
def close(rounding, recipe):
    """Asserts that embeddings are alike but for the order of float32's additions, by the larger tower."""
    backbone = recipe.backbone
    limits = rounding(
        torch.float32, max(backbone.layers, backbone.text_layers), max(backbone.width, backbone.text_width)
    )
    return functools.partial(torch.testing.assert_close, rtol=0, atol=limits.difference)


@pytest.fixture(scope="module")
def inputs():
    torch.manual_seed(11)
    token_ids = torch.zeros(3, 24, dtype=torch.long)
    for row, words in enumerate((1, 9, 22)):
        token_ids[row, 0], token_ids[row, words + 1] = 49406, 49407
        token_ids[row, 1 : words + 1] = torch.randint(1, 1000, (words,))
    return torch.randn(3, 8, 3, 64, 64), token_ids


def away_from_the_start(model):
    """Additions begin at zero, where they change nothing; put them somewhere else."""
    torch.manual_seed(5)
    for name, parameter in model.named_parameters():
        if any(word in name for word in ("LoRA", "Video_Pos", "adapter", "prompt")):
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def reloaded(model, recipe):
    return prepare(from_state_dict(model.state(), "trained"), recipe.profile)


@pytest.mark.parametrize("tune", TUNES)
def test_equals_the_reference(recipe, inputs, close, tune):
    model = away_from_the_start(TrainableModel(recipe, tune))
    trained = reloaded(model, recipe)
    with torch.no_grad():
        video, text = model(*inputs)
    close(video, ReferenceVideo(trained)(inputs[0]))
    close(text, ReferenceText(trained)(inputs[1]))


@pytest.mark.parametrize("tune", ["lora", "adapter", "full"])
def test_the_exported_encoder_is_the_trained_one(recipe, inputs, close, tune):
    """Folding LoRA changes nothing, and the adapter is part of the graph."""
    model = away_from_the_start(TrainableModel(recipe, tune))
    trained = reloaded(model, recipe)
    with torch.no_grad():
        video, text = model(*inputs)
        close(video, VideoEncoder(trained)(inputs[0]))
        close(text, TextEncoder(trained)(inputs[1]))


def test_prompts_are_refused_by_name(recipe, tmp_path, recording):
    told = recording()
    trained = reloaded(TrainableModel(recipe, "prompt"), recipe)
    for tower in (VideoEncoder, TextEncoder):
        with pytest.raises(CheckpointError, match=r"5 prompt tokens in each block.*--tune lora"):
            tower(trained)
    with pytest.raises(CheckpointError, match="5 prompt tokens in each block"):
        export(trained.checkpoint, trained.profile, tmp_path / "out.tempme", progress=told)
    assert told.facts == [] and list(tmp_path.iterdir()) == [], "before any work"


@pytest.mark.parametrize("tune", ["lora", "adapter"])
def test_begins_as_the_checkpoint(recipe, inputs, close, tune):
    with torch.no_grad():
        video, text = TrainableModel(recipe, tune)(*inputs)
    close(video, ReferenceVideo(recipe)(inputs[0]))
    close(text, ReferenceText(recipe)(inputs[1]))


def test_without_the_size_term_and_positions(recipe, inputs, close):
    merge = dataclasses.replace(recipe.profile.merge, size_bias=False, clip_position=False, cross_percent=0)
    profile = dataclasses.replace(recipe.profile, backbone="checkpoint", merge=merge, expect=Expect())
    other = prepare(recipe.checkpoint, profile)
    with torch.no_grad():
        video = TrainableModel(other, "full").video(inputs[0])
    close(video, ReferenceVideo(other)(inputs[0]))


@pytest.mark.parametrize("tune", TUNES)
def test_only_what_is_tuned_trains(recipe, inputs, tune):
    model = away_from_the_start(TrainableModel(recipe, tune))
    video, text = model(*inputs)
    (video * text).sum().backward()
    words = {"lora": "LoRA", "adapter": "adapter", "prompt": "prompt", "full": ""}[tune]
    for name, parameter in model.named_parameters():
        trains = name != "logit_scale" and (words in name or "Video_Positional" in name)
        assert parameter.requires_grad == trains, name
        if trains:
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, f"{name} gets no gradient"


@pytest.mark.parametrize("tune", TUNES)
def test_the_temperature_trains_where_asked(recipe, tune):
    model = TrainableModel(recipe, tune, train_temperature=True)
    assert model.logit_scale.requires_grad
    kept = TrainableModel(recipe, tune).counts()
    assert model.counts() == {**kept, "temperature": 1} and "temperature" not in kept


class ReferenceBlock(VideoBlock):
    """With the reference's gather-and-scatter merge in place of the products."""

    def _merge(self, stream, metric, r):
        x, size = stream
        if r == 0:
            return stream
        assign = match_tokens_ref(metric.detach(), self.block.n_cls, r)
        size = torch.ones(x.shape[:2]) if size is None else size
        return Stream(*merge_tokens_ref(x, size, assign, x.shape[1] - r))


def test_gradients_are_the_reference_merge_s(recipe, inputs, rounding, safe_embedding):
    """There and back is twice as deep as there."""
    safe_embedding(reloaded(away_from_the_start(TrainableModel(recipe, "lora")), recipe), inputs[0])

    def gradients(kind=VideoBlock):
        model = away_from_the_start(TrainableModel(recipe, "lora"))
        for block in model.visual.transformer.resblocks:
            block.__class__ = kind
        model.video(inputs[0])[:, :7].sum().backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    found, expected = gradients(), gradients(ReferenceBlock)
    assert found.keys() == expected.keys() and found
    limits = rounding(torch.float32, 2 * recipe.backbone.layers, recipe.backbone.width)
    limit = limits.difference * max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=limit, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize(
    "tune, counts",
    [
        ("lora", {"lora": 491_520, "clip positions": 16_128}),
        ("adapter", {"adapters": 261_312, "clip positions": 16_128}),
        ("prompt", {"prompts": 76_800, "clip positions": 16_128}),
    ],
)
def test_parameter_counts_of_the_paper(tune, counts):
    """Table 13, ViT-B/32: 0.49, 0.26 and 0.08 M, and 0.01 M of clip positions."""
    backbone = dataclasses.replace(open_clip_backbone("ViT-B-32-quickgelu"), vocab=16, name="b32")
    profile = dataclasses.replace(load_profile("vit-b-32-12f"), backbone="checkpoint")
    assert TrainableModel(prepare(draw_clip(backbone, 0), profile), tune).counts() == counts


def test_lora_of_a_checkpoint_goes_on_or_is_folded(recipe, inputs, close):
    trained = reloaded(away_from_the_start(TrainableModel(recipe, "lora", rank=3)), recipe)
    expected = ReferenceVideo(trained)(inputs[0])
    for tune, rank in (("lora", 3), ("full", 8)):
        with torch.no_grad():
            close(TrainableModel(trained, tune, rank).video(inputs[0]), expected)
    with pytest.raises(CheckpointError, match="LoRA of rank 3, asked for was 8"):
        TrainableModel(trained, "lora", rank=8)


def test_adapters_of_another_width(recipe):
    trained = reloaded(TrainableModel(recipe, "adapter", rank=4), recipe)
    with pytest.raises(CheckpointError, match="adapters of inner width 4, asked for was 8"):
        TrainableModel(trained, "adapter", rank=8)
    with pytest.raises(CheckpointError, match="asked for was a training without"):
        TrainableModel(trained, "lora")
    assert "adapters" not in TrainableModel(recipe, "full").counts()
    assert TrainableModel(trained, "full").counts()["adapters"] > 0


def test_the_same_seed_draws_the_same(recipe):
    one, same, other = (TrainableModel(recipe, "lora", seed=seed).state() for seed in (1, 1, 2))
    name = "clip.visual.transformer.resblocks.0.attn.TVPt_LoRA_a"
    assert torch.equal(one[name], same[name]) and not torch.equal(one[name], other[name])


def test_clip_positions_are_drawn_for_a_profile():
    """From scratch they are; on a trained CLIP they begin at zero, where they change nothing."""
    profile, backbone = load_profile("mini-8f"), open_clip_backbone("tempme-mini")
    drawn = draw_clip(backbone, 0, profile)
    assert drawn.facts.clip_lengths == ((1, 8), (2, 4)) and drawn.facts == facts_of(backbone, profile)
    name = "visual.transformer.resblocks.1.TVPt_Video_Positional_embedding"
    state = TrainableModel(prepare(drawn, profile), "full").state()
    assert torch.equal(state[f"clip.{name}"], drawn.tensors[name]) and drawn.tensors[name].std() > 0.5
    plain = TrainableModel(prepare(draw_clip(backbone, 0), profile), "full").state()
    assert not plain[f"clip.{name}"].any()


def test_drawn_clip_is_a_plain_clip_of_its_backbone():
    backbone = open_clip_backbone("tempme-mini")
    one, same, other = draw_clip(backbone, 0), draw_clip(backbone, 0), draw_clip(backbone, 1)
    assert one.facts == facts_of(backbone) and one.facts.is_plain_clip and one.activation == "quickgelu"
    assert one.sha256 == same.sha256 != other.sha256
    for name, tensor in one.tensors.items():
        is_zero = name.endswith("bias")
        assert bool((tensor == 0).all()) == is_zero, name
