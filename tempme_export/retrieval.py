"""A bundle in use: videos and texts in, unit embeddings out."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tempme_export.artifacts.bundle import PT2, TEXT, VIDEO, Bundle, one_release, open_bundle
from tempme_export.encoder.profile import FROM_CHECKPOINT
from tempme_export.errors import BackendError, InputError, ReleaseError
from tempme_export.media.preprocess import Preprocess
from tempme_export.media.tokenizer import Tokenizer
from tempme_export.media.video import read_frames
from tempme_export.parity.tolerance import INT8
from tempme_export.runtime.base import Runner, check_threads
from tempme_export.runtime.engine_facts import ENGINE, KEY, EngineFacts
from tempme_export.runtime.nvidia import gpu_index
from tempme_export.runtime.ort import OrtRunner, check_device
from tempme_export.runtime.process import ProcessBound
from tempme_export.runtime.processor import videos_at_once

BACKENDS = ("ort", "pt2", "tensorrt")
_VIDEO_FILES = {"ort": VIDEO, "pt2": PT2, "tensorrt": ENGINE}
_TEXTS = 256  # per run: the text tower takes some 50 MB of activations
_REOPENINGS, _SECONDS = 4, 0.1
Embeddings = NDArray[np.float32]


def _is_one_video(video: Any) -> bool:
    """A path, an array, a tensor, or a list of PIL images; anything else is a list of videos."""
    if isinstance(video, str | Path | np.ndarray) or hasattr(video, "__array__"):
        return True
    return isinstance(video, Sequence) and len(video) > 0 and isinstance(video[0], Image.Image)


def _device_for(bundle: Bundle, backend: str, device: str | None) -> str:
    """The device asked for or the backend's usual one, checked before any file is loaded."""
    if backend == "ort":
        check_device(device or "cpu")
        return device or "cpu"
    from tempme_export.runtime.devices import torch_device

    if backend == "tensorrt":
        if ENGINE not in bundle.manifest["files"]:
            raise BackendError(f"{bundle.path} has no {ENGINE}. Export it with --trt, or use another backend.")
        gpu_index(device or "cuda")
        return str(torch_device(device or "cuda"))
    package = bundle.manifest.get("pt2")
    if package is None:
        raise BackendError(f"{bundle.path} has no {PT2}. Export it with --pt2, or use another backend.")
    return str(torch_device(device or package["device"]))


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
        if backend not in (None, *BACKENDS):
            raise BackendError(f"backend {backend!r} is not one of {', '.join(BACKENDS)}.")
        self.bundle, self.backend, self.threads = replace(bundle, path=bundle.path.resolve()), backend or "ort", threads
        self.device = _device_for(bundle, self.backend, device)
        self.profile = bundle.profile
        image = bundle.manifest["image"]
        self.preprocess = Preprocess(image["size"], tuple(image["mean"]), tuple(image["std"]))
        self._tokenizer: Tokenizer | None = None
        self.opened()

    def _open(self) -> dict[str, Runner]:
        """Both towers by their files."""
        files = (_VIDEO_FILES[self.backend], TEXT)
        with one_release(self.bundle, files):
            return {file: self._open_runner(file) for file in files}

    def _open_runner(self, file: str) -> Runner:
        path = self.bundle.path / file
        if file == PT2:
            from tempme_export.runtime.pt2 import Pt2Runner  # loads torch, which the graphs do without

            return Pt2Runner(path, self.device, threads=self.threads)
        if file == ENGINE:
            from tempme_export.runtime.tensorrt import TensorRtRunner

            return TensorRtRunner(path, EngineFacts.from_dict(self.bundle.manifest.get(KEY)), self.device)
        device = self.device if self.backend == "ort" else "cpu"
        return OrtRunner(path, device, threads=self.threads, max_batch=self._max_batch(file))

    def _runner(self, file: str) -> Runner:
        runner: Runner = self.opened()[file]
        return runner

    def _max_batch(self, file: str) -> int | None:
        """Texts are run in parts, and so are videos in an int8 graph."""
        if file == TEXT:
            return _TEXTS
        if self.bundle.manifest["precision"] != INT8:
            return None
        plan = self.bundle.plan
        return videos_at_once(plan.frames * plan.tokens_per_frame)

    def _pixels(self, video: Any) -> NDArray[np.float32]:
        """One video -> float32 [F, 3, S, S]."""
        frames = read_frames(video, self.profile.frames) if isinstance(video, str | Path) else video
        if hasattr(frames, "__array__") and not isinstance(frames, np.ndarray):
            frames = np.asarray(frames)
        pixels = self.preprocess(frames)
        if len(pixels) != self.profile.frames:
            raise InputError(
                f"the video has {len(pixels)} frames, this bundle takes {self.profile.frames}. Give the path of "
                "the file and its frames are sampled as in training, or choose the frames yourself."
            )
        return pixels

    def encode_video(self, video: Any) -> Embeddings:
        """Embed one video, or a list of videos.

        video  a path, a list of F PIL images, or a uint8 array or tensor [F, H, W, 3]; or a list of those
        Returns float32 [E] for one and [n, E] for a list, rows of unit length.
        Raises VideoError for a file that cannot be read, InputError for a wrong dtype, shape or frame count.
        """
        if _is_one_video(video):
            return self._encode([video])[0]
        if not isinstance(video, Sequence):
            raise InputError(
                f"found {type(video).__name__}, expected a path, F PIL images, uint8 [F, H, W, 3], or a list of those."
            )
        return self._encode(video)

    def _encode(self, videos: Sequence[Any]) -> Embeddings:
        step, file = self.profile.batch.opt, _VIDEO_FILES[self.backend]
        embeddings = [np.empty((0, self.bundle.manifest["backbone"]["embed"]), np.float32)]
        for start in range(0, len(videos), step):
            frames = np.stack([self._pixels(video) for video in videos[start : start + step]])
            inputs: dict[str, NDArray[Any]] = {"frames": frames}
            if self.bundle.manifest["frame_mask"]:
                inputs["frame_mask"] = np.ones(frames.shape[:2], np.bool_)
            embeddings.append(self._runner(file).infer(inputs)["video_embedding"].astype(np.float32))
        return np.concatenate(embeddings)

    def encode_text(self, texts: list[str]) -> Embeddings:
        """Embed texts: float32 [n, E], rows of unit length.

        Raises InputError for anything but a list of non-empty texts, ProfileError where the bundle's backbone
        has no tokenizer. A text above the profile's length is cut, with a TextTruncatedWarning.
        """
        if self.profile.backbone == FROM_CHECKPOINT:
            raise InputError(
                f"profile {self.profile.name} names no open_clip backbone, so its tokenizer is unknown. "
                f"Run {TEXT} on token ids instead."
            )
        with self._lock:
            if self._tokenizer is None:
                self._tokenizer = Tokenizer(self.profile.backbone, self.profile.text_length)
        ids = self._tokenizer(texts)
        if len(ids) == 0:
            return np.empty((0, self.bundle.manifest["backbone"]["embed"]), np.float32)
        return self._runner(TEXT).infer({"token_ids": ids})["text_embedding"].astype(np.float32)

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
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def load(
    bundle: str | Path | Bundle, backend: str | None = None, device: str | None = None, threads: int | None = None
) -> RetrievalModel:
    """Open a bundle for use.

    backend  "ort", which None chooses; "pt2": `video.pt2` under torch; "tensorrt": `video.plan`. With these two, texts
             go through ONNX Runtime on the CPU
    device   "cpu", "cuda" or "cuda:N"; None: the CPU, what `video.pt2` was compiled for, or the first GPU
    threads  of a processor, for one call; None: as many as it has cores. Not for "pt2", whose threads belong to the
             whole process: torch.set_num_threads
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
