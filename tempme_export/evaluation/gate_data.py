"""Data of a retrieval gate: a user's own videos and captions, found fit for one before anything is built."""

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tempme_export.data.annotations import RetrievalData, missing, open_data
from tempme_export.encoder.profile import FROM_CHECKPOINT, Profile
from tempme_export.errors import InputError
from tempme_export.media.token_ids import TextTruncatedWarning
from tempme_export.media.tokenizer import Tokenizer

MIN_VIDEOS = 8
_SHOWN = 3


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
    def present(self) -> tuple[int, ...]:
        """Indices of the videos with a file, rising."""
        absent = set(self.missing)
        return tuple(i for i in range(len(self.data.paths)) if i not in absent)

    @property
    def videos(self) -> int:
        """Number of videos that have a file."""
        return len(self.data.paths) - len(self.missing)

    @property
    def captions(self) -> int:
        """Number of captions of those videos."""
        absent = set(self.missing)
        return sum(owner not in absent for owner in self.data.owner)

    @property
    def sha256(self) -> str:
        """Fingerprint of what is asked: ids, ranges, captions and which belongs to which; not of the videos' bytes."""
        ranges = [(clip.start, clip.end) for clip in self.data.clips]
        document = [self.data.video_ids, ranges, self.data.captions, self.data.owner, self.data.groups]
        return hashlib.sha256(json.dumps(document).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Values for `--dry-run --json`."""
        missing = [self.data.video_ids[i] for i in self.missing]
        counts = {"videos": self.videos, "captions": self.captions, "missing": missing}
        return {"data": self.data.name, "sha256": self.sha256, **counts}


def check_enough(name: str, videos: int, skipped: Mapping[str, str]) -> None:
    """Raise InputError, with some of the reasons in `skipped`, for fewer than MIN_VIDEOS videos."""
    if videos >= MIN_VIDEOS:
        return
    lost = "; ".join(f"{video}: {reason.rstrip('.')}" for video, reason in list(skipped.items())[:_SHOWN])
    more = f" {len(skipped)} are left out ({lost}{'; ...' if len(skipped) > _SHOWN else ''})." if skipped else ""
    raise InputError(
        f"{name}: found {videos} videos that can be compared, expected at least {MIN_VIDEOS}: among fewer, a right "
        f"candidate is found by chance and the gate would say nothing.{more} Give it more videos, or their folder."
    )


def open_gate(gate: RetrievalData | str | Path, videos: str | Path | None, profile: Profile) -> GateData:
    """The data of a gate, found fit for one before anything is built.

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
        raise InputError(
            "found data that names its files, and a folder of videos beside it, expected one of them. "
            "Leave the folder out."
        )
    absent = tuple(missing(data))
    check_enough(data.name, len(data.paths) - len(absent), absent_files(data, absent))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TextTruncatedWarning)  # both paths read the same beginning
        token_ids = Tokenizer(profile.backbone, profile.text_length)(data.captions)
    return GateData(data, token_ids, absent)


def absent_files(data: RetrievalData, absent: Sequence[int]) -> dict[str, str]:
    """Reasons why the videos of these indices are left out."""
    return {data.video_ids[i]: f"{data.paths[i]} is not there" for i in absent}
