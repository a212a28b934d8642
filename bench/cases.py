"""What is compared: a model, the backends that can run it, and the videos they are shown."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray

from tempme_export.bundle import PT2, VIDEO, open_bundle, verify_files
from tempme_export.checkpoint import OPEN_CLIP, load_checkpoint
from tempme_export.errors import BackendError, BundleError, CheckpointError, ParityError, UsageError
from tempme_export.model import VideoEncoder
from tempme_export.profile import Profile, shipped_profiles
from tempme_export.random_weights import draw_checkpoint
from tempme_export.recipe import Recipe, prepare
from tempme_export.reference import ReferenceVideo, Trace
from tempme_export.runtime.base import Runner
from tempme_export.runtime.ort import OrtRunner, import_onnxruntime
from tempme_export.runtime.pt2 import Pt2Runner
from tempme_export.runtime.pytorch import TorchRunner
from tempme_export.selftest import SAFE_GAP, draw_clip, preprocess_for

ORIGINAL = "original"
DISTINCT = 4
_TRIES = 64


@dataclass(frozen=True)
class Case:
    """A model to measure.

    bundle     the folder whose artifacts are measured; None where they are still to be built
    precision  of the artifacts
    """

    recipe: Recipe
    bundle: Path | None = None
    precision: str = "fp32"

    @property
    def profile(self) -> Profile:
        return self.recipe.profile

    def artifact(self, file: str) -> Path | None:
        """A file of the bundle; None where there is no bundle, or it has no such file."""
        path = None if self.bundle is None else self.bundle / file
        return path if path is not None and path.is_file() else None

    @property
    def weights(self) -> str:
        """The checkpoint, or that the weights are random."""
        return self.recipe.checkpoint.source


def random_case(profile: Profile, seed: int) -> Case:
    """A model of `profile` with random weights."""
    return Case(prepare(draw_checkpoint(profile, seed), profile))


def open_case(source: str, profile: str | None, frames: int | None) -> Case:
    """The model of a bundle (a folder) or a checkpoint (a file, or open_clip:MODEL/PRETRAINED).

    The original path needs the checkpoint; a bundle's is found where its manifest says.
    Raises CheckpointError, ProfileError or BundleError for what cannot be read, BundleError where a bundle's
    checkpoint is gone or changed, and UsageError where `profile` or `frames` contradict the source.
    """
    if not source.startswith(OPEN_CLIP) and Path(source).is_dir():
        case = _bundle_case(Path(source), profile)
    else:
        case = Case(prepare(load_checkpoint(source), profile))
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
    advice = f"Measure the checkpoint itself: tempme-bench CKPT --profile {named}"
    try:
        checkpoint = load_checkpoint(made_from["path"])
    except CheckpointError as error:
        raise BundleError(f"{folder} is compared with the checkpoint it was made from. {error} {advice}") from error
    if checkpoint.sha256 != made_from["sha256"]:
        raise BundleError(
            f"{checkpoint.source} has sha256 {checkpoint.sha256}, but {folder} was made from one with "
            f"{made_from['sha256']}. {advice}"
        )
    return Case(prepare(checkpoint, own), bundle.path, bundle.manifest["precision"])


@dataclass(frozen=True)
class Backend:
    """One way to run a case.

    load     a case, its artifact and a device -> a runner; raises BackendError where it cannot run there
    build    writes the artifact into a folder and returns its path, where the case brings none; None for a backend
             that runs from weights
    require  raises BackendError where a package is missing; asked before anything is built
    file     the artifact's name in a bundle
    """

    load: Callable[[Case, Path | None, str], Runner]
    build: Callable[[Case, Path], Path] | None = None
    require: Callable[[], object] = lambda: None
    file: str = VIDEO


def _build_onnx(case: Case, folder: Path) -> Path:
    from tempme_export.export.to_onnx import export_video

    path = folder / VIDEO
    export_video(case.recipe, path, case.precision)
    return path


def _load_original(case: Case, artifact: Path | None, device: str) -> Runner:
    return TorchRunner(ReferenceVideo(case.recipe, device=device), case.recipe, ORIGINAL, "video", device)


def _load_torch(case: Case, artifact: Path | None, device: str) -> Runner:
    return TorchRunner(VideoEncoder(case.recipe), case.recipe, "torch", "video", device)


def _load_ort(case: Case, artifact: Path | None, device: str) -> Runner:
    assert artifact is not None, "ort is a backend with an artifact"
    return OrtRunner(artifact, device, threads=torch.get_num_threads())


def _refuse_pt2(case: Case, folder: Path) -> Path:
    where = f"{case.bundle} has no {PT2}" if case.bundle else f"there is no {PT2}, which takes minutes to compile"
    raise BackendError(f"{where}. Run tempme-export CKPT --pt2 and measure that bundle.")


def _load_pt2(case: Case, artifact: Path | None, device: str) -> Runner:
    assert artifact is not None, "pt2 is a backend with an artifact"
    return Pt2Runner(artifact, device)


BACKENDS: Mapping[str, Backend] = MappingProxyType(
    {
        ORIGINAL: Backend(_load_original),
        "torch": Backend(_load_torch),
        "ort": Backend(_load_ort, _build_onnx, import_onnxruntime),
        "pt2": Backend(_load_pt2, _refuse_pt2, file=PT2),
    }
)


def benchmark_clips(recipe: Recipe, seed: int) -> NDArray[np.float32]:
    """Moving clips for every backend to encode: [DISTINCT, F, 3, S, S], normalised pixels.

    Clips whose merges hang on near ties are passed over, since rounding alone would decide there and the
    parity gate could not tell a wrong backend from a right one. Raises ParityError where too few others
    are found.
    """
    reference, preprocess, size = ReferenceVideo(recipe), preprocess_for(recipe), recipe.backbone.image_size
    clips: list[NDArray[np.float32]] = []
    for attempt in range(_TRIES):
        frames = preprocess(draw_clip("moving", recipe.profile.frames, size, _TRIES * seed + attempt))
        trace = Trace()
        reference.frame_features(torch.from_numpy(frames[None]), trace)
        if all(float(step.gap.min()) >= SAFE_GAP for step in trace.steps):
            clips.append(frames)
        if len(clips) == DISTINCT:
            return np.stack(clips)
    raise ParityError(
        f"only {len(clips)} of {_TRIES} moving clips have merge decisions that hang on {SAFE_GAP:.1e} of "
        "similarity or more. The checkpoint's features seem to have collapsed."
    )
