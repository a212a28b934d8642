"""The retrieval gate: does an artifact retrieve what the original path retrieves, on a user's own videos and captions?

Parity asks whether an artifact computes the same; the gate asks whether the difference matters. Both paths see the same
frames, decoded once a batch, and the same token ids.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tempme_export.artifacts.backend import Folder
from tempme_export.data.clip_batches import readable_batches
from tempme_export.data.frames import FrameFiles, FrameSource
from tempme_export.encoder.recipe import Recipe
from tempme_export.evaluation.agreement import Embedded, Floats, Metrics, RetrievalComparison, Truth, compare
from tempme_export.evaluation.gate_data import GateData, absent_files, check_enough
from tempme_export.evaluation.original import Original
from tempme_export.evaluation.trials import Trial, open_trials
from tempme_export.media.preprocess import preprocess_for
from tempme_export.parity.checks import ParityReport
from tempme_export.parity.tolerance import TOLERANCES, Tolerance
from tempme_export.progress import SILENT, Progress

_TEXTS = 64  # captions per call


@dataclass(frozen=True)
class Gate:
    """Result of a retrieval gate.

    videos, captions  compared
    skipped           videos left out, each with the reason
    original          None where no artifact could run
    comparisons       one for each artifact that ran
    reports           one for each artifact
    """

    data: str
    sha256: str
    videos: int
    captions: int
    skipped: dict[str, str]
    original: Metrics | None
    comparisons: tuple[RetrievalComparison, ...]
    reports: tuple[ParityReport, ...]

    def to_dict(self) -> dict[str, Any]:
        """Values for the manifest and `--json`. One that is not finite becomes None: JSON has no word for it."""
        original = None if self.original is None else {name: one.to_dict() for name, one in self.original.items()}
        return {
            "data": self.data,
            "sha256": self.sha256,
            "videos": self.videos,
            "captions": self.captions,
            "skipped": self.skipped,
            "original": original,
            "comparisons": [_finite(comparison.to_dict()) for comparison in self.comparisons],
            "reports": [report.to_dict() for report in self.reports],
        }


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not np.isfinite(value) else value


def run_gate(
    recipe: Recipe,
    folder: Folder,
    gate: GateData,
    device: str = "cpu",
    progress: Progress = SILENT,
    allow_damaged: bool = False,
) -> Gate:
    """Retrieve with the original path and with every artifact of a folder, and compare.

    recipe         what the artifacts were built from; its reference in float32 is the original path
    folder         of the artifacts; one that does not say how it decided is compared by its embeddings alone
    allow_damaged  take damaged pictures as the decoder shows them
    progress       hears of two steps: the videos and the captions

    The verdict is in `reports`; a runtime that cannot run the precision gives one that says so. Raises InputError
    where fewer than MIN_VIDEOS videos can be read, BackendError without a runtime or device.
    """
    present = gate.data.select(gate.present)
    with ExitStack() as stack:
        trials, reports = open_trials(folder, recipe.schedule, device, stack)
        if not trials:
            skipped = absent_files(gate.data, gate.missing)
            return Gate(gate.data.name, gate.sha256, 0, 0, skipped, None, (), tuple(reports))
        source = FrameFiles(present.clips, recipe.profile.frames, preprocess_for(recipe), allow_damaged)
        tolerance = TOLERANCES[folder.precision]
        found = compare_paths(recipe, gate, source, Original(recipe, device), trials, tolerance, progress)
    return replace(found, reports=(*reports, *found.reports))


def compare_paths(
    recipe: Recipe,
    gate: GateData,
    source: FrameSource,
    original: Original,
    trials: Sequence[Trial],
    tolerance: Tolerance,
    progress: Progress = SILENT,
) -> Gate:
    """Run the gate on paths that are open already; `source` gives the frames of the videos that are present."""
    present, skipped = gate.data.select(gate.present), absent_files(gate.data, gate.missing)
    video, tokens, unreadable = see_videos(recipe, source, original, trials, progress)
    skipped |= {present.video_ids[i]: reason for i, reason in unreadable.items()}
    check_enough(gate.data.name, len(video), skipped)
    kept = [i for k, i in enumerate(gate.present) if k not in unreadable]
    data, ids = gate.data.select(kept), gate.token_ids[np.isin(gate.data.owner, kept)]
    text, *texts = read_captions(ids, [original.text, *(one.read for one in trials)], progress)
    truth, first = Truth(data.owner, data.groups), Embedded(text, video)
    comparisons, reports = [], []
    for trial, read in zip(trials, texts, strict=True):
        found, decisions = Embedded(read, np.concatenate(trial.embeddings)), trial.decisions(tokens)
        comparison, checks = compare(trial.name, first, found, truth, decisions, tolerance)
        comparisons.append(comparison)
        reports.append(ParityReport(f"gate {trial.name}", trial.backend, checks))
    return Gate(
        data=gate.data.name,
        sha256=gate.sha256,
        videos=len(data.clips),
        captions=len(data.captions),
        skipped=skipped,
        original=truth.metrics(first),
        comparisons=tuple(comparisons),
        reports=tuple(reports),
    )


def see_videos(
    recipe: Recipe, source: FrameSource, original: Original, trials: Sequence[Trial], progress: Progress
) -> tuple[Floats, int, dict[int, str]]:
    """Every video through every path, a batch at a time.

    Returns the original's embeddings [V, E], the tokens per video over all merges, and {index: reason} of the videos
    that cannot be read, which are not among the V.
    """
    preprocess, total = preprocess_for(recipe), len(source)
    embeddings, unreadable, tokens = [np.empty((0, recipe.backbone.embed), np.float32)], dict[int, str](), 0
    with (
        progress.step("gate: videos through both paths", total, "videos") as step,
        closing(readable_batches(source, range(total), recipe.profile.batch.opt, seen=step.advance)) as batches,
    ):
        for clips in batches:
            unreadable |= clips.failed
            if not clips.indices:
                continue
            frames = np.stack([preprocess.normalise(clip) for clip in clips.pixels])
            embedding, assigns, gaps = original.video(frames)
            embeddings.append(embedding)
            tokens = sum(assign.shape[1] for assign in assigns)
            for trial in trials:
                trial.update(frames, assigns, gaps)
    return np.concatenate(embeddings), tokens, unreadable


def read_captions(
    token_ids: NDArray[np.int64], readers: Sequence[Callable[[NDArray[np.int64]], Floats]], progress: Progress
) -> list[Floats]:
    """Every text tower's embeddings [T, E]. Equal captions are read once, so that they tie exactly in every path."""
    distinct, where = np.unique(token_ids, axis=0, return_inverse=True)
    parts: list[list[Floats]] = [[] for _ in readers]
    with progress.step("gate: captions through both paths", len(distinct), "captions") as step:
        for start in range(0, len(distinct), _TEXTS):
            ids = distinct[start : start + _TEXTS]
            for read, part in zip(readers, parts, strict=True):
                part.append(read(ids))
            step.advance(start + len(ids))
    return [np.concatenate(part)[where.reshape(-1)] for part in parts]
