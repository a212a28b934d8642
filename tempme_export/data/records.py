"""Videos and what is said of them, whatever file they were read from."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tempme_export.data.clip import Clip
from tempme_export.errors import InputError

_SHOWN = 5


@dataclass(frozen=True)
class RetrievalData:
    """Videos and what is said of them. Every video has a caption, and every caption a video.

    name       for reports, e.g. "msrvtt 1k-A test"
    video_ids  unique
    clips      one per video; the file need not be there, see `missing`
    captions   not empty, runs of white space made one space
    owner      captions[i] belongs to video_ids[owner[i]]
    groups     one per video: candidates of one group differ in one respect only; None where the data has none
    notes      for people: how the files were read, where that is not obvious

    Raises InputError when any of this does not hold, or when there is no video.
    """

    name: str
    video_ids: tuple[str, ...]
    clips: tuple[Clip, ...]
    captions: tuple[str, ...]
    owner: tuple[int, ...]
    groups: tuple[str, ...] | None = None
    notes: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        n_videos = len(self.video_ids)
        if n_videos == 0:
            raise InputError(f"{self.name}: found no video, expected at least 1. Give other annotations or videos.")
        counts = {"video ids": n_videos, "clips": len(self.clips)}
        if self.groups is not None:
            counts["groups"] = len(self.groups)
        if len(set(counts.values())) > 1 or len(self.captions) != len(self.owner):
            found = ", ".join(f"{count} {what}" for what, count in counts.items())
            raise InputError(
                f"{self.name}: found {found}, {len(self.captions)} captions and {len(self.owner)} owners, "
                "expected as many clips and groups as video ids, and as many owners as captions."
            )
        if len(set(self.video_ids)) < n_videos:
            raise InputError(
                f"{self.name}: found video ids twice: {some(repeated(self.video_ids))}, expected each once."
            )
        if not set(self.owner) <= set(range(n_videos)):
            strange = [str(owner) for owner in self.owner if not 0 <= owner < n_videos]
            raise InputError(f"{self.name}: found captions of videos {some(strange)}, expected 0 to {n_videos - 1}.")
        silent = [self.video_ids[i] for i in sorted(set(range(n_videos)) - set(self.owner))]
        if silent:
            raise InputError(f"{self.name}: found videos without a caption: {some(silent)}, expected at least 1 each.")
        empty = [str(i) for i, caption in enumerate(self.captions) if not caption.strip()]
        if empty:
            raise InputError(f"{self.name}: found empty captions at {some(empty)}, expected words.")

    @property
    def paths(self) -> tuple[Path, ...]:
        """The file of each video."""
        return tuple(clip.path for clip in self.clips)

    def select(self, keep: Sequence[int]) -> "RetrievalData":
        """The videos at the indices `keep`, in that order, with their captions in the order they have here.

        Raises InputError for an index that is out of range or there twice, and when `keep` is empty.
        """
        n_videos = len(self.video_ids)
        strange = [str(i) for i in keep if not 0 <= i < n_videos]
        if strange:
            raise InputError(f"{self.name}: found video indices {some(strange)}, expected 0 to {n_videos - 1}.")
        if len(set(keep)) < len(keep):
            twice = some(repeated([str(i) for i in keep]))
            raise InputError(f"{self.name}: found video indices twice: {twice}, expected each once.")
        place = {old: new for new, old in enumerate(keep)}
        kept = [i for i, owner in enumerate(self.owner) if owner in place]
        return replace(
            self,
            video_ids=tuple(self.video_ids[i] for i in keep),
            clips=tuple(self.clips[i] for i in keep),
            captions=tuple(self.captions[i] for i in kept),
            owner=tuple(place[self.owner[i]] for i in kept),
            groups=None if self.groups is None else tuple(self.groups[i] for i in keep),
        )


def gather(
    name: str,
    captions: Mapping[str, Sequence[str]],
    clips: Mapping[str, Clip],
    groups: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
) -> RetrievalData:
    """Make a record of {video id: its captions}, in that order; a video's captions become neighbours."""
    ids = tuple(captions)
    return RetrievalData(
        name=name,
        video_ids=ids,
        clips=tuple(clips[one] for one in ids),
        captions=tuple(caption for one in ids for caption in captions[one]),
        owner=tuple(i for i, one in enumerate(ids) for _ in captions[one]),
        groups=None if groups is None else tuple(groups[one] for one in ids),
        notes=tuple(notes),
    )


def missing(data: RetrievalData) -> list[int]:
    """Indices, rising, of the videos whose file is not there."""
    return [i for i, path in enumerate(data.paths) if not os.path.isfile(path)]


def clean(text: str) -> str:
    """The text without outer white space, inner runs of it made one space."""
    return " ".join(text.split())


def some(items: Sequence[str], between: str = ", ") -> str:
    """The first few items of a list, and how many there are when they are not all."""
    shown = between.join(items[:_SHOWN])
    return shown if len(items) <= _SHOWN else f"{shown} and {len(items) - _SHOWN} more, {len(items)} in all"


def repeated(items: Sequence[str]) -> list[str]:
    """Items that occur more than once, each once, in the order of first occurrence."""
    counts: dict[str, int] = {}
    for item in items:
        counts[item] = counts.get(item, 0) + 1
    return [item for item, count in counts.items() if count > 1]
