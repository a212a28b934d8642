"""The frames of a set of videos, batch by batch: from a cache on disk, or decoded when they are needed."""

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from tempme_export.data.clip import Clip
from tempme_export.data.frames import ChangedClip, FrameSource, decode
from tempme_export.errors import VideoError
from tempme_export.media.preprocess import Preprocess

Change = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]  # frames [F, H, W, 3] -> the same

T = TypeVar("T")
_POLL = 0.1  # seconds between looks whether anybody still wants the next item


@dataclass(frozen=True)
class Clips:
    """Some videos' frames: uint8 [b, F, S, S, 3], and why rows could not be read. Those rows are black."""

    pixels: NDArray[np.uint8]
    failed: dict[int, str]


@dataclass(frozen=True)
class Footage:
    """Videos by number.

    videos         where each one lies
    cache          holds the frames of these videos; None: files are decoded at every use
    allow_damaged  where files are decoded, take damaged pictures as the decoder shows them
    """

    videos: Sequence[Clip]
    frames: int
    preprocess: Preprocess
    workers: int
    cache: FrameSource | None = None
    allow_damaged: bool = False

    def batches(
        self, wanted: Sequence[NDArray[np.int64]], changes: Sequence[Sequence[Change]] | None = None
    ) -> Iterator[Clips]:
        """The frames of each group of videos, in order.

        changes  one for each video wanted: what is done to its frames before they are resized. A cache, whose frames
                 are resized already, takes none
        """
        if self.cache is None:
            return self._decoded(wanted, changes)
        assert changes is None, "refused by the settings"
        cache = self.cache
        return (Clips(cache.batch(videos), {}) for videos in wanted)

    def _gathered(self, videos: Iterable[NDArray[np.uint8] | VideoError], count: int) -> Clips:
        size = self.preprocess.size
        pixels = np.empty((count, self.frames, size, size, 3), np.uint8)
        failed: dict[int, str] = {}
        for row, video in enumerate(videos):
            if isinstance(video, VideoError):
                failed[row], pixels[row] = str(video), 0
            else:
                pixels[row] = video
        return Clips(pixels, failed)

    def _decoded(
        self, wanted: Sequence[NDArray[np.int64]], changes: Sequence[Sequence[Change]] | None
    ) -> Iterator[Clips]:
        clips = [self.videos[int(video)] for videos in wanted for video in videos]
        if changes is not None:
            clips = [
                ChangedClip(clip.path, clip.start, clip.end, change=change)
                for clip, change in zip(clips, chain.from_iterable(changes), strict=True)
            ]
        with closing(decode(clips, self.frames, self.preprocess, self.workers, self.allow_damaged)) as decoded:
            for videos in wanted:
                yield self._gathered((next(decoded)[1] for _ in videos), len(videos))


@dataclass(frozen=True)
class _Raised:
    error: BaseException


class _End:
    """No more items."""


def prefetch(items: Iterator[T], ahead: int = 2) -> Generator[T, None, None]:
    """The same items, made in a thread up to `ahead` before they are asked for; its errors are raised here.

    Closing it stops the thread and closes `items`.
    """
    ready: queue.Queue[T | _Raised | _End] = queue.Queue(maxsize=ahead)
    stopped = threading.Event()

    def put(item: T | _Raised | _End) -> None:
        while not stopped.is_set():
            try:
                return ready.put(item, timeout=_POLL)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                put(item)
                if stopped.is_set():
                    break
            put(_End())
        except BaseException as error:
            put(_Raised(error))
        finally:
            if isinstance(items, Generator):
                items.close()

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while not isinstance(item := ready.get(), _End):
            if isinstance(item, _Raised):
                raise item.error
            yield item
    finally:
        stopped.set()
        thread.join()
