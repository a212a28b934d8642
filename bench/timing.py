"""The timing protocol: warm up until it settles, interleave, keep every sample, compare with an interval.

Knows callables and a clock, no models. A callable must return only when its work is done: a GPU backend
synchronises before it returns.

Every round calls all in the same order, A B A B. Turning the order from round to round would have each contender follow
different ones, and itself, so that its samples mix what different neighbours leave in the caches; and what the fixed
order costs is small: within a round, drift moves a sample by its place in the round over the rounds measured.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tempme_export.bench.bootstrap import Ratio, bootstrap_ratio
from tempme_export.errors import UnstableError, UsageError

Call = Callable[[], object]
"""Does the whole work of one sample. A float it returns is its seconds by events of the device, which a call then gives
every time; anything else is disregarded."""

Clock = Callable[[], float]
Progress = Callable[[str], None]
Durations = npt.NDArray[np.float64]

FEWEST = 5
"""Rounds taken even where one sample is longer than the whole time limit."""


@dataclass(frozen=True)
class Protocol:
    """What a measurement has to fulfil. Times are seconds per backend.

    seconds, samples  measure at least so long and so often
    window            samples per warm-up window; a window also ends after `window_seconds`
    agreement         largest relative difference of medians that count as equal
    resamples, seed   of the bootstrap
    """

    seconds: float = 10.0
    samples: int = 200
    window: int = 25
    agreement: float = 0.05
    resamples: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.seconds <= 0:
            raise UsageError(f"the measured time is {self.seconds} s; it must be above 0.")
        if self.samples < FEWEST:
            raise UsageError(f"{self.samples} samples are too few for percentiles and an interval: {FEWEST} or more.")

        if self.seed < 0:
            raise UsageError(f"the seed is {self.seed}; it must be 0 or above.")

    @property
    def window_seconds(self) -> float:
        """When a warm-up window ends although it has fewer than `window` samples."""
        return self.seconds / 5

    @property
    def warmup_limit(self) -> float:
        """When the warm-up is given up as unsettled."""
        return 3 * self.seconds

    @property
    def measure_limit(self) -> float:
        """When the measurement ends although it has fewer than `samples` samples."""
        return 3 * self.seconds


@dataclass(frozen=True)
class Timing:
    """One backend.

    samples         seconds per call, none dropped; sample i was taken in round i
    device_samples  the same by events of the device; empty where the call gives none
    """

    backend: str
    samples: tuple[float, ...]
    settled: bool
    steady: bool
    ratio: Ratio
    device_samples: tuple[float, ...] = ()

    @property
    def p50(self) -> float:
        return self.percentile(50)

    @property
    def p90(self) -> float:
        return self.percentile(90)

    @property
    def p99(self) -> float:
        return self.percentile(99)

    @property
    def mean(self) -> float:
        return float(np.mean(self.samples))

    @property
    def cov(self) -> float:
        """Coefficient of variation: standard deviation over mean."""
        return float(np.std(self.samples, ddof=1) / np.mean(self.samples))

    @property
    def stable(self) -> bool:
        """The warm-up settled and the thirds of the measurement agree."""
        return self.settled and self.steady

    def percentile(self, q: float) -> float:
        """The q-th percentile in seconds, linear between samples."""
        return float(np.percentile(self.samples, q))


@dataclass(frozen=True)
class Comparison:
    """Backends measured side by side.

    order           the backends within each round, in the order called
    warmup_windows  rounds in each warm-up window; their sum precedes the first sample that counts
    notes           where the protocol was cut short, in words
    interrupted     whether Ctrl-C ended the measurement; what had been measured is here
    """

    order: tuple[str, ...]
    timings: dict[str, Timing]
    warmup_windows: tuple[int, ...]
    notes: tuple[str, ...]
    interrupted: bool = False

    @property
    def warmup_rounds(self) -> int:
        return sum(self.warmup_windows)

    @property
    def unstable(self) -> list[str]:
        """The backends whose measurement did not settle."""
        return [name for name, timing in self.timings.items() if not timing.stable]

    def require_stable(self) -> None:
        """Raise UnstableError naming the backends whose measurement did not settle."""
        if self.unstable:
            raise UnstableError(
                f"the measurement of {', '.join(self.unstable)} did not settle. Close other programs, or measure "
                "longer with --seconds."
            )


def agree(windows: list[Durations], agreement: float) -> bool:
    """Whether the medians of `windows` lie within `agreement` of the smallest."""
    medians = [float(np.median(window)) for window in windows]
    return max(medians) - min(medians) <= agreement * min(medians)


def _round(calls: Mapping[str, Call], clock: Clock) -> Durations:
    """Call every backend once, in order. [backends, 2] seconds: by the clock, and by the device or NaN."""
    durations = []
    for call in calls.values():
        start = clock()
        found = call()
        durations.append((clock() - start, found if isinstance(found, float) else math.nan))
    return np.array(durations)


def _window(take: Callable[[], Durations], protocol: Protocol) -> Durations:
    """[rounds, backends] seconds: `window` rounds, or fewer when the slowest backend uses up the time."""
    rounds: list[Durations] = []
    while len(rounds) < protocol.window:
        rounds.append(take())
        if len(rounds) >= 3 and np.sum(rounds, axis=0).max() >= protocol.window_seconds:
            break
    return np.array(rounds)


def _warm_up(
    take: Callable[[], Durations], protocol: Protocol, progress: Progress
) -> tuple[list[Durations], list[bool]]:
    """Run windows until the last three of every backend agree or the limit is reached.

    Returns the windows, each [rounds, backends] seconds, and whether each backend settled.
    """
    windows: list[Durations] = []
    spent: Durations = np.zeros(1)
    while True:
        windows.append(_window(take, protocol))
        spent = spent + windows[-1].sum(axis=0)
        progress(f"warm-up: {sum(map(len, windows))} rounds, {spent.sum():.0f} s")
        if len(windows) < 3:
            continue
        settled = [agree([window[:, i] for window in windows[-3:]], protocol.agreement) for i in range(len(spent))]
        if all(settled) or spent.max() >= protocol.warmup_limit:
            return windows, settled


def _measure(
    take: Callable[[], Durations], protocol: Protocol, progress: Progress
) -> tuple[Durations, Durations, bool]:
    """Take rounds until all have samples and time enough, the slowest is at its limit, or Ctrl-C after enough rounds.

    Returns seconds by the clock and by the device, each [rounds, backends], and whether Ctrl-C ended it. A round that
    Ctrl-C cuts in two does not count. Raises KeyboardInterrupt before FEWEST rounds.
    """
    rounds: list[Durations] = []
    spent: Durations = np.zeros(1)
    interrupted = False
    try:
        while True:
            rounds.append(take())
            spent = spent + rounds[-1][:, 0]
            if len(rounds) % 10 == 0:
                progress(f"measuring: {len(rounds)} rounds, {spent.sum():.0f} s")
            enough = len(rounds) >= protocol.samples and spent.min() >= protocol.seconds
            if enough or (len(rounds) >= FEWEST and spent.max() >= protocol.measure_limit):
                break
    except KeyboardInterrupt:
        if len(rounds) < FEWEST:
            raise
        interrupted = True
    taken = np.array(rounds)
    return taken[:, :, 0], taken[:, :, 1], interrupted


def _notes(
    names: list[str], windows: list[Durations], samples: Durations, protocol: Protocol, *, interrupted: bool
) -> tuple[str, ...]:
    """Where the protocol was cut short, in words."""
    notes = []
    lengths = [len(window) for window in windows]
    if min(lengths) < protocol.window:
        notes.append(
            f"warm-up windows of {min(lengths)} samples, fewer than {protocol.window}: "
            f"a window ends after {protocol.window_seconds:g} s"
        )
    if interrupted:
        return (*notes, f"interrupted after {len(samples)} rounds")
    if len(samples) < protocol.samples:
        medians = np.median(samples, axis=0)
        slowest = int(np.argmax(medians))
        notes.append(
            f"{len(samples)} samples, fewer than {protocol.samples}: one of {names[slowest]} takes "
            f"{medians[slowest]:.3g} s and the limit is {protocol.measure_limit:g} s per backend"
        )
    for name, spent in zip(names, samples.sum(axis=0), strict=True):
        if spent < protocol.seconds:
            notes.append(
                f"{name} was measured for {spent:.3g} s, less than {protocol.seconds:g} s: "
                f"the slowest backend reached the limit of {protocol.measure_limit:g} s"
            )
    return tuple(notes)


def compare(
    calls: Mapping[str, Call],
    protocol: Protocol,
    *,
    clock: Clock = time.perf_counter,
    progress: Progress = lambda _: None,
) -> Comparison:
    """Time `calls` side by side; the first is what the others are compared with.

    calls     backend name -> what does the whole work of one sample
    clock     seconds, rising
    progress  is told now and then how far the measurement is

    Ctrl-C while measuring ends it: what was measured is returned, marked as interrupted. Raises KeyboardInterrupt where
    it comes in the warm-up or before FEWEST rounds were measured.
    """
    names = list(calls)
    windows, settled = _warm_up(lambda: _round(calls, clock)[:, 0], protocol, progress)
    samples, device, interrupted = _measure(lambda: _round(calls, clock), protocol, progress)
    timings = {}
    for i, name in enumerate(names):
        base, own = samples[:, 0], samples[:, i]
        ratio = Ratio(1.0, 1.0, 1.0)  # to itself
        if i > 0:
            ratio = bootstrap_ratio(base, own, resamples=protocol.resamples, seed=protocol.seed)
        timings[name] = Timing(
            backend=name,
            samples=tuple(own.tolist()),
            settled=settled[i],
            steady=agree(np.array_split(own, 3), protocol.agreement),
            ratio=ratio,
            device_samples=() if np.isnan(device[:, i]).any() else tuple(device[:, i].tolist()),
        )
    return Comparison(
        order=tuple(names),
        timings=timings,
        warmup_windows=tuple(len(window) for window in windows),
        notes=_notes(names, windows, samples, protocol, interrupted=interrupted),
        interrupted=interrupted,
    )
