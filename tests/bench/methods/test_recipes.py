"""One checkpoint under other policies: same weights, other positions, nothing mutated."""

import copy
import dataclasses

import pytest
import torch

from tempme_export.bench.methods.catalogue import METHODS, chosen
from tempme_export.bench.methods.recipes import method_recipe, with_policy
from tempme_export.encoder.checkpoint import CLIP_POSITION
from tempme_export.encoder.model import VideoEncoder
from tempme_export.encoder.profile import Expect
from tempme_export.encoder.recipe import folded_weights, prepare
from tempme_export.encoder.reference import ReferenceVideo
from tempme_export.encoder.schedule import MergePolicy
from tempme_export.errors import ProfileError, UsageError

POSITION = f"visual.transformer.resblocks.{{}}.{CLIP_POSITION}"
EXPORTED = [method.key for method in METHODS if method.exports]


def positions(recipe):
    weights = folded_weights(recipe, "visual.", torch.float32)
    return {name.split(".")[2]: t for name, t in weights.items() if name.endswith("clip_position")}


def test_own_policy_is_the_recipe_itself(deep):
    assert method_recipe(chosen("tempme")[0], deep) is deep


def test_own_policy_under_another_name_is_bitwise_the_same(deep, frames_for):
    again = with_policy(deep, deep.profile.merge, "again")
    assert again.profile.name == "again"
    assert again.checkpoint is deep.checkpoint
    frames = frames_for(deep)
    assert torch.equal(ReferenceVideo(again)(frames), ReferenceVideo(deep)(frames))


def test_positions_of_other_blocks_are_left_out(deep):
    recipe = method_recipe(chosen("tome")[0], deep)
    assert recipe.checkpoint.facts.clip_lengths == ()
    assert not any(CLIP_POSITION in name for name in recipe.checkpoint.tensors)
    assert positions(recipe) == {}


def test_positions_that_fit_stay_and_the_others_are_zeros(deep):
    # block 8 still gets 12 clips; block 9 gets 4 where it was trained with 6
    recipe = method_recipe(chosen("clips-4-1")[0], deep)
    assert recipe.checkpoint.facts.clip_lengths == ((8, 12),)
    found = positions(recipe)
    assert set(found) == {"8", "9"}
    torch.testing.assert_close(found["8"], deep.checkpoint.tensors[POSITION.format(8)][0, :, 0], rtol=0, atol=0)
    assert found["9"].shape == (4, 128)
    assert not found["9"].any()


def test_positions_for_another_number_of_clips_are_zeros(deep):
    # layers 7, 9, 11: block 8 joins 6 clips there, not the 12 it was trained with; block 10 has its 3 again
    recipe = method_recipe(chosen("layers-7-9-11")[0], deep)
    assert recipe.checkpoint.facts.clip_lengths == ((10, 3),)
    found = positions(recipe)
    assert {block: (len(t), bool(t.any())) for block, t in found.items()} == {
        "6": (12, False),
        "8": (6, False),
        "10": (3, True),
    }


def test_prepare_still_refuses_what_with_policy_allows(deep):
    recipe = method_recipe(chosen("clips-4-1")[0], deep)
    with pytest.raises(ProfileError, match="contradict each other"):
        prepare(deep.checkpoint, recipe.profile)


@pytest.mark.parametrize("key", EXPORTED)
def test_weights_are_shared_and_nothing_is_mutated(deep, key):
    before = copy.deepcopy(dict(deep.checkpoint.tensors))
    profile, schedule, facts = deep.profile, deep.schedule, deep.checkpoint.facts
    recipe = method_recipe(chosen(key)[0], deep)
    ReferenceVideo(recipe)
    assert (deep.profile, deep.schedule, deep.checkpoint.facts) == (profile, schedule, facts)
    assert list(deep.checkpoint.tensors) == list(before)
    assert all(torch.equal(deep.checkpoint.tensors[name], tensor) for name, tensor in before.items())
    assert recipe.checkpoint.sha256 == deep.checkpoint.sha256
    assert all(tensor is deep.checkpoint.tensors[name] for name, tensor in recipe.checkpoint.tensors.items())


def test_the_profiles_expectation_does_not_bind_another_policy(deep):
    expecting = dataclasses.replace(deep.profile, expect=Expect(final_tokens=deep.schedule.final_tokens))
    recipe = with_policy(dataclasses.replace(deep, profile=expecting), MergePolicy(0, (), (), 0, 0), "plain")
    assert recipe.schedule.final_tokens == 26
    assert recipe.profile.expect == Expect()
    assert recipe.origin == "asked"


def test_policy_that_does_not_fit_is_refused(deep):
    with pytest.raises(ProfileError, match=r"profile odd.*cannot be joined by 5"):
        with_policy(deep, MergePolicy(0, (3,), (5,), 0, 0), "odd")


def test_recipe_of_evit_merges_nothing(deep):
    recipe = method_recipe(chosen("evit")[0], deep)
    assert not recipe.schedule.merges
    assert recipe.profile.name == "deep-evit"


@pytest.mark.parametrize("key", ["reduction", "diffrate", "sta", "testa"])
def test_what_does_not_run_has_no_recipe(deep, key):
    with pytest.raises(UsageError, match=rf"the paper .*Leave {key} out"):
        method_recipe(chosen(key)[0], deep)


def test_what_does_not_apply_has_no_recipe(shallow):
    with pytest.raises(UsageError, match="12 frames and 12 blocks; profile tiny has 4 frames, checkpoint 4 blocks"):
        method_recipe(chosen("clips-1")[0], shallow)


@pytest.mark.parametrize("key", EXPORTED)
def test_fast_encoder_agrees_with_the_original_path(deep, frames_for, video_rounding, key):
    recipe, frames = method_recipe(chosen(key)[0], deep), frames_for(deep, batch=1, dtype=torch.float64)
    with torch.inference_mode():
        found = VideoEncoder(recipe, torch.float64)(frames)
    limit = video_rounding(recipe.backbone, torch.float64).difference
    torch.testing.assert_close(found, ReferenceVideo(recipe, torch.float64)(frames), rtol=0, atol=limit)
