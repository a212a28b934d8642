"""Outliers moved into weights: not one bit of the tower changes, and its activations are even."""

import copy

import pytest
import torch

from tempme_export.encoder.model import LayerNorm, Linear, Merges, TextEncoder, VideoEncoder
from tempme_export.parity.selftest import draw_token_ids
from tempme_export.quantization.migration import migrate
from tempme_export.quantization.products import ActivationStats, observe


def even(seen):
    """How many times as large as the median channel the largest is."""
    return float(seen.largest.max() / seen.largest.median())


@pytest.fixture(scope="module")
def video(planted_recipe, video_calls):
    """(encoder, the same migrated, what was seen before, what is said to be seen now)."""
    encoder = VideoEncoder(planted_recipe).eval()
    before = observe(encoder, video_calls(planted_recipe))
    migrated = copy.deepcopy(encoder)
    return encoder, migrated, before, migrate(migrated, before)


@pytest.fixture(scope="module")
def text(planted_recipe, calibration_of):
    encoder = TextEncoder(planted_recipe).eval()
    before = observe(encoder, calibration_of(planted_recipe).text_calls())
    migrated = copy.deepcopy(encoder)
    return encoder, migrated, before, migrate(migrated, before)


@torch.inference_mode()
def test_no_bit_of_a_video_changes(video, planted_recipe, all_kinds):
    encoder, migrated, *_ = video
    frames = torch.from_numpy(all_kinds(planted_recipe))
    expected, found = Merges(), Merges()
    embedding = encoder.encode(frames, None, expected)
    assert torch.equal(migrated.encode(frames, None, found), embedding)
    assert len(expected) == len(found) == len(planted_recipe.schedule.merges) > 0
    for (assign, tokens), (other, merged) in zip(expected, found, strict=True):
        assert torch.equal(other, assign) and torch.equal(merged, tokens)


@torch.inference_mode()
def test_no_bit_of_a_text_changes(text, planted_recipe):
    encoder, migrated, *_ = text
    ids = torch.from_numpy(draw_token_ids(planted_recipe, 77))
    assert torch.equal(migrated(ids), encoder(ids))


@pytest.mark.parametrize("tower", ["video", "text"])
def test_outliers_shrink(tower, request):
    *_, before, after = request.getfixturevalue(tower)
    assert before.keys() == after.keys()
    assert max(even(seen) for name, seen in before.items() if "in_proj" in name) > 20, "nothing was planted"
    for name in before:
        if "in_proj" in name or "c_fc" in name:
            assert even(after[name]) < even(before[name]) / 3, name


def test_what_it_returns_is_what_is_seen(video, planted_recipe, video_calls):
    _, migrated, _, said = video
    for name, seen in observe(migrated, video_calls(planted_recipe)).items():
        for found, expected in ((said[name].lowest, seen.lowest), (said[name].highest, seen.highest)):
            assert torch.equal(found, expected), name
        torch.testing.assert_close(said[name].mean, seen.mean, rtol=1e-12, atol=0)


@pytest.mark.parametrize("tower", ["video", "text"])
def test_factors_are_powers_of_two(tower, request):
    encoder, migrated, *_ = request.getfixturevalue(tower)
    moved = 0
    for (name, old), new in zip(encoder.named_modules(), migrated.modules(), strict=True):
        if isinstance(old, LayerNorm | Linear):
            ratio = (new.weight / old.weight)[old.weight != 0]
            mantissa, _ = torch.frexp(ratio)
            assert torch.equal(mantissa, torch.full_like(mantissa, 0.5)), name
            moved += int((ratio != 1).any())
            if name.endswith(("c_proj", "conv1")):
                assert torch.equal(new.weight, old.weight), f"{name}: behind an activation nothing can move"
    assert moved >= 5


def test_weights_carry_what_activations_lost(video):
    encoder, migrated, before, after = video
    for name in before:
        product, new = encoder.get_submodule(name), migrated.get_submodule(name)
        if name.endswith("c_fc") or name == "proj":
            divided = before[name].largest / after[name].largest
            carried = new.weight.abs().amax(dim=0) / product.weight.abs().amax(dim=0)
            torch.testing.assert_close(carried, divided)
            assert float(divided.max()) >= 4


def test_dead_channels_stay_finite(video, planted_recipe, video_calls, all_kinds):
    """A channel that is never seen, and weights that never read one, ask for no factor beyond the limit."""
    encoder = VideoEncoder(planted_recipe).eval()
    encoder.blocks[0].ln_1.weight[3], encoder.blocks[0].ln_1.bias[3] = 0.0, 0.0
    encoder.blocks[0].mlp.c_fc.weight[:, 5] = 0.0
    migrated = copy.deepcopy(encoder)
    after = migrate(migrated, observe(migrated, video_calls(planted_recipe)))
    assert all(isinstance(seen, ActivationStats) and torch.isfinite(seen.largest).all() for seen in after.values())
    frames = torch.from_numpy(all_kinds(planted_recipe)[:2])
    with torch.inference_mode():
        assert torch.equal(migrated(frames), encoder(frames))
    ratio = migrated.blocks[0].ln_2.weight / encoder.blocks[0].ln_2.weight
    assert float(ratio.min()) >= 2.0**-12 and float(ratio.max()) <= 2.0**12
