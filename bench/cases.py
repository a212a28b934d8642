"""What is compared: a model, the backends that can run it, and the videos they are shown."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from tempme_export.bundle import open_bundle
from tempme_export.checkpoint import OPEN_CLIP, file_sha256, load_checkpoint
from tempme_export.errors import BackendError, BundleError, UsageError
from tempme_export.profile import Profile
from tempme_export.random_weights import draw_checkpoint
from tempme_export.recipe import Recipe, prepare
from tempme_export.runtime.base import Runner

ORIGINAL = "original"


@dataclass(frozen=True)
class Case:
    """A model to measure. `artifact` is its `video.onnx` where a bundle was given, else None."""

    recipe: Recipe
    weights: str
    artifact: Path | None = None

    @property
    def profile(self) -> Profile:
        return self.recipe.profile


def random_case(profile: Profile, seed: int) -> Case:
    """A model of `profile` with random weights."""
    recipe = prepare(draw_checkpoint(profile, seed), profile)
    return Case(recipe, f"drawn at random, seed {seed}")


def open_case(source: str, profile: str | None, frames: int | None) -> Case:
    """The model of a bundle (a folder) or a checkpoint (a file, or open_clip:MODEL/PRETRAINED).

    The original path needs the checkpoint; a bundle's is found where its manifest says.
    Raises CheckpointError, ProfileError or BundleError for what cannot be read, BundleError where a bundle's
    checkpoint is gone or changed, UsageError where `profile` or `frames` contradict the source.
    """
    if not source.startswith(OPEN_CLIP) and Path(source).is_dir():
        case = _bundle_case(Path(source), profile)
    else:
        case = Case(prepare(load_checkpoint(source), profile), source)
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
    made_from = bundle.manifest["checkpoint"]
    checkpoint = Path(made_from["path"])
    advice = f"Give the checkpoint instead: tempme-bench CKPT --profile {bundle.profile.name}"
    if not checkpoint.is_file():
        raise BundleError(
            f"the original path runs from the checkpoint that {folder} was made from, but {checkpoint} is "
            f"not there. {advice}"
        )
    found = file_sha256(checkpoint)
    if found != made_from["sha256"]:
        raise BundleError(
            f"{checkpoint} has sha256 {found}, but {folder} was made from one with "
            f"{made_from['sha256']}. {advice}"
        )
    recipe = prepare(load_checkpoint(checkpoint), bundle.profile)
    return Case(recipe, str(checkpoint), bundle.path / "video.onnx")


@dataclass(frozen=True)
class Backend:
    """One way to run a case.

    load     a case, its artifact and a device -> a runner; raises BackendError where it cannot run there
    build    writes the artifact into a folder and returns its path; None for a backend that runs from weights
    package  what must be installed beyond the core, as (module, extra of this package)
    """

    load: Callable[[Case, Path | None, str], Runner]
    build: Callable[[Case, Path], Path] | None = None
    package: tuple[str, str] | None = None


def _build_onnx(case: Case, folder: Path) -> Path:
    from tempme_export.export.to_onnx import export_video

    path = folder / "video.onnx"
    export_video(case.recipe, path)
    return path


def _load_original(case: Case, artifact: Path | None, device: str) -> Runner:
    from tempme_export.reference import ReferenceVideo
    from tempme_export.runtime.pytorch import TorchRunner

    return TorchRunner(ReferenceVideo(case.recipe), ORIGINAL, device)


def _load_torch(case: Case, artifact: Path | None, device: str) -> Runner:
    from tempme_export.model import VideoEncoder
    from tempme_export.runtime.pytorch import TorchRunner

    return TorchRunner(VideoEncoder(case.recipe), "torch", device)


def _load_ort(case: Case, artifact: Path | None, device: str) -> Runner:
    from tempme_export.runtime.ort import OrtRunner

    return OrtRunner(artifact, device)


BACKENDS: Mapping[str, Backend] = MappingProxyType(
    {
        ORIGINAL: Backend(_load_original),
        "torch": Backend(_load_torch),
        "ort": Backend(_load_ort, _build_onnx, package=("onnxruntime", "cpu")),
    }
)


def check_device(device: str) -> None:
    """Raise BackendError unless `device` is cpu, cuda or cuda:N and is there."""
    import torch

    kind, _, index = device.partition(":")
    known = kind in ("cpu", "cuda") and (not index or (kind == "cuda" and index.isdecimal()))
    if not known:
        raise BackendError(f"--device {device!r} is not cpu, cuda or cuda:N.")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise BackendError(
            f"--device {device} is not there: torch {torch.__version__} sees {torch.cuda.device_count()} "
            "GPUs. Use --device cpu."
        )


def moving_clips(batch: int, frames: int, size: int, seed: int) -> npt.NDArray[np.float32]:
    """Videos of drifting coloured waves under faint noise: frames resemble their neighbours, no two patches
    are the same.

    Returns [batch, frames, 3, size, size] float32 in the range of normalised pixels.
    """
    generator = np.random.default_rng(seed)
    waves = 8
    time, y, x = np.arange(frames), np.arange(size) / size, np.arange(size) / size
    clips = generator.normal(0, 0.05, (batch, frames, 3, size, size)).astype(np.float32)
    for clip in clips:
        for _ in range(waves):
            across, down = generator.uniform(-40, 40, 2)
            drift, phase = generator.uniform(-0.5, 0.5), generator.uniform(0, 2 * np.pi)
            colour = generator.normal(0, 1 / np.sqrt(waves / 2), 3)
            angle = (across * x + down * y[:, None])[None] + (drift * time + phase)[:, None, None]
            clip += (colour[:, None, None] * np.cos(angle)[:, None]).astype(np.float32)
    return clips
