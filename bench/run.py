"""Contenders and batch sizes -> Report: tokens and parity first, then timing side by side."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tempme_export.bench.cases import benchmark_clips
from tempme_export.bench.contenders import Contender, Embed
from tempme_export.bench.machine import machine
from tempme_export.bench.memory import device_peak_mb, is_out_of_memory, measured
from tempme_export.bench.report import Measured, Report, Row
from tempme_export.bench.timing import Comparison, Progress, Protocol, compare
from tempme_export.encoder.profile import Profile
from tempme_export.errors import BackendError, UsageError
from tempme_export.parity.checks import Floats, centred_cosine, cosine_distance, embedding_checks
from tempme_export.parity.tolerance import TOLERANCES

RESIDENT = " (on the device)"
_GAIN = 1.05  # a larger batch that is not at least so much faster has passed the knee


@dataclass(frozen=True)
class Request:
    """How to measure. The seed of the videos is the protocol's.

    batches     videos per call, rising, each measured on its own
    until_knee  leave out larger batches once two in a row are no faster
    handicap    percent by which contenders are slowed down on purpose
    command     what the user typed, for the record
    """

    batches: tuple[int, ...]
    device: str
    protocol: Protocol
    command: str
    until_knee: bool = False
    handicap: tuple[tuple[str, float], ...] = ()


class OutOfMemoryError(Exception):
    """A contender ran out of memory."""


def check_batches(profile: Profile, batches: Sequence[int]) -> None:
    """Raise UsageError for a batch size outside the profile's range."""
    limits = profile.batch
    outside = [batch for batch in batches if not limits.min <= batch <= limits.max]
    if outside:
        raise UsageError(
            f"--batch {', '.join(map(str, outside))}: profile {profile.name} is made for "
            f"{limits.min} to {limits.max} videos per call (shapes.batch)."
        )


def check_handicap(handicap: Sequence[tuple[str, float]], names: Sequence[str]) -> None:
    """Raise UsageError for a handicap of what is not measured."""
    unknown = [name for name, _ in handicap if name not in names]
    if unknown:
        raise UsageError(f"--handicap {', '.join(unknown)}: measured are {', '.join(names)}.")


def batches_of(clips: NDArray[np.float32], batch: int) -> list[NDArray[np.float32]]:
    """Every clip at least once, in batches of one size; clips repeat to fill the last."""
    return [clips[np.arange(first, first + batch) % len(clips)] for first in range(0, len(clips), batch)]


def disagreement(original: Floats, found: Floats, precision: str) -> str:
    """How embeddings [B, E] miss the tolerance against the original path's; empty where they do not."""
    checks = embedding_checks("embedding", original, found, TOLERANCES[precision])
    return "; ".join(f"{c.name} is {c.value:.1e}, the limit {c.limit:g}" for c in checks if not c.passed)


def slowed(call: Callable[[], object], percent: float) -> Callable[[], object]:
    """`call`, and as much busy waiting after it as lengthens it by `percent`."""

    def run() -> object:
        start = time.perf_counter()
        result = call()
        end = time.perf_counter()
        while time.perf_counter() < end + percent / 100 * (end - start):
            pass
        return result

    return run


@dataclass
class _Memory:
    """What a contender has taken since it was loaded, in 1e6 bytes: kept between calls, and at most."""

    kept: float = 0.0
    peak: float | None = None
    device_peak: float | None = None


class _Distance(NamedTuple):
    """Largest 1 - cosine from the original path's embeddings, as they are and after their mean is subtracted."""

    plain: float
    centred: float


