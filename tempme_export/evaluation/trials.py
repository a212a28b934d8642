"""The video artifacts of a folder, each on a backend that verifies it, and what it decides beside the original path."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tempme_export.artifacts import registry
from tempme_export.artifacts.backend import Backend, Folder, Reveals, Setting
from tempme_export.encoder.schedule import Schedule
from tempme_export.errors import PrecisionError
from tempme_export.evaluation.agreement import Decisions, Floats
from tempme_export.parity.checks import ParityReport
from tempme_export.parity.selftest import SAFE_GAP
from tempme_export.runtime.base import Runner


@dataclass
class Trial:
    """The towers of one artifact on one backend, and what they made of the data so far.

    name         the artifact's
    backend      the runtime and its device
    video        as it is published
    with_merges  the same file with its decisions as outputs; `video` itself where it has them, None where nothing has
    """

    name: str
    backend: str
    schedule: Schedule
    video: Runner
    with_merges: Runner | None
    text: Runner
    embeddings: list[Floats] = field(default_factory=list)
    changed: list[int] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)

    def update(self, frames: Floats, assigns: Sequence[NDArray[np.int32]], gaps: Floats) -> None:
        """Encode a batch and compare its decisions with the original path's."""
        inputs: dict[str, NDArray[Any]] = {"frames": frames}
        if "frame_mask" in self.video.inputs:
            inputs["frame_mask"] = np.ones(frames.shape[:2], np.bool_)
        found = self.video.infer(inputs)
        self.embeddings.append(found["video_embedding"].astype(np.float32))
        if self.with_merges is None:
            self.changed += (gaps < SAFE_GAP).any(axis=1).astype(int).tolist()
            self.gaps += gaps.min(axis=1, initial=np.inf).tolist()
            return
        decided = found if self.with_merges is self.video else self.with_merges.infer(inputs)
        changed, gap = count_changes([decided[merge.assign_name] for merge in self.schedule.merges], assigns, gaps)
        self.changed += changed.tolist()
        self.gaps += gap.tolist()

    def decisions(self, tokens: int) -> Decisions:
        """Merge decisions of all videos seen."""
        known = self.with_merges is not None
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
    folder: Folder, schedule: Schedule, device: str, stack: ExitStack
) -> tuple[list[Trial], list[ParityReport]]:
    """The video artifacts of a folder on the backends that verify them, and a report on each that cannot be run in the
    folder's precision."""
    names, text = tuple(merge.assign_name for merge in schedule.merges), registry.text_backend()

    def open_video(backend: Backend, where: str) -> tuple[Runner, Runner | None]:
        video = stack.enter_context(backend.open(folder, Setting(where)))
        if backend.reveals is Reveals.NOTHING and names:
            return video, None
        if backend.reveals is Reveals.VALUES and names:
            return video, stack.enter_context(backend.open(folder, Setting(where, extra_outputs=names)))
        return video, video

    trials, reports = [], []
    for backend in registry.verifying(folder, device):
        if backend.artifact.tower == "text":
            continue
        where, name = backend.device_or_usual(device), backend.artifact.file
        said = backend.describe(folder, where)
        try:
            video, with_merges = open_video(backend, where)
            reader = stack.enter_context(text.open(folder, Setting(text.device_or_usual(device))))
        except PrecisionError as error:
            if folder.precision == "fp32":
                raise
            reports.append(ParityReport(f"gate {name}", said, (), reason=str(error)))
        else:
            trials.append(Trial(name, said, schedule, video, with_merges, reader))
    return trials, reports
