"""The original path and the artifacts over the same videos and captions, side by side: each batch of frames is decoded
once, goes through every path, and is compared decision by decision before the next."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from tempme_export.artifacts import registry
from tempme_export.artifacts.backend import Backend, Folder, Reveals, Setting
from tempme_export.data.annotations import RetrievalData
from tempme_export.data.frames import decode
from tempme_export.encoder.recipe import Recipe
from tempme_export.encoder.reference import ReferenceText, ReferenceVideo, Trace
from tempme_export.encoder.schedule import Schedule
from tempme_export.errors import PrecisionError, VideoError
from tempme_export.evaluation.agreement import Decisions, Floats
from tempme_export.media.preprocess import preprocess_for
from tempme_export.parity.checks import ParityReport
from tempme_export.parity.selftest import SAFE_GAP
from tempme_export.runtime.base import Runner

_TEXTS = 64  # captions per call

Progress = Callable[[str, Any], None]


@contextmanager
def _full_float32() -> Iterator[None]:
    """On a GPU, convolutions would otherwise round to TF32, and the original path would not be float32."""
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = allowed


class Original:
    """The original path on the device that is judged, or on the CPU where torch does not have it."""

    def __init__(self, recipe: Recipe, device: str) -> None:
        self._device = device if torch.cuda.is_available() else "cpu"
        self._video = ReferenceVideo(recipe, device=self._device)
        self._text = ReferenceText(recipe, device=self._device)

    def video(self, frames: Floats) -> tuple[Floats, list[NDArray[np.int32]], Floats]:
        """[B, F, 3, S, S] -> unit [B, E], the assignments [B, clips * N] and the gaps [B, merges]."""
        trace = Trace()
        with _full_float32():
            feature = self._video.video_feature(torch.from_numpy(frames).to(self._device), trace=trace)
        assigns = [step.assign.reshape(len(frames), -1).cpu().numpy() for step in trace.steps]
        gaps = [step.gap.reshape(len(frames), -1).amin(dim=1).cpu().numpy() for step in trace.steps]
        stacked = np.stack(gaps, axis=1) if gaps else np.zeros((len(frames), 0), np.float32)
        return F.normalize(feature, dim=-1).cpu().numpy(), assigns, stacked

    def text(self, token_ids: NDArray[np.int64]) -> Floats:
        """[T, L] -> unit [T, E]."""
        with _full_float32():
            return self._text(torch.from_numpy(token_ids).to(self._device)).cpu().numpy()


@dataclass
class Trial:
    """The towers of one artifact on one backend, and what they made of the data so far.

    name      the artifact's
    backend   the runtime and its device
    video     as it is published
    deciding  the same file with its decisions as outputs; `video` itself where it has them, None where nothing has
    """

    name: str
    backend: str
    plan: Schedule
    video: Runner
    deciding: Runner | None
    text: Runner
    embeddings: list[Floats] = field(default_factory=list)
    changed: list[int] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)

    def see(self, frames: Floats, assigns: Sequence[NDArray[np.int32]], gaps: Floats) -> None:
        """Encode a batch and compare its decisions with the original path's."""
        inputs: dict[str, NDArray[Any]] = {"frames": frames}
        if "frame_mask" in self.video.inputs:
            inputs["frame_mask"] = np.ones(frames.shape[:2], np.bool_)
        found = self.video.infer(inputs)
        self.embeddings.append(found["video_embedding"].astype(np.float32))
        if self.deciding is None:
            self.changed += (gaps < SAFE_GAP).any(axis=1).astype(int).tolist()
            self.gaps += gaps.min(axis=1, initial=np.inf).tolist()
            return
        decided = found if self.deciding is self.video else self.deciding.infer(inputs)
        changed, gap = count_changes([decided[merge.assign_name] for merge in self.plan.merges], assigns, gaps)
        self.changed += changed.tolist()
        self.gaps += gap.tolist()

    def decisions(self, tokens: int) -> Decisions:
        """Of all videos seen."""
        known = self.deciding is not None
        return Decisions(np.array(self.changed, np.int64), np.array(self.gaps, np.float32), tokens, known)

    def read(self, token_ids: NDArray[np.int64]) -> Floats:
        """[T, L] -> unit [T, E]."""
        return self.text.infer({"token_ids": token_ids})["text_embedding"].astype(np.float32)


