"""The retrieval gate: does an artifact retrieve what the original path retrieves, on a user's own videos and captions?

Parity asks whether an artifact computes the same; the gate asks whether the difference matters. Both paths see the same
frames, decoded once, and the same token ids.
"""

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tempme_export.artifacts.backend import Folder
from tempme_export.data.annotations import RetrievalData, missing, open_data
from tempme_export.encoder.profile import FROM_CHECKPOINT, Profile
from tempme_export.encoder.recipe import Recipe
from tempme_export.errors import InputError
from tempme_export.evaluation.agreement import Comparison, Embedded, Metrics, Truth, compare
from tempme_export.evaluation.both_paths import Original, Progress, open_trials, read_captions, see_videos
from tempme_export.media.token_ids import TextTruncatedWarning
from tempme_export.media.tokenizer import Tokenizer
from tempme_export.parity.checks import ParityReport
from tempme_export.parity.tolerance import TOLERANCES

MIN_VIDEOS = 8
_SHOWN = 3


def _silent(stage: str, result: Any) -> None:
    """No progress wanted."""


@dataclass(frozen=True)
class GateData:
    """Data that a gate can be run on.

    data       all of it, videos without a file included
    token_ids  int64 [T, L], of its captions
    missing    indices of the videos without a file, rising
    """

    data: RetrievalData
    token_ids: NDArray[np.int64]
    missing: tuple[int, ...]

    @property
    def videos(self) -> int:
        """How many videos have a file."""
        return len(self.data.paths) - len(self.missing)

    @property
    def captions(self) -> int:
        """How many captions belong to them."""
        absent = set(self.missing)
        return sum(owner not in absent for owner in self.data.owner)

    @property
    def sha256(self) -> str:
        """Fingerprint of what is asked: ids, ranges, captions and which belongs to which; not of the videos' bytes."""
        ranges = [(clip.start, clip.end) for clip in self.data.clips]
        document = [self.data.video_ids, ranges, self.data.captions, self.data.owner, self.data.groups]
        return hashlib.sha256(json.dumps(document).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """For `--dry-run --json`."""
        missing = [self.data.video_ids[i] for i in self.missing]
        counts = {"videos": self.videos, "captions": self.captions, "missing": missing}
        return {"data": self.data.name, "sha256": self.sha256, **counts}


@dataclass(frozen=True)
class Gate:
    """What a gate found.

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
    comparisons: tuple[Comparison, ...]
    reports: tuple[ParityReport, ...]

    def to_dict(self) -> dict[str, Any]:
        """For the manifest and `--json`. A value that is not finite becomes None: JSON has no word for it."""
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


def _check_enough(name: str, videos: int, skipped: Mapping[str, str]) -> None:
    if videos >= MIN_VIDEOS:
        return
    lost = "; ".join(f"{video}: {reason}" for video, reason in list(skipped.items())[:_SHOWN])
    more = f" {len(skipped)} are left out ({lost}{'; ...' if len(skipped) > _SHOWN else ''})." if skipped else ""
    raise InputError(
        f"{name}: found {videos} videos that can be compared, expected at least {MIN_VIDEOS}: among fewer, a right "
        f"candidate is found by chance and the gate would say nothing.{more} Give it more videos, or their folder."
    )


def open_gate(gate: RetrievalData | str | Path, videos: str | Path | None, profile: Profile) -> GateData:
    """Find out whether a gate can be run, before anything is built.

    gate    what `open_data` reads, its test split; or data already read
    videos  the folder of the video files; None: where the data says

    Raises InputError for data that cannot be read, fewer than MIN_VIDEOS video files, a caption without a word, or a
    profile without a tokenizer.
    """
    if profile.backbone == FROM_CHECKPOINT:
        raise InputError(
            f"the gate reads captions, and profile {profile.name} names no open_clip backbone, so its tokenizer is "
            "unknown. Name the backbone in the profile, or export without --gate."
        )
    if not isinstance(gate, RetrievalData):
        data = open_data(gate, "test", None if videos is None else Path(videos))
    elif videos is None:
        data = gate
    else:
        raise InputError("found data that names its files, and a folder of videos beside it; give one of the two.")
    absent = tuple(missing(data))
    _check_enough(data.name, len(data.paths) - len(absent), _reasons(data, absent))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TextTruncatedWarning)  # both paths read the same beginning
        token_ids = Tokenizer(profile.backbone, profile.text_length)(data.captions)
    return GateData(data, token_ids, absent)


def _reasons(data: RetrievalData, absent: Sequence[int]) -> dict[str, str]:
    return {data.video_ids[i]: f"{data.paths[i]} is not there" for i in absent}


def run_gate(
    recipe: Recipe,
    folder: Folder,
    gate: GateData,
    device: str = "cpu",
    progress: Progress = _silent,
    allow_damaged: bool = False,
) -> Gate:
    """Retrieve with the original path and with every artifact of a folder, and compare.

    recipe         what the artifacts were built from; its reference in float32 is the original path
    folder         of the artifacts; one that does not say how it decided is judged by its embeddings alone
    allow_damaged  take damaged pictures as the decoder shows them
    progress       called with `gate videos` and `gate captions`, each with how many of how many are done

    The verdict is in `reports`; a runtime that cannot run the precision gives one that says so. Raises InputError
    where fewer than MIN_VIDEOS videos can be read, BackendError without a runtime or device.
    """
    absent = set(gate.missing)
    every = [i for i in range(len(gate.data.paths)) if i not in absent]
    present, skipped = gate.data.select(every), _reasons(gate.data, gate.missing)
    with ExitStack() as stack:
        trials, reports = open_trials(folder, recipe.plan, device, stack)
        if not trials:
            return Gate(gate.data.name, gate.sha256, 0, 0, skipped, None, (), tuple(reports))
        original = Original(recipe, device)
        video, tokens, unreadable = see_videos(recipe, present, original, trials, progress, allow_damaged)
        skipped |= {present.video_ids[i]: reason for i, reason in unreadable.items()}
        _check_enough(gate.data.name, len(video), skipped)
        kept = [i for k, i in enumerate(every) if k not in unreadable]
        data, ids = gate.data.select(kept), gate.token_ids[np.isin(gate.data.owner, kept)]
        text, *texts = read_captions(ids, [original.text, *(one.read for one in trials)], progress)
    truth, first = Truth(data.owner, data.groups), Embedded(text, video)
    comparisons = []
    for trial, read in zip(trials, texts, strict=True):
        found, decisions = Embedded(read, np.concatenate(trial.embeddings)), trial.decisions(tokens)
        comparison, checks = compare(trial.name, first, found, truth, decisions, TOLERANCES[folder.precision])
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
