"""Candidates and batch sizes -> Report: tokens and parity first, then timing side by side."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tempme_export.bench.candidates import ORIGINAL_BF16
from tempme_export.bench.cases import benchmark_clips
from tempme_export.bench.core.candidate import Embed, Entry
from tempme_export.bench.core.clocks import DeviceCall, Work, matrix_work
from tempme_export.bench.core.decisions import changed_share, decisions, in_float32
from tempme_export.bench.core.protocol import Clock, Progress, compare
from tempme_export.bench.core.row import Row
from tempme_export.bench.core.timing import TimingComparison
from tempme_export.bench.machine import machine
from tempme_export.bench.memory import device_peak_mb, is_out_of_memory, measured
from tempme_export.bench.report import Measured, Report
from tempme_export.bench.run_settings import RunSettings, check_slowdowns
from tempme_export.errors import BackendError
from tempme_export.parity.checks import Floats, centred_cosine, cosine_distance, embedding_checks
from tempme_export.parity.selftest import SAFE_GAP
from tempme_export.parity.tolerance import TOLERANCES
from tempme_export.runtime.devices import torch_device

RESIDENT = " (on the device)"
PEAK = "matrix product"


class OutOfMemoryError(Exception):
    """A candidate ran out of memory."""


def batches_of(clips: NDArray[np.float32], batch: int) -> list[NDArray[np.float32]]:
    """Every clip at least once, in batches of one size; clips repeat to fill the last."""
    return [clips[np.arange(first, first + batch) % len(clips)] for first in range(0, len(clips), batch)]


def disagreement(original: Floats, found: Floats, precision: str) -> str:
    """The way in which embeddings [B, E] miss the tolerance against the original path's; empty where they do not."""
    checks = embedding_checks("embedding", original, found, TOLERANCES[precision])
    return "; ".join(f"{c.name} is {c.value:.1e}, the limit {c.limit:g}" for c in checks if not c.passed)


def slowed(call: Callable[[], object], percent: float, clock: Clock = time.perf_counter) -> Callable[[], object]:
    """`call`, and as much busy waiting after it as lengthens it by `percent`."""

    def run() -> object:
        start = clock()
        result = call()
        end = clock()
        while clock() < end + percent / 100 * (end - start):
            pass
        return result

    return run


@dataclass
class _Memory:
    """Memory that a candidate has taken since it was loaded, in 1e6 bytes: kept between calls, and at most."""

    kept: float = 0.0
    peak: float | None = None
    device_peak: float | None = None


class _Distance(NamedTuple):
    """Largest 1 - cosine from the original path's embeddings, as they are and after their mean is subtracted."""

    plain: float
    centred: float


