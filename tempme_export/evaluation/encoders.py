"""A bundle or a checkpoint as an Encoder: uint8 frames and texts in, unit embeddings out, and a fingerprint that says
what computed them."""

import hashlib
import importlib.metadata
import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import nn

from tempme_export.artifacts import registry
from tempme_export.artifacts.bundle import MANIFEST, Bundle, one_release, open_bundle, verify_files
from tempme_export.encoder.checkpoint import OPEN_CLIP
from tempme_export.encoder.model import TextEncoder, VideoEncoder
from tempme_export.encoder.profile import Profile
from tempme_export.encoder.recipe import Recipe, open_recipe
from tempme_export.encoder.reference import ReferenceText, ReferenceVideo
from tempme_export.errors import BackendError, InputError, UsageError
from tempme_export.media.preprocess import Preprocess
from tempme_export.media.tokenizer import Tokenizer
from tempme_export.names import command
from tempme_export.parity.selftest import preprocess_for
from tempme_export.retrieval import RetrievalModel
from tempme_export.runtime.devices import torch_device
from tempme_export.runtime.pytorch import TorchRunner

CHECKPOINT_BACKENDS = ("original", "torch")
_TEXTS = 256  # per call: the text tower takes some 50 MB of activations
_ALWAYS = ("tempme-export", "open-clip-torch", "ftfy")  # the last two make tokens of texts
_PACKAGES = {"original": ("torch",), "torch": ("torch", "triton")}  # of a checkpoint's backends


