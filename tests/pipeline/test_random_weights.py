"""Random weights: the layout of the original, the same for the same seed, of the scale they claim."""

import dataclasses

import pytest
import torch

from tempme_export.encoder.backbone import open_clip_backbone
from tempme_export.encoder.checkpoint import Checkpoint, from_state_dict
from tempme_export.encoder.profile import load_profile
from tempme_export.encoder.random_weights import LOGIT_SCALE, LORA_RANK, draw_checkpoint, draw_state_dict
from tempme_export.encoder.recipe import Recipe
from tempme_export.encoder.reference import MergeLog, ReferenceVideo
from tempme_export.errors import ProfileError

MINI = open_clip_backbone("tempme-mini")


@pytest.fixture
def profile(small_profile):
    """A profile whose backbone is MINI."""
    return dataclasses.replace(load_profile(small_profile), backbone=MINI.name)


def test_layout_is_the_originals(profile):
    state = draw_state_dict(profile, seed=1)
    assert all(name.startswith("clip.") for name in state)
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    facts = from_state_dict(state, source="drawn").facts
    for size in ("image_size", "patch", "width", "layers", "embed", "text_width", "text_layers", "context", "vocab"):
        assert getattr(facts, size) == getattr(MINI, size)
    assert facts.lora_rank == LORA_RANK == 8
    assert facts.clip_lengths == ((1, 4), (2, 2))


def test_without_clip_positions_there_are_none(profile):
    merge = dataclasses.replace(profile.merge, clip_position=False)
    state = draw_state_dict(dataclasses.replace(profile, merge=merge), seed=1)
    assert from_state_dict(state, source="drawn").facts.clip_lengths == ()


def test_follows_its_seed(profile):
    first, again, other = (draw_state_dict(profile, seed) for seed in (1, 1, 2))
    assert first.keys() == again.keys() == other.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, again[name])
        assert name == "clip.logit_scale" or not torch.equal(tensor, other[name])


def test_does_not_touch_the_global_generator(profile):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    draw_state_dict(profile, seed=1)
    assert torch.equal(torch.rand(4), expected)


STDS = {
    "visual.transformer.resblocks.1.attn.in_proj_weight": 1.3 * MINI.width**-0.5,
    "visual.transformer.resblocks.1.attn.in_proj_bias": 0.05,
    "visual.transformer.resblocks.0.attn.out_proj.weight": 0.4 * MINI.width**-0.5,
    "visual.transformer.resblocks.0.attn.TVPt_LoRA_a": MINI.width**-0.5,
    "visual.transformer.resblocks.0.attn.TVPt_LoRA_b": 0.15,
    "visual.transformer.resblocks.1.TVPt_Video_Positional_embedding": 0.1,
    "visual.transformer.resblocks.2.mlp.c_fc.weight": 0.7 * MINI.width**-0.5,
    "visual.transformer.resblocks.2.mlp.c_proj.weight": 0.4 * (4 * MINI.width) ** -0.5,
    "visual.conv1.weight": 0.6 * (3 * MINI.patch**2) ** -0.5,
    "visual.positional_embedding": 0.3,
    "visual.proj": MINI.width**-0.5,
    "transformer.resblocks.1.attn.in_proj_weight": 1.3 * MINI.text_width**-0.5,
    "positional_embedding": 0.01,
    "token_embedding.weight": 0.02,
    "text_projection": MINI.text_width**-0.5,
}


def test_scales(profile):
    """Within four standard errors, std / sqrt(2 n), of what each kind of tensor is drawn with."""
    state = draw_state_dict(profile, seed=1)
    assert float(state["clip.logit_scale"]) == pytest.approx(LOGIT_SCALE)
    for name, std in STDS.items():
        tensor = state[f"clip.{name}"]
        error = 4 / (2 * tensor.numel()) ** 0.5
        assert float(tensor.std()) == pytest.approx(std, rel=error), name
        assert abs(float(tensor.mean())) < 4 * std / tensor.numel() ** 0.5, name
    for norm in ("visual.ln_pre", "visual.transformer.resblocks.0.ln_1", "ln_final"):
        assert float(state[f"clip.{norm}.weight"].mean()) == pytest.approx(1, abs=4 * 0.1 / MINI.width**0.5)
        assert float(state[f"clip.{norm}.bias"].mean()) == pytest.approx(0, abs=4 * 0.05 / MINI.width**0.5)


def test_checkpoint_names_its_seed_and_runs(profile):
    checkpoint = draw_checkpoint(profile, seed=5)
    assert isinstance(checkpoint, Checkpoint) and checkpoint.source == "random weights (seed 5)"
    recipe = Recipe(checkpoint, profile, MINI, profile.schedule(MINI))
    log = MergeLog()
    frames = torch.randn(1, 4, 3, MINI.image_size, MINI.image_size, generator=torch.Generator().manual_seed(1))
    embedding = ReferenceVideo(recipe).video_feature(frames, log=log)
    assert embedding.isfinite().all() and len(log.steps) == len(recipe.schedule.merges) == 6
    assert max(float(tokens.abs().max()) for tokens in log.tokens) < 100


def test_profile_without_sizes_is_refused(small_profile):
    with pytest.raises(ProfileError, match="profile small takes its sizes from a checkpoint"):
        draw_checkpoint(load_profile(small_profile), seed=1)