class Bench:
    """Candidates that are still in, and the videos they are shown."""

    def __init__(self, entries: Sequence[Entry], settings: RunSettings, stage: Progress, progress: Progress) -> None:
        self.entries, self.settings = list(entries), settings
        self.stage, self.progress = stage, progress
        self.failed: dict[str, str] = {}
        self.passed: dict[str, bool] = {}
        self.changed: dict[str, float | None] = {}
        self.memory = {one.name: _Memory() for one in entries}
        stage("choosing clips")
        recipes = [one.case.recipe for one in entries]
        self.clips = benchmark_clips(recipes, settings.protocol.seed, gap=0.0 if settings.on_device else SAFE_GAP)
        self.expected: dict[Embed, Floats] = {}
        self.device = torch_device(settings.device)
        self.peak = matrix_work(self.device) if settings.on_device else (Work(()), 0)

    def _expect(self, embed: Embed) -> Floats:
        """Expected embeddings [DISTINCT, E]. It depends on no batch size, which parity tests with it."""
        if embed not in self.expected:

            def all_clips() -> Floats:
                return np.concatenate([embed(clip[None]) for clip in self.clips])

            self.expected[embed] = in_float32(all_clips) if self.settings.on_device else all_clips()
        return self.expected[embed]

    def _changed(self) -> dict[str, float | None]:
        """Share of tokens that a merge sends elsewhere than the original path in float32 does, by entry."""
        if not self.settings.on_device:
            return {}
        expected = in_float32(lambda: decisions(self.entries[0], self.clips)) or ()
        return {one.name: changed_share(expected, decisions(one, self.clips)) for one in self.entries}

    def _embed(self, one: Entry, inputs: Sequence[NDArray[np.float32]]) -> Floats:
        """All embeddings of the batches; keeps what memory the first call took.

        Raises OutOfMemoryError naming the candidate.
        """
        memory = self.memory[one.name]
        try:
            first, took = measured(lambda: one.embed(inputs[0]))
            memory.device_peak = device_peak_mb(lambda: one.embed(inputs[0]), self.settings.device)
            rest = [one.embed(x) for x in inputs[1:]]
        except Exception as error:  # every runtime says it in its own way
            if is_out_of_memory(error):
                raise OutOfMemoryError(one.name) from error
            raise
        if took is not None:
            memory.peak = memory.kept + took.peak
            memory.kept += max(0.0, took.kept)
        return np.concatenate([first, *rest])

    def measure_distances(self, batch: int) -> tuple[dict[str, _Distance], list[NDArray[np.float32]]]:
        """Distance of every candidate from the expected embeddings, and the batches that were shown.

        Those that are wrong are out, and all are where the first is, which the others are compared with.
        Raises OutOfMemoryError.
        """
        self.stage(f"batch {batch}: parity")
        inputs = batches_of(self.clips, batch)
        which = np.arange(len(inputs) * batch) % len(self.clips)
        first, distances = self.entries[0], dict[str, _Distance]()
        for one in list(self.entries):
            expected, found = self._expect(one.expect or one.embed)[which], self._embed(one, inputs)
            distances[one.name] = _Distance(cosine_distance(expected, found), 1 - centred_cosine(expected, found))
            wrong = disagreement(expected, found, one.precision)
            self.passed[one.name] = not wrong
            if wrong and not self.settings.on_device:
                self.failed[one.name] = f"batch {batch}: {wrong}"
                self.entries.remove(one)
        if first.name in self.failed:
            self.entries.clear()
        return distances, inputs

    def measure(self, batch: int) -> Report:
        """Check and time one batch size. Raises OutOfMemoryError."""
        distances, inputs = self.measure_distances(batch)
        self.changed = self.changed or self._changed()
        if not self.entries:
            return Report()
        profile = self.entries[0].case.profile
        self.stage(f"batch {batch}: timing {', '.join(one.name for one in self.entries)}")
        comparison = compare(
            self._calls(inputs[0]),
            self.settings.protocol,
            judged=[one.name for one in self.entries],
            progress=self.progress,
        )
        rows = [self._row(one, batch, distances[one.name], comparison) for one in self.entries]
        shown = Measured(profile.name, profile.frames, batch, comparison)
        return Report(rows=tuple(rows), measured=(shown,), interrupted=comparison.interrupted)

    def _calls(self, videos: NDArray[np.float32]) -> dict[str, Callable[[], object]]:
        """One call of every candidate and, on a GPU, another of those that can encode what already lies there."""
        slowdowns = dict(self.settings.slowdowns)
        calls: dict[str, Callable[[], object]] = {}
        for one in self.entries:
            call: Callable[[], object] = partial(one.embed, videos)
            resident = one.resident(videos)
            if self.settings.on_device:
                calls[one.name] = resident or call
                continue
            calls[one.name] = slowed(call, slowdowns[one.name]) if one.name in slowdowns else call
            if resident is not None:
                calls[one.name + RESIDENT] = resident
        if self.settings.on_device:
            calls[PEAK] = DeviceCall(self.peak[0], self.device)
        return calls

    def _row(self, one: Entry, batch: int, distance: _Distance, comparison: TimingComparison) -> Row:
        timing, profile, memory = comparison.timings[one.name], one.case.profile, self.memory[one.name]
        counted = one.case.counted()
        resident = comparison.timings.get(one.name + RESIDENT)
        device = resident.device_samples if resident is not None else timing.device_samples
        tflop_s = 2 * counted.products * batch / timing.p50 / 1e12
        peak = comparison.timings.get(PEAK)
        bf16 = comparison.timings.get(ORIGINAL_BF16)
        return Row(
            candidate=one.name,
            backend=one.backend,
            method=one.case.method_key,
            profile=profile.name,
            weights=one.case.weights,
            frames=profile.frames,
            batch=batch,
            precision=one.precision,
            device=self.settings.device,
            videos_per_s=batch / timing.p50,
            frames_per_s=batch * profile.frames / timing.p50,
            ratio=timing.ratio.value,
            ratio_low=timing.ratio.low,
            ratio_high=timing.ratio.high,
            ratio_bf16=None if bf16 is None else timing.times_as_fast_as(bf16),
            p50_ms=timing.p50 * 1e3,
            p90_ms=timing.p90 * 1e3,
            p99_ms=timing.p99 * 1e3,
            mean_ms=timing.mean * 1e3,
            cov=timing.cov,
            samples=len(timing.samples),
            warmup=comparison.warmup_rounds,
            converged=timing.converged,
            half_width=timing.half_width,
            steady=timing.steady,
            clock="device" if timing.device_samples else "wall",
            resident_ms=None if resident is None else float(np.median(resident.samples)) * 1e3,
            device_ms=float(np.median(device)) * 1e3 if device else None,
            gmacs=counted.gmacs,
            gflops=counted.gflops,
            final_clips=one.case.schedule.final_clips,
            final_tokens=one.case.schedule.final_tokens,
            encode_mb=memory.peak,
            device_mb=memory.device_peak,
            one_minus_cosine=distance.plain,
            centred_loss=distance.centred,
            changed_decisions=self.changed.get(one.name),
            tflop_s=tflop_s,
            peak_tflop_s=None if peak is None else self.peak[1] / peak.p50 / 1e12,
            parity=self.passed[one.name],
            slowdown_percent=dict(self.settings.slowdowns).get(one.name, 0.0),
            **dataclasses.asdict(one.costs),
            **dataclasses.asdict(machine(self.settings.device)),
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            command=self.settings.command,
        )


