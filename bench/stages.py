"""From video file to embedding: candidates side by side by the one protocol, and which stage of each is the limit.

A call takes one batch of videos through every stage and keeps the time of each, so that whatever disturbs the machine
meets all stages alike. A stage must return only when its work is done: a GPU backend synchronises before it returns.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tempme_export.bench.core.bootstrap import bootstrap_ratio
from tempme_export.bench.core.protocol import Clock, Durations, Progress, Protocol, compare
from tempme_export.bench.core.timing import Timing, TimingComparison, shortfall
from tempme_export.errors import UnstableError, UsageError
from tempme_export.files import scratch_folder

if TYPE_CHECKING:
    from tempme_export.encoder.recipe import Recipe

DECODE, PREPROCESS, TRANSFER, ENCODE = "decode", "preprocess", "transfer", "encode"

_LISTED = 3  # videos described one by one
_UNEVEN = 1.25  # a mean so many times the median is worth a word

Way = tuple[Callable[[NDArray[np.float32]], Any] | None, Callable[[Any], object]]
"""A copy of a batch float32 [B, F, 3, S, S] to the device, None where there is nothing to copy, as on a CPU; and what
encodes what that returned, or the batch. Both synchronised."""


@dataclass(frozen=True)
class Source:
    """Steps by which the product turns a file into the encoder's input.

    decode      path -> uint8 [F, H, W, 3], RGB
    preprocess  those -> float32 [F, 3, S, S]
    describe    path -> what the video is, in words
    """

    decode: Callable[[Path], NDArray[np.uint8]]
    preprocess: Callable[[NDArray[np.uint8]], NDArray[np.float32]]
    describe: Callable[[Path], str]


@dataclass(frozen=True)
class StageRow:
    """One stage. Milliseconds are of one video: those of a round over the videos in it.

    share         of the sum of the medians, 0 to 1
    videos_per_s  were it the only stage
    """

    stage: str
    p50_ms: float
    p90_ms: float
    share: float
    videos_per_s: float


@dataclass(frozen=True)
class StageTable:
    """Every stage of one candidate, in the order a video passes them.

    limit                    the slowest stage by its median; `notes` say where that is uncertain
    sequential_videos_per_s  one stage after the other
    overlapped_videos_per_s  the bound where the stages work on different videos at once: the slowest stage's rate
    videos                   how many different ones
    notes                    what was left out, assumed or uncertain, in words
    """

    candidate: str
    batch: int
    rows: tuple[StageRow, ...]
    limit: str
    sequential_videos_per_s: float
    overlapped_videos_per_s: float
    videos: int
    notes: tuple[str, ...]


def source_for(recipe: "Recipe", allow_damaged: bool = False) -> Source:
    """Decoding and preprocessing as an exported bundle does them for this recipe.

    allow_damaged  take damaged pictures as the decoder shows them
    """
    from tempme_export.media.preprocess import preprocess_for
    from tempme_export.media.video import read_frames

    frames = recipe.profile.frames
    return Source(
        lambda path: read_frames(path, frames, allow_damaged=allow_damaged), preprocess_for(recipe), describe_video
    )


@contextmanager
def rendered_clip(seconds: int = 10, rate: int = 25, size: tuple[int, int] = (320, 240)) -> Iterator[Path]:
    """A video to measure with where none is given, which is gone afterwards. Raises BackendError without PyAV."""
    from tempme_export.media.render import render_clip

    with scratch_folder("tempme-stages") as folder:
        path = folder / "rendered.mp4"
        render_clip(path, seconds=seconds, fps=rate, size=size)
        yield path


def describe_video(path: Path) -> str:
    """`NAME: CODEC, 320x240, 10 s, 250 frames`. Raises VideoError for what is not a whole video."""
    from tempme_export.media.video import check_video
    from tempme_export.media.video_stream import import_av

    frames = check_video(path)
    with import_av().open(f"file:{path}") as container:
        stream = container.streams.video[0]
        codec, width, height = stream.codec_context.name, stream.width, stream.height
        rate = float(stream.average_rate or stream.guessed_rate)
    return f"{path.name}: {codec}, {width}x{height}, {frames / rate:.3g} s, {frames} frames"


class _Pass:
    """Takes one batch after the other through all stages, going round the videos.

    laps         [calls, stages] seconds, in the order of the calls
    first_reads  path -> seconds of its first decoding, by whichever candidate came first
    """

    def __init__(
        self, way: Way, source: Source, videos: Sequence[Path], batch: int, clock: Clock, first_reads: dict[Path, float]
    ) -> None:
        self.transfer, self.encode = way
        self.source, self.videos, self.batch, self.clock = source, videos, batch, clock
        self.stages = [DECODE, PREPROCESS, *([] if self.transfer is None else [TRANSFER]), ENCODE]
        self.first_reads, self.laps = first_reads, list[Durations]()
        self._starts = count(0, batch)

    def __call__(self) -> None:
        start = next(self._starts)
        decoded = []
        times = [self.clock()]
        for i in range(start, start + self.batch):
            path, began = self.videos[i % len(self.videos)], self.clock()
            decoded.append(self.source.decode(path))
            self.first_reads.setdefault(path, self.clock() - began)
        times.append(self.clock())
        inputs: Any = np.stack([self.source.preprocess(frames) for frames in decoded])
        times.append(self.clock())
        if self.transfer is not None:
            inputs = self.transfer(inputs)
            times.append(self.clock())
        self.encode(inputs)
        times.append(self.clock())
        self.laps.append(np.diff(times))


def compare_stages(
    ways: Mapping[str, Way],
    source: Source,
    videos: Sequence[Path],
    batch: int,
    protocol: Protocol,
    *,
    clock: Clock = time.perf_counter,
    progress: Progress = lambda _: None,
) -> tuple[TimingComparison, tuple[StageTable, ...]]:
    """Time the whole way of every candidate over the same videos, batch by batch; its ratios, and a table of each.

    ways      candidate -> how it encodes; the first is what the others are compared with
    source    see `source_for`
    videos    files, each once, taken in turn and again from the first; stacking a batch counts as preprocessing
    batch     videos per call
    protocol  as `compare` takes it, but that every video is measured where its budget allows

    Raises UsageError without videos or for a batch below 1, UnstableError where a stage is shorter than the clock can
    tell, and what `source` raises, such as VideoError for a file that cannot be read.
    """
    videos = list(dict.fromkeys(map(Path, videos)))
    if not videos:
        raise UsageError("there is no video to measure with. Name at least one, or leave it out for a rendered clip.")
    if batch < 1:
        raise UsageError(f"batch: found {batch} videos, expected 1 or more.")
    first_reads: dict[Path, float] = {}
    passes = {name: _Pass(way, source, videos, batch, clock, first_reads) for name, way in ways.items()}
    # Without a lead: what a neighbour leaves running has ended once the videos are decoded.
    protocol = replace(protocol, samples=max(protocol.samples, math.ceil(len(videos) / batch)), lead=0.0)
    comparison = compare(passes, protocol, clock=clock, progress=progress)
    described = "; ".join(source.describe(path) for path in videos[:_LISTED])
    described += f"; {len(videos) - _LISTED} more" if len(videos) > _LISTED else ""
    return comparison, tuple(
        _table(take, comparison, comparison.timings[name], protocol, described) for name, take in passes.items()
    )


def _table(take: _Pass, comparison: TimingComparison, timing: Timing, protocol: Protocol, described: str) -> StageTable:
    """The stages of one candidate in the rounds that count."""
    first = comparison.warmup_rounds
    seconds = np.array(take.laps[first : first + len(timing.samples)]) / take.batch
    medians, high, shortest = np.median(seconds, axis=0), np.percentile(seconds, 90, axis=0), seconds.min(axis=0)
    if not shortest.min() > 0:
        name = take.stages[int(shortest.argmin())]
        raise UnstableError(f"the stage {name} took less than the clock can tell. Measure larger batches.")
    rows = tuple(
        StageRow(stage, float(p50 * 1e3), float(p90 * 1e3), float(p50 / medians.sum()), float(1 / p50))
        for stage, p50, p90 in zip(take.stages, medians, high, strict=True)
    )
    return StageTable(
        candidate=timing.name,
        batch=take.batch,
        rows=rows,
        limit=take.stages[int(medians.argmax())],
        sequential_videos_per_s=float(1 / medians.sum()),
        overlapped_videos_per_s=float(1 / medians.max()),
        videos=len(take.videos),
        notes=(described, *_notes(take, seconds, comparison, timing, protocol)),
    )


def _notes(
    take: _Pass, seconds: Durations, comparison: TimingComparison, timing: Timing, protocol: Protocol
) -> Iterator[str]:
    """Remarks for the reader of the table; `seconds` [rounds, stages] are of one video."""
    every, warmed = len(take.videos), comparison.warmup_rounds * take.batch
    means, medians = seconds.mean(axis=0), np.median(seconds, axis=0)
    if take.transfer is None:
        yield "no transfer: the encoder reads the batch where preprocessing leaves it"
    if timing.name != comparison.order[0]:
        ratio = timing.ratio
        yield (
            f"the whole way is {ratio.value:.3g} times as fast as with {comparison.order[0]} "
            f"({ratio.low:.3g} to {ratio.high:.3g})"
        )
        if not timing.converged:
            yield shortfall(timing)
    yield from _uncertain(take.stages, seconds, protocol)
    yield (
        f"the first read of a file took {np.median(list(take.first_reads.values())) * 1e3:.3g} ms, the median of those "
        f"measured is {medians[0] * 1e3:.3g} ms: files read before come from the page cache, not from the disk"
    )
    if warmed < every:
        yield f"{every - warmed} of {every} videos were not read in the warm-up"
    if len(take.first_reads) < every:
        yield f"{every - len(take.first_reads)} of {every} videos were not reached at all"
    if not timing.steady:
        yield (
            f"the time of a round did not converge within {protocol.agreement:.0%}: the videos differ, or other "
            "programs were running"
        )
    for stage, mean, median in zip(take.stages, means, medians, strict=True):
        if mean > _UNEVEN * median:
            yield (
                f"{stage} takes {mean * 1e3:.3g} ms in the mean and {median * 1e3:.3g} ms in the median: a long "
                "queue of videos takes the mean"
            )
    yield f"{len(seconds)} rounds of {take.batch}; videos/s and shares are of the medians; decoding in one process"


def _uncertain(stages: list[str], seconds: Durations, protocol: Protocol) -> Iterator[str]:
    """The note that the two slowest of [rounds, stages] cannot be told apart; none where they can."""
    second, first = np.argsort(np.median(seconds, axis=0), kind="stable")[-2:]
    found = bootstrap_ratio(seconds[:, first], seconds[:, second], resamples=protocol.resamples, seed=protocol.seed)
    if found.low <= 1:
        yield (
            f"which stage is the limit is uncertain: {stages[first]} takes {found.value:.3g} times as long as "
            f"{stages[second]}, with 95 % certainty {found.low:.3g} to {found.high:.3g} times"
        )
