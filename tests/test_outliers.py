"""Planted outlier channels: where they lie, how large they are, and that the model still is a model."""

import numpy as np
import pytest
import torch

from tempme_export.checkpoint import from_state_dict
from tempme_export.model import TextEncoder
from tempme_export.outliers import CHANNELS, LARGEST, SMALLEST, plant_outliers
from tempme_export.recipe import prepare
from tempme_export.selftest import draw_token_ids

READ, WRITTEN = "transformer.resblocks.0.mlp.c_fc.weight", "transformer.resblocks.0.mlp.c_proj.weight"


@pytest.fixture(scope="module")
def planted(tiny_state_dict):
    return plant_outliers(tiny_state_dict, seed=3)


def factors(before, after):
    """What each channel was multiplied by; one where it was and stayed zero."""
    return np.where(before == 0, 1, after / np.where(before == 0, 1, before))


def test_names_shapes_and_the_original_stay(tiny_state_dict):
    before = {name: tensor.clone() for name, tensor in tiny_state_dict.items()}
    planted = plant_outliers(tiny_state_dict, seed=3)
    assert list(planted) == list(before)
    for name, tensor in before.items():
        assert planted[name].shape == tensor.shape and planted[name].dtype == tensor.dtype
        assert torch.equal(tiny_state_dict[name], tensor), f"{name} was changed in place"


def test_the_seed_decides(tiny_state_dict, planted):
    again, other = (plant_outliers(tiny_state_dict, seed) for seed in (3, 4))
    assert all(torch.equal(planted[name], tensor) for name, tensor in again.items())
    assert not torch.equal(planted["clip.visual.class_embedding"], other["clip.visual.class_embedding"])


@pytest.mark.parametrize("tower", ["clip.visual.", "clip."])
def test_a_few_channels_are_written_large_and_read_small(tiny_state_dict, planted, tower):
    position = f"{tower}positional_embedding"
    scale = factors(tiny_state_dict[position].numpy(), planted[position].numpy())
    np.testing.assert_allclose(scale, np.broadcast_to(scale[:1], scale.shape), rtol=1e-5)
    large = np.flatnonzero(np.abs(scale[0] - 1) > 1e-6)
    assert len(large) == CHANNELS
    assert scale[0][large].min() >= SMALLEST and scale[0][large].max() <= LARGEST
    written = factors(*(state[tower + WRITTEN].numpy() for state in (tiny_state_dict, planted)))
    np.testing.assert_allclose(written, np.broadcast_to(scale[0][:, None], written.shape), rtol=1e-5)
    read = factors(*(state[tower + READ].numpy() for state in (tiny_state_dict, planted)))
    np.testing.assert_allclose(read, np.broadcast_to(1 / scale[0], read.shape), rtol=1e-5)


def test_the_towers_have_channels_of_their_own(tiny_state_dict, planted):
    video, text = (
        set(
            np.flatnonzero(np.abs(factors(tiny_state_dict[name].numpy(), planted[name].numpy())[0] - 1) > 1e-6).tolist()
        )
        for name in ("clip.visual.positional_embedding", "clip.positional_embedding")
    )
    assert video != text


def test_what_touches_no_channel_of_the_stream_stays(tiny_state_dict, planted):
    for name, tensor in tiny_state_dict.items():
        if name.endswith(("logit_scale", "in_proj_bias", "c_fc.bias", "TVPt_LoRA_b")):
            assert torch.equal(planted[name], tensor), name


@torch.inference_mode()
def test_the_model_still_tells_texts_apart(planted, tiny_profile):
    """Not one direction for everything, as outliers that swamp the rest would give."""
    recipe = prepare(from_state_dict(planted, source="planted"), tiny_profile)
    text = TextEncoder(recipe).eval()(torch.from_numpy(draw_token_ids(recipe, 0)[:2]))
    assert torch.isfinite(text).all()
    assert float(text[0] @ text[1]) < 0.999
