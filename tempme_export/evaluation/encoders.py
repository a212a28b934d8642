"""A bundle or a checkpoint as an Encoder: uint8 frames and texts in, unit embeddings out, and a fingerprint that says
what computed them."""

import hashlib
import importlib.metadata
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tempme_export.artifacts import registry
from tempme_export.artifacts.bundle import MANIFEST, Bundle, one_release, open_bundle, verify_files
from tempme_export.encoder.backbone import OPEN_CLIP
from tempme_export.encoder.profile import FROM_CHECKPOINT
from tempme_export.errors import BackendError, InputError, UsageError, did_you_mean, making
from tempme_export.media.preprocess import Preprocess
from tempme_export.media.stored_tokenizer import TOKENIZER
from tempme_export.names import command
from tempme_export.retrieval import RetrievalModel

if TYPE_CHECKING:
    from tempme_export.evaluation.checkpoint_encoder import CheckpointEncoder

CHECKPOINT_BACKENDS = ("original", "torch")
_ALWAYS = ("tempme-export", "open-clip-torch", "tokenizers", "ftfy")  # the last three make tokens of texts
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


def installed_versions() -> dict[str, str]:
    """Version of every installed distribution, by its name in lower case with dashes."""
    found = importlib.metadata.distributions()
    return {re.sub("[-_.]+", "-", one.metadata["Name"] or "").lower(): one.version for one in found}


def fingerprint(model: Any, backend: str, device: str, installed: Mapping[str, str] | None = None) -> str:
    """Hash of everything that embeddings of given frames depend on; `installed` as `installed_versions`."""
    installed = installed_versions() if installed is None else installed
    kind = device.partition(":")[0]
    families = (*_ALWAYS, *_packages(backend), *(("nvidia",) if kind == "cuda" else ()))
    versions = {
        name: installed[name] for name in installed if any(f"{name}-".startswith(f"{one}-") for one in families)
    }
    facts = {"model": model, "backend": backend, "device": kind, "versions": versions}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def check_frames(frames: NDArray[np.uint8], count: int, size: int) -> None:
    """A wrong size would be resized once more, silently. Raises InputError."""
    if frames.dtype != np.uint8 or frames.shape != (len(frames), count, size, size, 3):
        raise InputError(
            f"found frames {frames.dtype} {list(frames.shape)}, expected uint8 [batch, {count}, {size}, {size}, 3], "
            "as Preprocess.crop makes them."
        )


def _check_tokenizer(bundle: Bundle) -> None:
    """Raises ProfileError where its backbone has none, before hours of videos are encoded."""
    if TOKENIZER not in bundle.manifest["files"] or bundle.profile.backbone == FROM_CHECKPOINT:
        from tempme_export.media.tokenizer import Tokenizer

        Tokenizer(bundle.profile.backbone, bundle.profile.text_length)


class BundleEncoder:
    """A bundle on one of its backends. Batches above the profile's usual size are run in parts."""

    def __init__(self, bundle: Bundle, backend: str | None = None, device: str | None = None) -> None:
        """Raises BundleError for a changed file, ProfileError without a tokenizer, BackendError as RetrievalModel."""
        _check_tokenizer(bundle)
        with one_release(bundle):
            verify_files(bundle)
            self.model = RetrievalModel(bundle, backend, device)
        self.name, self.backend, self.device = bundle.path.resolve().name, self.model.backend, self.model.device
        self.profile, self.origin = bundle.profile, "bundle"
        self.conventions, self.remarks = bundle.conventions, ()
        self.frames, self.preprocess = self.profile.frames, self.model.preprocess
        self.embed: int = bundle.manifest["backbone"]["embed"]
        self.fingerprint = fingerprint(bundle.manifest["sha256"], self.backend, self.device)

    def encode_frames(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """[B, F, S, S, 3] -> unit [B, E]. Raises InputError."""
        check_frames(frames, self.frames, self.preprocess.size)
        return self.model.encode_video(list(frames))

    def encode_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """T texts -> unit [T, E]. Raises InputError."""
        return self.model.encode_text(list(texts))

    def close(self) -> None:
        """Free the sessions."""
        self.model.close()


def _check_backend(source: str, is_bundle: bool, backend: str | None) -> None:
    """Raises UsageError for a backend of the other kind of source, BackendError for an unknown one."""
    of_bundles = registry.offered()
    known = of_bundles if is_bundle else CHECKPOINT_BACKENDS
    if backend is None or backend in known:
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
    meant = did_you_mean(backend, known)
    raise BackendError(f"backend: found {backend!r}, expected one of {', '.join(known)} for {source}.{meant}")


def open_encoder(
    source: str | Path,
    profile: str | Path | None = None,
    backend: str | None = None,
    device: str | None = None,
    activation: str | None = None,
) -> "BundleEncoder | CheckpointEncoder":
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
    with making(f"checkpoint {source}"):
        from tempme_export.encoder.recipe import open_recipe
        from tempme_export.evaluation.checkpoint_encoder import CheckpointEncoder

    return CheckpointEncoder(open_recipe(source, profile, activation), backend, device)
