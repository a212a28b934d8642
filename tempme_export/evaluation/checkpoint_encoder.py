"""A checkpoint as an Encoder, under torch."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from tempme_export.encoder.model import TextEncoder, VideoEncoder
from tempme_export.encoder.recipe import Recipe
from tempme_export.encoder.reference import ReferenceText, ReferenceVideo
from tempme_export.errors import BackendError
from tempme_export.evaluation.encoders import CHECKPOINT_BACKENDS, check_frames, fingerprint
from tempme_export.media.preprocess import preprocess_for
from tempme_export.media.tokenizer import Tokenizer
from tempme_export.runtime.devices import torch_device
from tempme_export.runtime.pytorch import TorchRunner

_TEXTS = 256  # per call: the text tower takes some 50 MB of activations


class CheckpointEncoder:
    """A checkpoint under torch in float32: `original`, the reference, or `torch`, the fast encoder."""

    def __init__(self, recipe: Recipe, backend: str | None = None, device: str | None = None) -> None:
        """Raises BackendError for an unknown backend or a missing device, ProfileError without a tokenizer."""
        self.backend, self.device = backend or "original", device or "cpu"
        if self.backend not in CHECKPOINT_BACKENDS:
            raise BackendError(
                f"backend: found {backend!r}, expected one of {', '.join(CHECKPOINT_BACKENDS)} for a checkpoint."
            )
        chosen = torch_device(self.device)
        self._tokenizer = Tokenizer(recipe.profile.backbone, recipe.profile.text_length)
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
        self.fingerprint = fingerprint(model, self.backend, self.device)

    def encode_frames(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """[B, F, S, S, 3] -> unit [B, E], as one batch. Raises InputError."""
        size = self.preprocess.size
        check_frames(frames, self.frames, size)
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
