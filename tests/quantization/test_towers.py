"""Towers made ready for 8 bits: whose weights they touch, what they compute, and that migration is worth it."""

import json
import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from tempme_export.encoder.model import TextEncoder, VideoEncoder
from tempme_export.errors import CheckpointError
from tempme_export.media.preprocess import preprocess_for
from tempme_export.parity.checks import centred_cosine
from tempme_export.parity.selftest import draw_token_ids
from tempme_export.quantization.build import prepare as quantize
from tempme_export.quantization.embedding import RoundedEmbedding
from tempme_export.quantization.pixels import PIXELS
from tempme_export.quantization.products import Range, observe, products, weight_scales
from tempme_export.quantization.ranges import choose_ranges
from tempme_export.quantization.rounding import Rounded, round_product
from tempme_export.quantization.sensitivity import choose_in_float, embed
from tempme_export.quantization.towers import Steps, prepare_text, prepare_video, round_embedding


def unmigrated(tower, seen):
    return seen


@pytest.mark.parametrize("tower", ["video", "text"])
def test_the_recipe_is_left_alone(planted_recipe, video_calls, calibration_of, tower):
    before = {name: tensor.clone() for name, tensor in planted_recipe.checkpoint.tensors.items()}
    if tower == "video":
        prepare_video(planted_recipe, video_calls(planted_recipe)[:2])
    else:
        prepare_text(planted_recipe, calibration_of(planted_recipe).text_calls())
    for name, tensor in planted_recipe.checkpoint.tensors.items():
        assert torch.equal(tensor, before[name]), name


@torch.inference_mode()
def test_a_prepared_text_tower_looks_up_8_bits(planted_recipe, planted):
    module = planted.text.module
    assert isinstance(module.embedding, RoundedEmbedding)
    ids = torch.from_numpy(draw_token_ids(planted_recipe, 9))
    assert centred_cosine(TextEncoder(planted_recipe).eval()(ids).numpy(), module(ids).numpy()) > 0.99


@torch.inference_mode()
def test_an_embedding_that_costs_too_much_stays(plain_recipe, calibration_of):
    calls = calibration_of(plain_recipe).text_calls()
    tower = prepare_text(plain_recipe, calls, steps=Steps(embedding_limit=-1.0))
    assert tower.in_float == ("embedding",)
    assert torch.equal(tower.module.embedding.weight, TextEncoder(plain_recipe).embedding.weight)


def test_an_embedding_of_which_nothing_can_be_told_stays(plain_recipe, calibration_of):
    calls = calibration_of(plain_recipe).text_calls()
    encoder = TextEncoder(plain_recipe).eval()
    before = encoder.embedding
    expected = torch.full_like(embed(encoder, calls), math.nan)
    assert math.isnan(round_embedding(encoder, calls, expected, limit=1.0).cost)
    assert encoder.embedding is before
    assert round_embedding(encoder, calls, embed(encoder, calls), limit=1.0).cost < 1.0
    assert isinstance(encoder.embedding, RoundedEmbedding)


def test_what_a_text_tower_costs_holds_its_embedding(planted_recipe, calibration_of):
    """The limit is for all that is rounded."""
    steps = Steps(choose=partial(choose_in_float, limit=-1.0))  # every product goes back to float
    tower = prepare_text(planted_recipe, calibration_of(planted_recipe).text_calls(), steps=steps)
    (alone,) = [one.cost for one in tower.sensitivities if one.product == "embedding"]
    assert set(tower.in_float) == set(products(tower.module)) and alone > 1e-5
    assert tower.cost == pytest.approx(alone, rel=1e-3)


@pytest.mark.parametrize("tower", ["video", "text"])
def test_activations_that_overflow_are_refused(plain_recipe, calibration_of, tower):
    """The weights are numbers, and so are these activations; their squares are not."""
    state = {name: tensor.clone() for name, tensor in plain_recipe.checkpoint.tensors.items()}
    state[("visual." if tower == "video" else "") + "transformer.resblocks.1.ln_2.weight"] *= 1e25
    broken = replace(plain_recipe, checkpoint=replace(plain_recipe.checkpoint, tensors=state))
    expected = f"^small, {tower} tower: found an input of blocks.1.mlp.c_fc that is not finite, or not when squared"
    with pytest.raises(CheckpointError, match=expected):
        quantize(broken, calibration_of(plain_recipe))


@pytest.mark.parametrize("method", ["minmax", "percentile"])
def test_dim_clips_do_not_narrow_the_pixels(plain_recipe, video_calls, method):
    """Rounding is lossless for each of 256 values, and no clip need show them all."""
    mean = torch.tensor(plain_recipe.backbone.mean).view(3, 1, 1)
    std = torch.tensor(plain_recipe.backbone.std).view(3, 1, 1)
    dim = [((call * std + mean) / 2 - mean) / std for call in video_calls(plain_recipe)[:2]]
    tower = prepare_video(plain_recipe, dim, method)
    assert tower.ranges["conv1.linear"] == PIXELS == Range(0.0, 1.0)
    assert tower.ranges.keys() == products(tower.module).keys()


