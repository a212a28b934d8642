"""One checkpoint under other merge policies than its own."""

import dataclasses

from tempme_export.bench.methods.catalogue import Method, without_clips
from tempme_export.bench.methods.derive import derive
from tempme_export.encoder.checkpoint import CLIP_POSITION, Checkpoint
from tempme_export.encoder.profile import Expect
from tempme_export.encoder.recipe import Recipe
from tempme_export.encoder.schedule import MergePolicy, Schedule
from tempme_export.errors import UsageError


def with_policy(recipe: Recipe, merge: MergePolicy, name: str) -> Recipe:
    """The same weights under another merge policy, as a profile called `name`; `recipe` stays as it is.

    `recipe.prepare` refuses a checkpoint whose clip positions deny the policy, and rightly: the model was not
    trained so. This is the deliberate way around it, for costs. Clip positions of other blocks, or for another
    number of clips, are left out, and where the policy asks for some, zeros stand in. That costs the same; the
    accuracy is another than that of a model trained with the policy.
    Raises ProfileError where the policy does not fit the backbone.
    """
    profile = dataclasses.replace(recipe.profile, name=name, merge=merge, expect=Expect())
    schedule = profile.schedule(recipe.backbone)
    return dataclasses.replace(
        recipe, checkpoint=_fitting(recipe.checkpoint, schedule), profile=profile, schedule=schedule, origin="asked"
    )


def _fitting(checkpoint: Checkpoint, schedule: Schedule) -> Checkpoint:
    """The checkpoint without the clip positions that the schedule has no place for; its tensors are shared."""
    places = {(block.index, block.clips_in) for block in schedule.blocks if block.factor > 1}
    odd = {place for place in checkpoint.facts.clip_lengths if place not in places}
    if not odd:
        return checkpoint
    dropped = {f"visual.transformer.resblocks.{layer}.{CLIP_POSITION}" for layer, _ in odd}
    kept = tuple(place for place in checkpoint.facts.clip_lengths if place not in odd)
    return dataclasses.replace(
        checkpoint,
        tensors={name: tensor for name, tensor in checkpoint.tensors.items() if name not in dropped},
        facts=dataclasses.replace(checkpoint.facts, clip_lengths=kept),
    )


def method_recipe(method: Method, recipe: Recipe) -> Recipe:
    """The recipe's weights under a method; the recipe itself where the method is what it was made for.

    For a method that is no merge policy (`method.exports` is false), the weights with nothing merged: only its
    encoder (`encoders.encoder`) knows what it merges.
    Raises UsageError, with the method's reason, where it does not run on the recipe's profile.
    """
    derived = derive(method, recipe.profile, recipe.backbone)
    if not derived.runs:
        raise UsageError(f"{method.title} does not run here: {derived.reason} Leave {method.key} out.")
    merge = without_clips(recipe.profile.merge, 0) if derived.policy is None else derived.policy
    if merge == recipe.profile.merge:
        return recipe
    return with_policy(recipe, merge, f"{recipe.profile.name}-{method.key}")