class Bench:
    """Contenders that are still in, and the videos they are shown."""

    def __init__(self, contenders: Sequence[Contender], request: Request, stage: Progress, progress: Progress) -> None:
        self.contenders, self.request = list(contenders), request
        self.stage, self.progress = stage, progress
        self.failed: dict[str, str] = {}
        self.memory = {one.name: _Memory() for one in contenders}
        stage("choosing clips")
        self.clips = benchmark_clips([one.recipe for one in contenders], request.protocol.seed)
        self.expected: dict[Embed, Floats] = {}

    def _expect(self, embed: Embed) -> Floats:
        """What embeddings must be: [DISTINCT, E]. It depends on no batch size, which parity tests with it."""
        if embed not in self.expected:
            self.expected[embed] = np.concatenate([embed(clip[None]) for clip in self.clips])
        return self.expected[embed]

    def _embed(self, one: Contender, inputs: Sequence[NDArray[np.float32]]) -> Floats:
        """All embeddings of the batches; keeps what memory the first call took.

        Raises OutOfMemoryError naming the contender.
        """
        memory = self.memory[one.name]
        try:
            first, took = measured(lambda: one.loaded.embed(inputs[0]))
            memory.device_peak = device_peak_mb(lambda: one.loaded.embed(inputs[0]), self.request.device)
            rest = [one.loaded.embed(x) for x in inputs[1:]]
        except Exception as error:  # every runtime says it in its own way
            if is_out_of_memory(error):
                raise OutOfMemoryError(one.name) from error
            raise
        if took is not None:
            memory.peak = memory.kept + took.peak
            memory.kept += max(0.0, took.kept)
        return np.concatenate([first, *rest])

    def judge(self, batch: int) -> tuple[dict[str, _Distance], list[NDArray[np.float32]]]:
        """How far every contender is from what it has to give, and the batches that were shown.

        Those that are wrong are out, and all are where the first is, which the others are compared with.
        Raises OutOfMemoryError.
        """
        self.stage(f"batch {batch}: parity")
        inputs = batches_of(self.clips, batch)
        which = np.arange(len(inputs) * batch) % len(self.clips)
        first, distances = self.contenders[0], dict[str, _Distance]()
        for one in list(self.contenders):
            expected, found = self._expect(one.expect)[which], self._embed(one, inputs)
            distances[one.name] = _Distance(cosine_distance(expected, found), 1 - centred_cosine(expected, found))
            wrong = disagreement(expected, found, one.loaded.precision)
            if wrong:
                self.failed[one.name] = f"batch {batch}: {wrong}"
                self.contenders.remove(one)
        if first.name in self.failed:
            self.contenders.clear()
        return distances, inputs

    def measure(self, batch: int) -> Report:
        """Judge and time one batch size. Raises OutOfMemoryError."""
        distances, inputs = self.judge(batch)
        if not self.contenders:
            return Report()
        profile = self.contenders[0].recipe.profile
        self.stage(f"batch {batch}: timing {', '.join(one.name for one in self.contenders)}")
        comparison = compare(self._calls(inputs[0]), self.request.protocol, progress=self.progress)
        rows = [self._row(one, batch, distances[one.name], comparison) for one in self.contenders]
        shown = Measured(profile.name, profile.frames, batch, comparison)
        return Report(rows=tuple(rows), measured=(shown,), interrupted=comparison.interrupted)

    def _calls(self, videos: NDArray[np.float32]) -> dict[str, Callable[[], object]]:
        """One call of every contender and, on a GPU, another of those that can encode what already lies there."""
        handicap = dict(self.request.handicap)
        calls: dict[str, Callable[[], object]] = {}
        for one in self.contenders:
            call = partial(one.loaded.embed, videos)
            calls[one.name] = slowed(call, handicap[one.name]) if one.name in handicap else call
            if (resident := one.loaded.timed_on_gpu(videos)) is not None:
                calls[one.name + RESIDENT] = resident
        return calls

    def _row(self, one: Contender, batch: int, distance: _Distance, comparison: Comparison) -> Row:
        timing, profile, memory = comparison.timings[one.name], one.recipe.profile, self.memory[one.name]
        resident = comparison.timings.get(one.name + RESIDENT)
        device = resident.device_samples if resident is not None else ()
        return Row(
            contender=one.name,
            backend=one.loaded.name,
            method=one.method,
            profile=profile.name,
            weights=one.recipe.checkpoint.source,
            frames=profile.frames,
            batch=batch,
            precision=one.loaded.precision,
            device=self.request.device,
            videos_per_s=batch / timing.p50,
            frames_per_s=batch * profile.frames / timing.p50,
            ratio=timing.ratio.value,
            ratio_low=timing.ratio.low,
            ratio_high=timing.ratio.high,
            p50_ms=timing.p50 * 1e3,
            p90_ms=timing.p90 * 1e3,
            p99_ms=timing.p99 * 1e3,
            mean_ms=timing.mean * 1e3,
            cov=timing.cov,
            samples=len(timing.samples),
            warmup=comparison.warmup_rounds,
            stable=timing.stable,
            resident_ms=None if resident is None else resident.p50 * 1e3,
            device_ms=float(np.median(device)) * 1e3 if device else None,
            gmacs=one.counted.gmacs,
            gflops=one.counted.gflops,
            final_clips=one.plan.final_clips,
            final_tokens=one.plan.final_tokens,
            load_mb=one.loaded.load_mb,
            encode_mb=memory.peak,
            device_mb=memory.device_peak,
            build_s=one.loaded.build_s,
            load_s=one.loaded.load_s,
            one_minus_cosine=distance.plain,
            centred_loss=distance.centred,
            parity=True,
            artifact_mb=one.loaded.artifact_mb,
            artifact_sha256=one.loaded.artifact_sha256,
            handicap_percent=dict(self.request.handicap).get(one.name, 0.0),
            **dataclasses.asdict(machine(self.request.device)),
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            command=self.request.command,
        )