@pytest.mark.parametrize("name", ["video", "text"])
def test_what_the_manifest_says(planted, name):
    tower = getattr(planted, name)
    document = json.loads(json.dumps(tower.to_dict()))
    names = set(products(tower.module))
    tried = names | {"embedding"} if name == "text" else names
    assert {one["product"] for one in document["sensitivities"]} == tried and set(document["ranges"]) == names
    costs = [one["cost"] for one in document["sensitivities"]]
    assert costs == sorted(costs, reverse=True)
    assert document["in_float"] == list(tower.in_float) and set(tower.in_float) <= names
    assert document["cost"] <= document["limit"]
    for product, (lowest, highest) in document["ranges"].items():
        assert lowest <= 0 <= highest and Range(lowest, highest) == tower.ranges[product]


def test_only_products_in_8_bits_are_rounded(plain_recipe, calibration_of):
    """One that stays in float keeps its weights, and has nothing to take back."""
    chosen = ("blocks.0.mlp.c_fc", "blocks.1.attn.in_proj")
    calls = calibration_of(plain_recipe).text_calls()
    encoder = TextEncoder(plain_recipe).eval()
    encoder.embedding = RoundedEmbedding(encoder.get_parameter("embedding.weight"))
    seen = observe(encoder, calls)
    tower = prepare_text(plain_recipe, calls, steps=Steps(migrate=unmigrated, choose=lambda *_: (chosen, 0.0)))
    assert tower.in_float == chosen
    for name, product in products(tower.module).items():
        old = products(encoder)[name]
        expected = old if name in chosen else round_product(old, seen[name])
        assert torch.equal(product.weight, expected.weight), name
        assert torch.equal(product.weight, old.weight) is (name in chosen)
        if old.bias is not None:
            assert torch.equal(product.bias, expected.bias), name
            assert torch.equal(product.bias, old.bias) is (name in chosen)


@pytest.mark.parametrize("name", ["video", "text"])
def test_migration_makes_planted_towers_better(
    planted_recipe, planted, video_calls, calibration_of, all_kinds, fake_quantised, name
):
    """Everything in 8 bits, with and without it."""
    steps = Steps(choose=lambda *_: ((), 0.0))
    if name == "video":
        prepare, calls = prepare_video, video_calls(planted_recipe)
        encoder, held_out = VideoEncoder(planted_recipe), torch.from_numpy(all_kinds(planted_recipe)[[0, 2, 5, 6]])
    else:
        prepare, calls = prepare_text, calibration_of(planted_recipe).text_calls()
        encoder, held_out = TextEncoder(planted_recipe), torch.from_numpy(draw_token_ids(planted_recipe, 9))
    with torch.inference_mode():
        expected = encoder.eval()(held_out).numpy()
    with_it = prepare(planted_recipe, calls, steps=steps)
    without = prepare(planted_recipe, calls, steps=replace(steps, migrate=unmigrated))
    found = [fake_quantised(one.module, one.ranges, (), held_out).numpy() for one in (with_it, without)]
    mean = expected.mean(axis=0)

    def losses(embedding):
        a, b = expected - mean, embedding - mean
        return 1 - (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)

    assert np.median(losses(found[0])) < 0.5 * np.median(losses(found[1]))
    assert np.median(losses(found[0])) < 0.02


@torch.inference_mode()
def test_a_trained_tower_rounded_for_what_it_returns_is_nearer(mini_recipe, mini, scenes):
    """Than one whose weights take their nearest steps, on clips that nobody rounded for."""

    def nearest(product, seen):
        scale = weight_scales(product.weight).unsqueeze(-1)
        weight = (product.weight / scale).round() * scale
        bias = None if product.bias is None else (product.bias + (product.weight - weight).double() @ seen.mean).float()
        return Rounded(weight, bias)

    preprocess = preprocess_for(mini_recipe)
    calls = [torch.from_numpy(preprocess(clip)).unsqueeze(0) for clip in scenes(8, 0)]
    other = prepare_video(mini_recipe, calls, steps=Steps(round=nearest))
    assert mini.video.in_float == other.in_float == ()
    held_out = torch.from_numpy(np.stack([preprocess(clip) for clip in scenes(21, 300)]))
    expected = VideoEncoder(mini_recipe).eval()(held_out)

    def loss(module):
        return float((1 - torch.cosine_similarity(module(held_out), expected)).median())  # some decisions turn

    assert loss(mini.video.module) < 0.5 * loss(other.module)


def test_ranges_are_those_of_the_migrated_tower(planted, planted_recipe, video_calls):
    calls = video_calls(planted_recipe)
    encoder = VideoEncoder(planted_recipe).eval()
    before = choose_ranges(encoder, observe(encoder, calls), calls, "minmax")
    widths = {name: one.highest - one.lowest for name, one in before.items()}
    found = planted.video.ranges["blocks.0.attn.in_proj"]
    assert found.highest - found.lowest < widths["blocks.0.attn.in_proj"] / 2