def count_changes(
    found: Sequence[NDArray[Any]], expected: Sequence[NDArray[Any]], gaps: Floats
) -> tuple[NDArray[np.int64], Floats]:
    """Compare the decisions of a batch of B videos.

    found     one [B * clips, N] for each merge
    expected  one [B, clips * N] for each merge
    gaps      [B, merges]: what the original decided by
    Returns the tokens that went to another row, int64 [B], and the gap of the first merge where a video did otherwise,
    float32 [B], 0 where none did.
    """
    changed, first = np.zeros(len(gaps), np.int64), np.zeros(len(gaps), np.float32)
    for k, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        differ = (ours.reshape(theirs.shape) != theirs).sum(axis=1)
        first = np.where((changed == 0) & (differ > 0), gaps[:, k], first).astype(np.float32)
        changed += differ
    return changed, first


def open_trials(
    folder: Folder, plan: Schedule, device: str, stack: ExitStack
) -> tuple[list[Trial], list[ParityReport]]:
    """The video artifacts of a folder on the backends that judge them, and a report on each that cannot be run in the
    folder's precision."""
    names, text = tuple(merge.assign_name for merge in plan.merges), registry.text_backend()

    def open_video(backend: Backend, where: str) -> tuple[Runner, Runner | None]:
        video = stack.enter_context(backend.open(folder, Setting(where)))
        if backend.reveals is Reveals.NOTHING and names:
            return video, None
        if backend.reveals is Reveals.VALUES and names:
            return video, stack.enter_context(backend.open(folder, Setting(where, expose=names)))
        return video, video

    trials, reports = [], []
    for backend in registry.judging(folder, device):
        if backend.artifact.tower == "text":
            continue
        where, name = backend.device_beside(device), backend.artifact.file
        said = backend.describe(folder, where)
        try:
            video, deciding = open_video(backend, where)
            reader = stack.enter_context(text.open(folder, Setting(text.device_beside(device))))
        except PrecisionError as error:
            if folder.precision == "fp32":
                raise
            reports.append(ParityReport(f"gate {name}", said, (), reason=str(error)))
        else:
            trials.append(Trial(name, said, plan, video, deciding, reader))
    return trials, reports


def see_videos(
    recipe: Recipe,
    data: RetrievalData,
    original: Original,
    trials: Sequence[Trial],
    progress: Progress,
    allow_damaged: bool = False,
) -> tuple[Floats, int, dict[int, str]]:
    """Every video through every path, a batch at a time.

    Returns the original's embeddings [V, E], the tokens per video over all merges, and {index: reason} of the videos
    that cannot be read, which are not among the V.
    """
    preprocess, batch, last = preprocess_for(recipe), recipe.profile.batch.opt, len(data.clips) - 1
    embeddings, unreadable, tokens, pending = [], {}, 0, []
    with closing(decode(data.clips, recipe.profile.frames, preprocess, 0, allow_damaged)) as decoded:
        for i, found in decoded:
            if isinstance(found, VideoError):
                unreadable[i] = str(found)
            else:
                pending.append(preprocess.normalise(found))
            if pending and (len(pending) == batch or i == last):
                frames = np.stack(pending)
                pending.clear()
                embedding, assigns, gaps = original.video(frames)
                embeddings.append(embedding)
                tokens = sum(assign.shape[1] for assign in assigns)
                for trial in trials:
                    trial.see(frames, assigns, gaps)
            progress("gate videos", (i + 1, last + 1))
    return np.concatenate([np.empty((0, recipe.backbone.embed), np.float32), *embeddings]), tokens, unreadable


def read_captions(
    token_ids: NDArray[np.int64], readers: Sequence[Callable[[NDArray[np.int64]], Floats]], progress: Progress
) -> list[Floats]:
    """Every text tower's embeddings [T, E]. Equal captions are read once, so that they tie exactly in every path."""
    distinct, where = np.unique(token_ids, axis=0, return_inverse=True)
    parts: list[list[Floats]] = [[] for _ in readers]
    for start in range(0, len(distinct), _TEXTS):
        ids = distinct[start : start + _TEXTS]
        for read, part in zip(readers, parts, strict=True):
            part.append(read(ids))
        progress("gate captions", (start + len(ids), len(distinct)))
    return [np.concatenate(part)[where.reshape(-1)] for part in parts]
