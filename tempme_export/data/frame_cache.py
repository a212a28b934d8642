"""Frames of many videos kept on disk, decoded once."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tempme_export.data.clip import Change, Clip
from tempme_export.data.clip_rows import ClipRows
from tempme_export.data.decoding import Decoded, decode, made_by
from tempme_export.errors import InputError, VideoError
from tempme_export.media.preprocess import Preprocess
from tempme_export.progress import SILENT, Progress


@dataclass(frozen=True, eq=False)
class FrameCache:
    """Frames kept on disk, decoded once.

    The folder belongs to the number of frames, the image size and what decoded and resized them; mean and standard
    deviation are free. It may hold other clips too: each is found by its path and range.

    rows  uint8 [n, F, S, S, 3]
    """

    clips: tuple[Clip, ...]
    frames: int
    preprocess: Preprocess
    allow_damaged: bool
    rows: ClipRows

    @classmethod
    def open(
        cls, folder: Path, clips: Sequence[Clip], frames: int, preprocess: Preprocess, allow_damaged: bool = False
    ) -> "FrameCache":
        """Open a cache, or make one, with a place for each of the clips.

        Raises InputError when the folder holds something else, or frames of other kinds; ExportError when the disk has
        no room for all frames; BackendError without PyAV.
        """
        shape = (frames, preprocess.size, preprocess.size, 3)
        rows = ClipRows(folder, made_by(frames, preprocess.size), clips, shape, "uint8", allow_damaged)
        return cls(tuple(clips), frames, preprocess, allow_damaged, rows)

    @staticmethod
    def estimate(n: int, frames: int, size: int) -> int:
        """Bytes of disk for n clips."""
        return ClipRows.estimate(n, (frames, size, size, 3), "uint8")

    def fill(self, workers: int, progress: Progress = SILENT, retry_failed: bool = False) -> None:
        """Decode what is missing and what was replaced; what is there already stays.

        workers       processes; 0 decodes in this one
        progress      hears of one step, whose amount counts what was there already and what failed
        retry_failed  try those again that failed earlier
        Raises InputError when another process is filling this cache, and what `decode` raises.
        """
        with self.rows.locked():
            todo = self.rows.todo(retry_failed)
            done = len(self) - len(todo)
            selected = [self.clips[i] for i in todo]
            with (
                progress.step("decoding videos", len(self), "videos", done) as step,
                closing(decode(selected, self.frames, self.preprocess, workers, self.allow_damaged)) as answers,
            ):
                for place, answer in answers:
                    if isinstance(answer, VideoError):
                        self.rows.fail(todo[place], str(answer))
                    else:
                        self.rows.write(todo[place], answer)
                    step.advance(done + place + 1)

    @property
    def size(self) -> int:
        """Side of a frame in pixels."""
        return self.preprocess.size

    @property
    def failures(self) -> dict[int, str]:
        """Problem of each clip that could not be read, by its index."""
        return self.rows.failures

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, i: int) -> NDArray[np.uint8]:
        """A copy of one clip's frames. Raises VideoError for a failed one, InputError for an empty one, IndexError."""
        if not 0 <= i < len(self):
            raise IndexError(f"clip {i} of {len(self)}")
        if self.rows.filled(i):
            return self.rows.read(i)
        if i in self.failures:
            raise VideoError(self.failures[i])
        raise InputError(f"{self.clips[i]}: found no frames in {self.rows.folder} yet, expected them. Fill it first.")

    def stream(self, selected: Sequence[int], workers: int = 0, changes: Sequence[Change] | None = None) -> Decoded:
        """Copies of the selected clips' frames, or why they could not be read. Takes no changes: it holds them resized.

        Raises InputError for an empty clip, IndexError.
        """
        assert changes is None, "refused by the settings"
        for i in selected:
            yield i, self._answer(i)

    def _answer(self, i: int) -> NDArray[np.uint8] | VideoError:
        try:
            return self[i]
        except VideoError as error:
            return error