class Encoder(Protocol):
    """Both towers of one model on one backend.

    name         the model's, for people
    fingerprint  sha256; equal only where model, backend, kind of device and versions are
    frames       per video, F
    preprocess   its `size` is S
    embed        width of an embedding, E
    """

    @property
    def name(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def frames(self) -> int: ...
    @property
    def preprocess(self) -> Preprocess: ...
    @property
    def embed(self) -> int: ...

    def encode_frames(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """[B, F, S, S, 3], resized and cropped -> unit [B, E]."""
        ...

    def encode_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """T texts -> unit [T, E]."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


def _packages(backend: str) -> tuple[str, ...]:
    """With all whose names begin so: torch-cu13 with torch."""
    if backend in _PACKAGES:
        return _PACKAGES[backend]
    return *registry.text_backend().packages, *registry.find_backend(backend).packages


def _fingerprint(model: Any, backend: str, device: str) -> str:
    """Hash of everything that embeddings of given frames depend on."""
    kind = device.partition(":")[0]
    families = (*_ALWAYS, *_packages(backend), *(("nvidia",) if kind == "cuda" else ()))
    installed = {
        re.sub("[-_.]+", "-", d.metadata["Name"] or "").lower(): d.version for d in importlib.metadata.distributions()
    }
    versions = {
        name: installed[name] for name in installed if any(f"{name}-".startswith(f"{one}-") for one in families)
    }
    facts = {"model": model, "backend": backend, "device": kind, "versions": versions}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _check_frames(frames: NDArray[np.uint8], count: int, size: int) -> None:
    """A wrong size would be resized once more, silently. Raises InputError."""
    if frames.dtype != np.uint8 or frames.shape != (len(frames), count, size, size, 3):
        raise InputError(
            f"found frames {frames.dtype} {list(frames.shape)}; expected uint8 [batch, {count}, {size}, {size}, 3], "
            "as Preprocess.crop makes them"
        )


def _tokenizer(profile: Profile) -> Tokenizer:
    """Raises ProfileError where the backbone has none, before hours of videos are encoded."""
    return Tokenizer(profile.backbone, profile.text_length)


class BundleEncoder:
    """A bundle on one of its backends. Batches above the profile's usual size are run in parts."""

    def __init__(self, bundle: Bundle, backend: str | None = None, device: str | None = None) -> None:
        """Raises BundleError for a changed file, ProfileError without a tokenizer, BackendError as RetrievalModel."""
        _tokenizer(bundle.profile)
        with one_release(bundle):
            verify_files(bundle)
            self.model = RetrievalModel(bundle, backend, device)
        self.name, self.backend, self.device = bundle.path.resolve().name, self.model.backend, self.model.device
        self.profile, self.origin = bundle.profile, "bundle"
        self.conventions, self.remarks = bundle.conventions, ()
        self.frames, self.preprocess = self.profile.frames, self.model.preprocess
        self.embed: int = bundle.manifest["backbone"]["embed"]
        self.fingerprint = _fingerprint(bundle.manifest["sha256"], self.backend, self.device)

    def encode_frames(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """[B, F, S, S, 3] -> unit [B, E]. Raises InputError."""
        _check_frames(frames, self.frames, self.preprocess.size)
        return self.model.encode_video(list(frames))

    def encode_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """T texts -> unit [T, E]. Raises InputError."""
        return self.model.encode_text(list(texts))

    def close(self) -> None:
        """Free the sessions."""
        self.model.close()


class CheckpointEncoder:
    """A checkpoint under torch in float32: `original`, the oracle, or `torch`, the fast encoder."""

    def __init__(self, recipe: Recipe, backend: str | None = None, device: str | None = None) -> None:
        """Raises BackendError for an unknown backend or a missing device, ProfileError without a tokenizer."""
        self.backend, self.device = backend or "original", device or "cpu"
        if self.backend not in CHECKPOINT_BACKENDS:
            raise BackendError(f"backend {backend!r} of a checkpoint is not one of {', '.join(CHECKPOINT_BACKENDS)}.")
        chosen = torch_device(self.device)
        self._tokenizer = _tokenizer(recipe.profile)
        towers: tuple[nn.Module, nn.Module] = (
            (ReferenceVideo(recipe, device=chosen), ReferenceText(recipe, device=chosen))
            if self.backend == "original"
            else (VideoEncoder(recipe), TextEncoder(recipe))
        )
        self._video = TorchRunner(towers[0], recipe, self.backend, "video", self.device)
        self._text = TorchRunner(towers[1], recipe, self.backend, "text", self.device)
        self.name = Path(recipe.checkpoint.source).name
        self.profile, self.origin = recipe.profile, recipe.origin
        self.conventions, self.remarks = recipe.conventions, recipe.checkpoint.remarks
        self.frames, self.preprocess = recipe.profile.frames, preprocess_for(recipe)
        self.embed = recipe.backbone.embed
        model = [recipe.checkpoint.sha256, recipe.profile.to_dict(), asdict(recipe.backbone), asdict(self.preprocess)]
        self.fingerprint = _fingerprint(model, self.backend, self.device)

    def encode_frames(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """[B, F, S, S, 3] -> unit [B, E], as one batch. Raises InputError."""
        size = self.preprocess.size
        _check_frames(frames, self.frames, size)
        if len(frames) == 0:
            return np.empty((0, self.embed), np.float32)
        pixels = self.preprocess.normalise(frames.reshape(-1, size, size, 3))
        inputs = {"frames": pixels.reshape(-1, self.frames, 3, size, size)}
        return self._video.infer(inputs)["video_embedding"].astype(np.float32)

    def encode_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """T texts -> unit [T, E]. Raises InputError."""
        parts = [np.empty((0, self.embed), np.float32)]
        for start in range(0, len(texts), _TEXTS):
            ids = self._tokenizer(list(texts[start : start + _TEXTS]))
            parts.append(self._text.infer({"token_ids": ids})["text_embedding"].astype(np.float32))
        return np.concatenate(parts)

    def close(self) -> None:
        """Free the weights."""
        self._video.close()
        self._text.close()


def _check_backend(source: str, is_bundle: bool, backend: str | None) -> None:
    """Raises UsageError for a backend of the other kind of source, BackendError for an unknown one."""
    of_bundles = registry.offered()
    if backend in (None, *(of_bundles if is_bundle else CHECKPOINT_BACKENDS)):
        return
    if is_bundle and backend in CHECKPOINT_BACKENDS:
        raise UsageError(
            f"{source} is a bundle, and backend {backend!r} runs a checkpoint. Give the checkpoint it was exported "
            f"from, or choose of: {', '.join(of_bundles)}."
        )
    if backend in of_bundles:
        option = registry.find_backend(backend).artifact.option
        raise UsageError(
            f"{source} is a checkpoint, and backend {backend!r} runs a bundle. Export it first with "
            f"{command('tempme-export', source)}{f' --{option}' if option else ''} and give the bundle, or choose of: "
            f"{', '.join(CHECKPOINT_BACKENDS)}."
        )
    known = ", ".join(of_bundles if is_bundle else CHECKPOINT_BACKENDS)
    raise BackendError(f"backend {backend!r} is unknown. {source} runs on: {known}.")


def open_encoder(
    source: str | Path,
    profile: str | Path | None = None,
    backend: str | None = None,
    device: str | None = None,
    activation: str | None = None,
) -> BundleEncoder | CheckpointEncoder:
    """Open whatever can be evaluated.

    source   a bundle's folder, a checkpoint file, or open_clip:MODEL/PRETRAINED
    profile  of a checkpoint; None: its own, or the one its shapes allow
    backend  of a bundle one of `artifacts.registry.offered()`, the first by default; of a checkpoint "original"
             (default) or "torch"
    device   "cpu", "cuda" or "cuda:N"; None: the CPU, or what a package was compiled for
    activation  of a checkpoint that does not say it; None: as `recipe.prepare`
    Raises UsageError for a backend, a profile or an activation that does not go with the source; BackendError,
    BundleError, CheckpointError and ProfileError as the source itself.
    """
    is_bundle = not str(source).startswith(OPEN_CLIP) and Path(source).is_dir()
    if is_bundle:
        bundle = open_bundle(source)
        if profile is not None:
            raise UsageError(f"{source} is a bundle, and its profile lies in its {MANIFEST}. Leave out --profile.")
        if activation is not None:
            raise UsageError(f"{source} is a bundle, built with its activation. Leave out --activation.")
        _check_backend(str(source), is_bundle, backend)
        return BundleEncoder(bundle, backend, device)
    _check_backend(str(source), is_bundle, backend)
    return CheckpointEncoder(open_recipe(source, profile, activation), backend, device)