def run(contenders: Sequence[Contender], request: Request, *, stage: Progress, progress: Progress) -> Report:
    """Compare contenders of one frame count on the same videos: each is judged, then timed beside the others.

    stage     is told what begins
    progress  is told now and then how far a measurement is

    A contender whose embeddings differ from its original path's is not timed; the report says so. Where a batch does
    not fit into memory, the largest half of it that fits is measured instead, and none above. An interrupted run
    (Ctrl-C) returns what it has; before the first row, KeyboardInterrupt passes.

    Raises UsageError for handicaps of what is not there, BackendError where not even the smallest batch fits.
    """
    profile = contenders[0].recipe.profile
    check_handicap(request.handicap, [one.name for one in contenders])
    bench = Bench(contenders, request, stage, progress)
    report, queue, done = Report(), list(request.batches), list[int]()
    best: dict[str, float] = {}
    no_faster = 0
    try:
        while queue and bench.contenders and not report.interrupted:
            batch = queue.pop(0)
            try:
                one = bench.measure(batch)
            except OutOfMemoryError as error:
                half = batch // 2
                queue = [half] if half >= profile.batch.min and half not in done else []
                if not queue and not done:
                    raise BackendError(f"{error} runs out of memory with {batch} video(s) per call.") from error
                note = f"{profile.name}: {error} runs out of memory at batch {batch}; nothing larger is measured"
                report += Report(notes=(note,))
                continue
            report, done = report + one, [*done, batch]
            gains = [row.videos_per_s / best.get(row.contender, 1e-12) for row in one.rows]
            best |= {row.contender: max(row.videos_per_s, best.get(row.contender, 0.0)) for row in one.rows}
            no_faster = 0 if any(gain >= _GAIN for gain in gains) else no_faster + 1
            if request.until_knee and no_faster == 2 and queue:
                left = ", ".join(map(str, queue))
                report += Report(notes=(f"{profile.name}: past the knee, batches {left} are left out",))
                break
    except KeyboardInterrupt:
        if not report.rows:
            raise
        report += Report(interrupted=True)
    if report.interrupted:
        report += Report(notes=(f"{profile.name}: interrupted, the rows that were finished are kept",))
    return report + Report(failed=bench.failed)


def sweep(largest: int, smallest: int = 1) -> tuple[int, ...]:
    """Batch sizes that double from the smallest on, and the largest."""
    sizes: list[int] = []
    batch = smallest
    while batch < largest:
        sizes.append(batch)
        batch *= 2
    return (*sizes, largest)


def gpu_now(device: str) -> tuple[dict[str, Any], ...]:
    """Clocks, throttling and power of the GPU as it is; empty on a CPU."""
    if not device.startswith("cuda"):
        return ()
    from tempme_export.bench.gpu_facts import gpu_facts

    facts = gpu_facts()
    return () if facts is None else (dataclasses.asdict(facts),)
