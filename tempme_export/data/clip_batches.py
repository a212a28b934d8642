"""The one loader of clip batches: from any source of frames, with or without the places of what cannot be read."""

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from tempme_export.data.clip import Change
from tempme_export.data.frames import FrameSource
from tempme_export.errors import VideoError


@dataclass(frozen=True)
class ClipBatch:
    """Frames of some clips.

    indices  [b], the numbers that their source gives them
    pixels   uint8 [b, F, S, S, 3]
    failed   {index: why it could not be read}
    """

    indices: Sequence[int]
    pixels: NDArray[np.uint8]
    failed: dict[int, str]


ClipBatches = Generator[ClipBatch, None, None]


def _black(source: FrameSource, count: int) -> NDArray[np.uint8]:
    return np.zeros((count, source.frames, source.size, source.size, 3), np.uint8)


def _batch(source: FrameSource, ready: Sequence[tuple[int, NDArray[np.uint8]]], failed: dict[int, str]) -> ClipBatch:
    pixels = np.stack([clip for _, clip in ready]) if ready else _black(source, 0)
    return ClipBatch(tuple(i for i, _ in ready), pixels, failed)


def _nobody(done: int) -> None:
    """No progress."""


def readable_batches(
    source: FrameSource, selected: Sequence[int], size: int, workers: int = 0, seen: Callable[[int], None] = _nobody
) -> ClipBatches:
    """Batches of `size` clips that can be read; the last one holds what is left: fewer, or none.

    Those that cannot be read take no place; the next batch names them.
    seen  called with how many of the selected clips are done
    """
    failed: dict[int, str] = {}
    ready: list[tuple[int, NDArray[np.uint8]]] = []
    with closing(source.stream(selected, workers)) as clips:
        for done, (i, clip) in enumerate(clips, 1):
            if isinstance(clip, VideoError):
                failed[i] = str(clip)
            else:
                ready.append((i, clip))
            if len(ready) == size:
                yield _batch(source, ready, failed)
                ready, failed = [], {}
            seen(done)
    yield _batch(source, ready, failed)


def placed_batches(
    source: FrameSource,
    groups: Sequence[Sequence[int]],
    workers: int = 0,
    changes: Sequence[Change] | None = None,
) -> ClipBatches:
    """A batch of each group of clips; those that cannot be read are black.

    changes  one for each clip of all groups, as the source takes them
    """
    selected = [i for group in groups for i in group]
    with closing(source.stream(selected, workers, changes)) as clips:
        for group in groups:
            pixels, failed = _black(source, len(group)), dict[int, str]()
            for row, (i, clip) in enumerate(islice(clips, len(group))):
                if isinstance(clip, VideoError):
                    failed[i] = str(clip)
                else:
                    pixels[row] = clip
            yield ClipBatch(group, pixels, failed)
