"""Planted outlier channels: few, large in every token, and the model still works on what it worked on."""

import pytest
import torch
import torch.nn.functional as F

from tempme_export.encoder.checkpoint import from_state_dict
from tempme_export.encoder.model import Merges, TextEncoder, VideoEncoder
from tempme_export.encoder.recipe import prepare
from tempme_export.parity.selftest import draw_token_ids
from tempme_export.quantization.outliers import CHANNELS, LARGEST, SMALLEST, plant_outliers

TOWERS = ("video", "text")


@pytest.fixture(scope="module")
def planted_state(small_state, small_profile):
    return plant_outliers(small_state, small_profile, seed=3)


def streams(tower, call):
    """What leaves every block, tokens x channels each."""
    found = []
    stages = tower.stages(Merges()) if isinstance(tower, VideoEncoder) else tower.stages(call)
    x = call
    with torch.inference_mode():
        for stage in stages[:-1]:
            x = stage(x)
            total = x if isinstance(x, torch.Tensor) else x.x if x.delta is None else x.x + x.delta
            found.append(total.flatten(0, -2))
    return found


@pytest.fixture(scope="module")
def stream(planted_recipe, all_kinds):
    """tower -> its residual stream on inputs that the planting did not see."""
    frames = torch.from_numpy(all_kinds(planted_recipe)[:1])
    ids = torch.from_numpy(draw_token_ids(planted_recipe, 77))
    return {
        "video": streams(VideoEncoder(planted_recipe).eval(), frames),
        "text": streams(TextEncoder(planted_recipe).eval(), ids),
    }


def large_channels(tokens):
    return tokens.mean(dim=0).abs().topk(CHANNELS).indices


def test_names_shapes_and_the_original_stay(small_state, small_profile):
    before = {name: tensor.clone() for name, tensor in small_state.items()}
    planted = plant_outliers(small_state, small_profile, seed=3)
    assert list(planted) == list(before)
    for name, tensor in before.items():
        assert planted[name].shape == tensor.shape and planted[name].dtype == tensor.dtype
        assert torch.equal(small_state[name], tensor), f"{name} was changed in place"


def test_the_seed_decides(small_state, small_profile, planted_state):
    again, other = (plant_outliers(small_state, small_profile, seed) for seed in (3, 4))
    assert all(torch.equal(planted_state[name], tensor) for name, tensor in again.items())
    assert not torch.equal(planted_state["clip.visual.ln_pre.bias"], other["clip.visual.ln_pre.bias"])


@pytest.mark.parametrize("tower", TOWERS)
def test_a_few_channels_are_large_in_every_token_of_every_block(stream, tower):
    where = large_channels(stream[tower][0])
    for tokens in stream[tower]:
        rest = torch.ones(tokens.shape[1], dtype=torch.bool)
        rest[where] = False
        typical = tokens[:, rest].std(dim=1).mean()
        times = (tokens[:, where] / typical).abs()
        assert float(times.min()) > 0.5 * SMALLEST and float(times.max()) < 1.5 * LARGEST
        assert float((times.std(dim=0) / times.mean(dim=0)).max()) < 0.2, "it does not persist"
        assert float(tokens[:, rest].mean(dim=0).abs().max()) < 0.5 * SMALLEST * float(typical)


def test_the_towers_have_channels_of_their_own(stream):
    video, text = (set(large_channels(stream[tower][0]).tolist()) for tower in TOWERS)
    assert video != text


def test_what_neither_offsets_nor_reads_the_stream_stays(small_state, planted_state):
    changed = ("ln_pre.bias", "out_proj.bias", "c_proj.bias", "in_proj_weight", "TVPt_LoRA_a", "c_fc.weight", ".proj")
    norms = ("ln_1.weight", "ln_1.bias", "ln_2.weight", "ln_2.bias", "ln_post.weight", "ln_post.bias")
    text = ("clip.positional_embedding", "ln_final.weight", "ln_final.bias", "text_projection")
    assert any(name.endswith("TVPt_LoRA_a") for name in small_state)
    for name, tensor in small_state.items():
        assert torch.equal(planted_state[name], tensor) != name.endswith(changed + norms + text), name


@torch.inference_mode()
def test_it_is_no_touchier_than_without(small_state, plain_recipe, small_profile, planted_state):
    """A judge that turns on a last bit of bfloat16 judges nothing."""

    def worst(state, seed=0):
        rounded = dict(state)
        name = "clip.token_embedding.weight"
        rounded[name] = state[name].bfloat16().float()
        before, after = (
            TextEncoder(prepare(from_state_dict(one, source="drawn"), small_profile)).eval()(ids)
            for one in (state, rounded)
        )
        centre = before.mean(dim=0)
        return 1 - float(F.cosine_similarity(before - centre, after - centre, dim=-1).min())

    ids = torch.from_numpy(draw_token_ids(plain_recipe, 0))
    assert worst(planted_state) < 3 * worst(small_state) < 0.01
