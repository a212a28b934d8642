"""From video file to embedding, stage by stage: which one is the limit.

A batch of videos is taken through every stage, then the next one, so that whatever disturbs the machine meets all
stages alike. A stage must return only when its work is done: a GPU backend synchronises before it returns.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tempme_export.bench.core.bootstrap import bootstrap_ratio
from tempme_export.bench.core.protocol import FEWEST, Clock, Durations, Progress, Protocol, agree, warm_up
from tempme_export.errors import UnstableError, UsageError
from tempme_export.files import scratch_folder

if TYPE_CHECKING:
    from tempme_export.encoder.recipe import Recipe

DECODE, PREPROCESS, TRANSFER, ENCODE = "decode", "preprocess", "transfer", "encode"

CLIP_SECONDS, CLIP_RATE, CLIP_SIZE = 10, 25, (320, 240)
_LISTED = 3  # videos described one by one
_UNEVEN = 1.25  # a mean so many times the median is worth a word


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

    def to_dict(self) -> dict[str, Any]:
        """The table as plain values; `rows` and `notes` are lists."""
        document = asdict(self)
        return {**document, "rows": list(document["rows"]), "notes": list(self.notes)}


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
def rendered_clip() -> Iterator[Path]:
    """A video to measure with where none is given, which is gone afterwards. Raises BackendError without PyAV."""
    from tempme_export.media.render import render_clip

    with scratch_folder("tempme-stages") as folder:
        path = folder / "rendered.mp4"
        render_clip(path, seconds=CLIP_SECONDS, fps=CLIP_RATE, size=CLIP_SIZE)
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


def _described(take: "_Pass") -> str:
    more = f"; {len(take.videos) - _LISTED} more" if len(take.videos) > _LISTED else ""
    return "; ".join(take.source.describe(path) for path in take.videos[:_LISTED]) + more


class _Pass:
    """Takes one batch after the other through all stages, going round the videos."""

    def __init__(
        self,
        embed: Callable[[Any], object],
        source: Source,
        videos: Sequence[Path],
        batch: int,
        transfer: Callable[[NDArray[np.float32]], Any] | None,
        clock: Clock,
    ) -> None:
        self.embed, self.source, self.videos, self.batch = embed, source, videos, batch
        self.transfer, self.clock = transfer, clock
        self.stages = [DECODE, PREPROCESS, *([] if transfer is None else [TRANSFER]), ENCODE]
        self.first_reads: dict[Path, float] = {}
        self._starts = count(0, batch)

    def __call__(self) -> Durations:
        """[stages] seconds that the next batch of videos took."""
        start = next(self._starts)
        decoded = []
        times = [self.clock()]
        for i in range(start, start + self.batch):
            path, began = self.videos[i % len(self.videos)], self.clock()
            decoded.append(self.source.decode(path))
            self.first_reads.setdefault(path, self.clock() - began)
        times.append(self.clock())
        pixels = np.stack([self.source.preprocess(frames) for frames in decoded])
        times.append(self.clock())
        inputs: Any = pixels
        if self.transfer is not None:
            inputs = self.transfer(pixels)
            times.append(self.clock())
        self.embed(inputs)
        times.append(self.clock())
        return np.diff(times)


def _measure(take: _Pass, protocol: Protocol, progress: Progress) -> Durations:
    """[rounds, stages] seconds: rounds or time enough and every video among them, or the limit reached."""
    stages, rounds, spent = len(take.stages), [take()], 0.0
    while True:
        spent += float(rounds[-1].sum())
        if len(rounds) % 10 == 0:
            progress(f"measuring: {len(rounds)} rounds, {spent:.0f} s")
        enough = len(rounds) >= protocol.samples or spent >= protocol.seconds * stages
        every = len(rounds) * take.batch >= len(take.videos)
        if len(rounds) >= FEWEST and ((enough and every) or spent >= protocol.budget):
            return np.array(rounds)
        rounds.append(take())


def _uncertain(stages: list[str], seconds: Durations, protocol: Protocol) -> Iterator[str]:
    """The note that the two slowest of [rounds, stages] cannot be told apart; none where they can."""
    second, first = np.argsort(np.median(seconds, axis=0), kind="stable")[-2:]
    found = bootstrap_ratio(seconds[:, first], seconds[:, second], resamples=protocol.resamples, seed=protocol.seed)
    if found.low <= 1:
        yield (
            f"which stage is the limit is uncertain: {stages[first]} takes {found.value:.3g} times as long as "
            f"{stages[second]}, with 95 % certainty {found.low:.3g} to {found.high:.3g} times"
        )


def _first_read(take: _Pass, seconds: Durations) -> str:
    """Effect of the page cache, as far as it shows."""
    first, later = float(np.median(list(take.first_reads.values()))), float(np.median(seconds[:, 0]))
    return (
        f"the first read of a file took {first * 1e3:.3g} ms, the median of those measured is {later * 1e3:.3g} ms: "
        "files read before come from the page cache, not from the disk"
    )


def _notes(take: _Pass, seconds: Durations, warmed: int, steady: bool, protocol: Protocol) -> Iterator[str]:
    """Remarks for the reader of the table; `seconds` [rounds, stages] are of one video."""
    yield _described(take)
    if take.transfer is None:
        yield "no transfer: the encoder reads the batch where preprocessing leaves it"
    yield from _uncertain(take.stages, seconds, protocol)
    yield _first_read(take, seconds)
    if warmed < len(take.videos):
        yield f"{len(take.videos) - warmed} of {len(take.videos)} videos were not read in the warm-up"
    if len(take.first_reads) < len(take.videos):
        yield f"{len(take.videos) - len(take.first_reads)} of {len(take.videos)} videos were not reached at all"
    totals = seconds.sum(axis=1)
    if not (steady and agree(np.array_split(totals, 3), protocol.agreement)):
        yield (
            f"the time of a round did not converge within {protocol.agreement:.0%}: the videos differ, or other "
            "programs were running"
        )
    for stage, mean, median in zip(take.stages, seconds.mean(axis=0), np.median(seconds, axis=0), strict=True):
        if mean > _UNEVEN * median:
            yield (
                f"{stage} takes {mean * 1e3:.3g} ms in the mean and {median * 1e3:.3g} ms in the median: a long "
                "queue of videos takes the mean"
            )
    yield f"{len(seconds)} rounds of {take.batch}; videos/s and shares are of the medians; decoding in one process"


def measure_stages(
    embed: Callable[[Any], object],
    source: Source,
    videos: Sequence[Path],
    batch: int,
    protocol: Protocol,
    *,
    candidate: str = "torch",
    transfer: Callable[[NDArray[np.float32]], Any] | None = None,
    clock: Clock = time.perf_counter,
    progress: Progress = lambda _: None,
) -> StageTable:
    """Time decode, preprocess, transfer and encode over the same videos, batch by batch.

    embed      what `transfer` returned, or without it float32 [B, F, 3, S, S] -> embeddings; synchronised
    source     see `source_for`
    videos     files, each once, taken in turn and again from the first; stacking a batch counts as preprocessing
    batch      videos per round
    protocol   measured are `samples` rounds or `seconds` per stage, whichever comes first, and 5 rounds at least;
               time limits count per stage
    transfer   copies a batch float32 [B, F, 3, S, S] to the device; synchronised. None where there is nothing to copy,
               as on a CPU: the table then has no such row and says so
    candidate  the name of what encodes

    Raises UsageError without videos or for a batch below 1, UnstableError where a stage is shorter than the clock can
    tell, and what `source` raises, such as VideoError for a file that cannot be read.
    """
    videos = list(dict.fromkeys(map(Path, videos)))
    if not videos:
        raise UsageError("there is no video to measure with. Name at least one, or leave it out for a rendered clip.")
    if batch < 1:
        raise UsageError(f"a batch of {batch} videos was asked for; it must be 1 or above.")
    take = _Pass(embed, source, videos, batch, transfer, clock)
    _, (steady,) = warm_up(
        lambda: take().sum(keepdims=True),
        protocol,
        progress,
        ready=lambda: len(take.first_reads) == len(take.videos),
    )
    warmed = len(take.first_reads)
    seconds = _measure(take, protocol, progress) / batch
    medians, high = np.median(seconds, axis=0), np.percentile(seconds, 90, axis=0)
    shortest = seconds.min(axis=0)
    if not shortest.min() > 0:
        name = take.stages[int(shortest.argmin())]
        raise UnstableError(f"the stage {name} took less than the clock can tell. Measure larger batches.")
    rows = tuple(
        StageRow(stage, float(p50 * 1e3), float(p90 * 1e3), float(p50 / medians.sum()), float(1 / p50))
        for stage, p50, p90 in zip(take.stages, medians, high, strict=True)
    )
    return StageTable(
        candidate=candidate,
        batch=batch,
        rows=rows,
        limit=take.stages[int(medians.argmax())],
        sequential_videos_per_s=float(1 / medians.sum()),
        overlapped_videos_per_s=float(1 / medians.max()),
        videos=len(take.videos),
        notes=tuple(_notes(take, seconds, warmed, steady, protocol)),
    )
