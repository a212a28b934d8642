"""Sources of the frames of numbered clips."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol

from tempme_export.data.clip import Change, ChangedClip, Clip
from tempme_export.data.decoding import Decoded, decode
from tempme_export.media.preprocess import Preprocess


class FrameSource(Protocol):
    """Frames of numbered clips, as uint8 [F, S, S, 3] each."""

    @property
    def frames(self) -> int:
        """F, frames per clip."""

    @property
    def size(self) -> int:
        """S, the side of a frame in pixels."""

    @property
    def allow_damaged(self) -> bool:
        """True where damaged pictures are among them."""

    def __len__(self) -> int:
        """Number of clips."""

    def stream(self, selected: Sequence[int], workers: int = 0, changes: Sequence[Change] | None = None) -> Decoded:
        """The frames of the selected clips in order, copies, each with its number; a VideoError where there are none.

        workers  processes, where files are decoded; 0: this one
        changes  what is done to each one's frames before they are resized
        """


@dataclass(frozen=True, eq=False)
class FrameFiles:
    """Frames decoded whenever they are asked for."""

    clips: Sequence[Clip]
    frames: int
    preprocess: Preprocess
    allow_damaged: bool = False

    @property
    def size(self) -> int:
        """Side of a frame in pixels."""
        return self.preprocess.size

    def __len__(self) -> int:
        return len(self.clips)

    def stream(self, selected: Sequence[int], workers: int = 0, changes: Sequence[Change] | None = None) -> Decoded:
        """Decode the selected clips, in order. Raises what `decode` raises, and IndexError."""
        clips = [self.clips[i] for i in selected]
        if changes is not None:
            clips = [
                ChangedClip(clip.path, clip.start, clip.end, change=change)
                for clip, change in zip(clips, changes, strict=True)
            ]
        with closing(decode(clips, self.frames, self.preprocess, workers, self.allow_damaged)) as decoded:
            for place, answer in decoded:
                yield selected[place], answer
