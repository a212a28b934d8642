"""The measured case: a model and the videos it is shown."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tempme_export.artifacts.bundle import open_bundle, verify_files
from tempme_export.bench.adapters import counter_for
from tempme_export.bench.paper import Counter
from tempme_export.encoder.backbone import OPEN_CLIP
from tempme_export.encoder.checkpoint import load_checkpoint
from tempme_export.encoder.complexity import Complexity
from tempme_export.encoder.profile import Profile, shipped_profiles
from tempme_export.encoder.random_weights import draw_checkpoint
from tempme_export.encoder.recipe import Recipe, open_recipe, prepare
from tempme_export.encoder.reference import MergeLog, ReferenceVideo
from tempme_export.encoder.schedule import Schedule
from tempme_export.errors import BundleError, CheckpointError, ParityError, UsageError
from tempme_export.media.preprocess import preprocess_for
from tempme_export.names import command
from tempme_export.parity.selftest import SAFE_GAP, draw_clip

DISTINCT = 4
_TRIES = 64


@dataclass(frozen=True)
class Case:
    """A model to measure.

    bundle     the folder whose artifacts are measured; None where they are still to be built
    precision  of the artifacts
    method     what merges; empty: as the profile's merge policy says
    own_schedule  the token counts it must have; None: the recipe's
    counter    what its operations are counted by; None: the formula of its checkpoint's additions
    """

    recipe: Recipe
    bundle: Path | None = None
    precision: str = "fp32"
    method: str = ""
    own_schedule: Schedule | None = None
    counter: Counter | None = None

    @property
    def profile(self) -> Profile:
        return self.recipe.profile

    def artifact(self, file: str) -> Path | None:
        """A file of the bundle; None where there is no bundle, or it has no such file."""
        path = None if self.bundle is None else self.bundle / file
        return path if path is not None and path.is_file() else None

    @property
    def method_key(self) -> str:
        """The method in one word: as it was named or, by the merge policy, none, tome or tempme."""
        merge = self.profile.merge
        return self.method or ("tempme" if merge.clip_layers else "tome" if merge.image_r else "none")

    @property
    def schedule(self) -> Schedule:
        """The token counts it must have."""
        return self.recipe.schedule if self.own_schedule is None else self.own_schedule

    def counted(self) -> Complexity:
        """The operations they cost. Raises ProfileError where there is no formula for the checkpoint's additions."""
        checkpoint = self.recipe.checkpoint
        counter = self.counter or counter_for(checkpoint.facts, checkpoint.source)
        return counter(self.schedule, self.recipe.backbone)

    @property
    def weights(self) -> str:
        """The checkpoint, or that the weights are random."""
        return self.recipe.checkpoint.source


def random_case(profile: Profile, seed: int) -> Case:
    """A model of `profile` with random weights."""
    return Case(prepare(draw_checkpoint(profile, seed), profile))


def open_case(source: str, profile: str | None, frames: int | None, activation: str | None = None) -> Case:
    """The model of a bundle (a folder) or a checkpoint (a file, or open_clip:MODEL/PRETRAINED).

    The original path needs the checkpoint; a bundle's is found where its manifest says.
    Raises CheckpointError, ProfileError or BundleError for what cannot be read, BundleError where a bundle's
    checkpoint is gone or changed, and UsageError where `profile`, `frames` or `activation` contradict the source.
    """
    if not source.startswith(OPEN_CLIP) and Path(source).is_dir():
        if activation is not None:
            raise UsageError(f"{source} is a bundle, built with its activation. Leave --activation out.")
        case = _bundle_case(Path(source), profile)
    else:
        case = Case(open_recipe(source, profile, activation))
    if frames not in (None, case.profile.frames):
        raise UsageError(
            f"{source} takes {case.profile.frames} frames (profile {case.profile.name}), "
            f"--frames says {frames}. Leave it out."
        )
    return case


def _bundle_case(folder: Path, profile: str | None) -> Case:
    """The model of a bundle, its weights taken from the checkpoint it was made from."""
    if profile is not None:
        raise UsageError(f"the bundle {folder} has its profile inside. Leave --profile out.")
    bundle = open_bundle(folder)
    verify_files(bundle)
    own, made_from = bundle.profile, bundle.manifest["checkpoint"]
    named = own.name if own.name in shipped_profiles() else f"{own.name}.toml"
    advice = f"Measure the checkpoint itself: {command('tempme-bench', 'CKPT', '--profile', named)}"
    try:
        checkpoint = load_checkpoint(made_from["path"])
    except CheckpointError as error:
        raise BundleError(f"{folder} is compared with the checkpoint it was made from. {error} {advice}") from error
    if checkpoint.sha256 != made_from["sha256"]:
        raise BundleError(
            f"{checkpoint.source} has sha256 {checkpoint.sha256}, but {folder} was made from one with "
            f"{made_from['sha256']}. {advice}"
        )
    recipe = prepare(checkpoint, own, bundle.manifest["backbone"]["activation"])
    pixels = {"mean": list(recipe.backbone.mean), "std": list(recipe.backbone.std)}
    if any(bundle.manifest["image"][about] != values for about, values in pixels.items()):
        raise BundleError(
            f"{folder} was built for other pixel statistics than {checkpoint.source} has now: found {pixels}, expected "
            f"{bundle.manifest['image']}. A configuration beside it has changed; export it again. {advice}"
        )
    return Case(replace(recipe, conventions=bundle.conventions), bundle.path, bundle.manifest["precision"])


def benchmark_clips(recipes: Sequence[Recipe], seed: int, *, gap: float = SAFE_GAP) -> NDArray[np.float32]:
    """Moving clips for every candidate to encode: [DISTINCT, F, 3, S, S], normalised pixels.

    recipes  of one backbone and frame count
    gap      least similarity that a merge decision hangs on; 0: any clip will do

    Clips whose merges hang on near ties under one of the recipes are passed over, since rounding alone would decide
    there and the parity gate could not tell a wrong backend from a right one. Raises ParityError where too few others
    are found.
    """
    first = recipes[0]
    preprocess, size, frames = preprocess_for(first), first.backbone.image_size, first.profile.frames
    references = [ReferenceVideo(recipe) for recipe in recipes]
    clips: list[NDArray[np.float32]] = []
    for attempt in range(_TRIES):
        clip = preprocess(draw_clip("moving", frames, size, _TRIES * seed + attempt))
        if not gap or all(_smallest_gap(reference, clip) >= gap for reference in references):
            clips.append(clip)
        if len(clips) == DISTINCT:
            return np.stack(clips)
    raise ParityError(
        f"only {len(clips)} of {_TRIES} moving clips have merge decisions that hang on {gap:.1e} of "
        "similarity or more. The checkpoint's features seem to have collapsed."
    )


def _smallest_gap(reference: ReferenceVideo, clip: NDArray[np.float32]) -> float:
    log = MergeLog()
    reference.frame_features(torch.from_numpy(clip[None]), log)
    return min((float(step.gap.min()) for step in log.steps), default=math.inf)
