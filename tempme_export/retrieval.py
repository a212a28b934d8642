"""A bundle in use: videos and texts in, unit embeddings out."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tempme_export.artifacts.artifact import Tower
from tempme_export.artifacts.backend import Setting
from tempme_export.artifacts.bundle import Bundle, folder_of, one_release, open_bundle
from tempme_export.artifacts.registry import find_backend, text_backend
from tempme_export.encoder.profile import FROM_CHECKPOINT
from tempme_export.errors import InputError, ReleaseError
from tempme_export.media.preprocess import preprocess_in
from tempme_export.media.stored_tokenizer import TOKENIZER, StoredTokenizer
from tempme_export.media.token_ids import TokenIds
from tempme_export.parity.tolerance import INT8
from tempme_export.runtime.base import Runner, check_threads
from tempme_export.runtime.process import ProcessBound, calls
from tempme_export.runtime.processor import videos_at_once

_TEXTS = 256  # per run: the text tower takes some 50 MB of activations
_REOPENINGS, _SECONDS = 4, 0.1
Embeddings = NDArray[np.float32]


def _is_one_video(video: Any) -> bool:
    """A path, an array, a tensor, or a list of PIL images; anything else is a list of videos."""
    if isinstance(video, str | Path | np.ndarray) or hasattr(video, "__array__"):
        return True
    from PIL import Image

    return isinstance(video, Sequence) and len(video) > 0 and isinstance(video[0], Image.Image)


class RetrievalModel(ProcessBound):
    """Encodes videos and texts with one bundle. A context manager.

    Both towers are open and belong to one release of the bundle, whatever becomes of its folder afterwards. It may be
    called from several threads at once. It can be pickled and copied: what arrives opens its files again at its first
    use, and so does a child after a fork, where the runtime can (BackendError); by then the folder must still hold the
    same release (ReleaseError).
    """

    def __init__(
        self, bundle: Bundle, backend: str | None = None, device: str | None = None, threads: int | None = None
    ) -> None:
        """Raises as `load`, and ReleaseError where the folder no longer holds the release that `bundle` is of."""
        check_threads(threads)
        self.bundle, self.threads = replace(bundle, path=bundle.path.resolve()), threads
        self._folder = folder_of(self.bundle)
        self._video, self._text = find_backend(backend, device), text_backend()
        self.backend = backend or self._video.name
        self.device = self._video.choose_device(self._folder, device)
        self.profile = bundle.profile
        self.preprocess = preprocess_in(bundle.manifest)
        self.opened()

    def _open(self) -> dict[str, Any]:
        """Both towers by their names, and the tokenizer where the bundle has one."""
        device = self.device if self._text.runner == self._video.runner else None
        devices = {"video": self.device, "text": self._text.choose_device(self._folder, device)}
        towers = {one.artifact.tower: one for one in (self._video, self._text)}
        limits = {"video": self._most_videos(), "text": _TEXTS}
        words = [TOKENIZER] if self._folder.holds(TOKENIZER) else []
        files = [file for one in towers.values() for file in (one.artifact.file, one.artifact.graph) if file]
        with one_release(self.bundle, [*files, *words]):
            opened: dict[str, Any] = {
                tower: one.open(self._folder, Setting(devices[tower], self.threads, limits[tower]))
                for tower, one in towers.items()
            }
            return opened | {file: self._open_tokenizer() for file in words}

    def _open_tokenizer(self) -> StoredTokenizer:
        return StoredTokenizer((self.bundle.path / TOKENIZER).read_bytes(), self.profile.text_length)

    def _tokenizer(self) -> TokenIds:
        """The bundle's own; open_clip's for one of earlier versions, which have none."""
        stored: StoredTokenizer | None = self.opened().get(TOKENIZER)
        if stored is not None:
            return stored
        from tempme_export.media.tokenizer import Tokenizer

        return Tokenizer(self.profile.backbone, self.profile.text_length)

    def _runner(self, tower: Tower) -> Runner:
        runner: Runner = self.opened()[tower]
        return runner

    def _most_videos(self) -> int | None:
        """An int8 graph takes large batches in parts."""
        if self.bundle.manifest["precision"] != INT8:
            return None
        schedule = self.bundle.schedule
        return videos_at_once(schedule.frames * schedule.tokens_per_frame)

    def _pixels(self, video: Any, allow_damaged: bool) -> NDArray[np.float32]:
        """One video -> float32 [F, 3, S, S]."""
        frames = video
        if isinstance(video, str | Path):
            from tempme_export.media.video import read_frames

            frames = read_frames(video, self.profile.frames, allow_damaged=allow_damaged)
        if hasattr(frames, "__array__") and not isinstance(frames, np.ndarray):
            frames = np.asarray(frames)
        pixels = self.preprocess(frames)
        if len(pixels) != self.profile.frames:
            raise InputError(
                f"the video has {len(pixels)} frames, this bundle takes {self.profile.frames}. Give the path of "
                "the file and its frames are sampled as in training, or choose the frames yourself."
            )
        return pixels

    def encode_video(self, video: Any, allow_damaged: bool = False) -> Embeddings:
        """Embed one video, or a list of videos.

        video          a path, a list of F PIL images, or a uint8 array or tensor [F, H, W, 3]; or a list of those
        allow_damaged  take damaged pictures of a file as the decoder shows them
        Returns float32 [E] for one and [n, E] for a list, rows of unit length.
        Raises VideoError for a file that cannot be read, InputError for a wrong dtype, shape or frame count.
        """
        if _is_one_video(video):
            return self._encode([video], allow_damaged)[0]
        if not isinstance(video, Sequence):
            raise InputError(
                f"found {type(video).__name__}, expected a path, F PIL images, uint8 [F, H, W, 3], or a list of those."
            )
        return self._encode(video, allow_damaged)

    def _encode(self, videos: Sequence[Any], allow_damaged: bool) -> Embeddings:
        step = self.profile.batch.opt
        embeddings = [np.empty((0, self.bundle.manifest["backbone"]["embed"]), np.float32)]
        for start in range(0, len(videos), step):
            with calls:
                frames = np.stack([self._pixels(video, allow_damaged) for video in videos[start : start + step]])
            inputs: dict[str, NDArray[Any]] = {"frames": frames}
            if self.bundle.manifest["frame_mask"]:
                inputs["frame_mask"] = np.ones(frames.shape[:2], np.bool_)
            embeddings.append(self._runner("video").infer(inputs)["video_embedding"].astype(np.float32))
        return np.concatenate(embeddings)

    def encode_text(self, texts: list[str]) -> Embeddings:
        """Embed texts: float32 [n, E], rows of unit length.

        Raises InputError for anything but a list of non-empty texts, ProfileError where the bundle's backbone
        has no tokenizer, and BackendError for a bundle of earlier versions, which came without one, where open_clip is
        not installed. A text above the profile's length is cut, with a TextTruncatedWarning.
        """
        if self.profile.backbone == FROM_CHECKPOINT:
            raise InputError(
                f"profile {self.profile.name} names no open_clip backbone, so its tokenizer is unknown. "
                f"Run {self._text.artifact.file} on token ids instead."
            )
        with calls:
            ids = self._tokenizer()(texts)
        if len(ids) == 0:
            return np.empty((0, self.bundle.manifest["backbone"]["embed"]), np.float32)
        return self._runner("text").infer({"token_ids": ids})["text_embedding"].astype(np.float32)

    def similarity(self, texts: list[str] | Embeddings, videos: Any) -> Embeddings:
        """exp(logit_scale) times the cosine of every text with every video: float32 [t, v] (spec section 5).

        Either side may be given as embeddings, float32 [n, E].
        """
        t = np.atleast_2d(texts) if isinstance(texts, np.ndarray) else self.encode_text(texts)
        is_embedding = isinstance(videos, np.ndarray) and videos.ndim == 2
        v = videos if is_embedding else np.atleast_2d(self.encode_video(videos))
        scale = np.float32(np.exp(self.bundle.manifest["logit_scale"]))
        result: Embeddings = scale * (t @ v.T)
        return result

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def load(
    bundle: str | Path | Bundle, backend: str | None = None, device: str | None = None, threads: int | None = None
) -> RetrievalModel:
    """Open a bundle for use.

    backend  one of `artifacts.registry.offered()`; None: the first of them, which every bundle has. Texts go through
             ONNX Runtime, on the CPU unless the videos go through it on a GPU
    device   "cpu", "cuda" or "cuda:N"; None: the CPU, what the artifact was compiled for, or the first GPU
    threads  of a processor, for one call; None: as many as it has cores. Not for a backend whose threads belong to the
             whole process
    A path that is given another release in the meantime is opened again. Raises UsageError for `threads`, BundleError
    for a bundle that is damaged or incomplete, BackendError for a backend or device that is not there.
    """
    if isinstance(bundle, Bundle):
        return RetrievalModel(bundle, backend, device, threads)
    path = Path(bundle).resolve()
    for _ in range(_REOPENINGS):
        try:
            return RetrievalModel(open_bundle(path), backend, device, threads)
        except ReleaseError:
            time.sleep(_SECONDS)  # an old folder makes way for the new one
    return RetrievalModel(open_bundle(path), backend, device, threads)