def run(entries: Sequence[Entry], settings: RunSettings, *, stage: Progress, progress: Progress) -> Report:
    """Compare entries of one frame count on the same videos: each is judged, then timed beside the others.

    stage     is told what begins
    progress  is told now and then how far a measurement is

    A candidate whose embeddings differ from its original path's is not timed; the report says so. Where a batch does
    not fit into memory, the largest half of it that fits is measured instead, and none above. An interrupted run
    (Ctrl-C) returns what it has; before the first row, KeyboardInterrupt passes.

    Raises UsageError for slowdowns of what is not measured, BackendError where not even the smallest batch fits.
    """
    profile = entries[0].case.profile
    check_slowdowns(settings.slowdowns, [one.name for one in entries])
    bench = Bench(entries, settings, stage, progress)
    report, queue, done = Report(), list(settings.batches), list[int]()
    best: dict[str, float] = {}
    no_faster = 0
    try:
        while queue and bench.entries and not report.interrupted:
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
            gains = [row.videos_per_s / best.get(row.candidate, 1e-12) for row in one.rows]
            best |= {row.candidate: max(row.videos_per_s, best.get(row.candidate, 0.0)) for row in one.rows}
            no_faster = 0 if any(gain >= settings.least_gain for gain in gains) else no_faster + 1
            if no_faster == 2 and queue:
                left = ", ".join(map(str, queue))
                report += Report(notes=(f"{profile.name}: past saturation, batches {left} are left out",))
                break
    except KeyboardInterrupt:
        if not report.rows:
            raise
        report += Report(interrupted=True)
    if report.interrupted:
        report += Report(notes=(f"{profile.name}: interrupted, the rows that were finished are kept",))
    return report + Report(failed=bench.failed)
