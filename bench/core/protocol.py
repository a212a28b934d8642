"""The timing protocol: warm up, interleave, keep every sample, add rounds until the ratios are known.

Knows callables and a clock, no models. A callable must return only when its work is done: a GPU backend
synchronises before it returns.

Every round calls all in the same order, A B A B. What a neighbour leaves behind is not timed: its worker threads spin
on for a while, and the caches are full of its weights, so each candidate first runs untimed for a moment, as it would
where nothing else is served. What the fixed order costs is small: within a round, drift moves a sample by its place in
the round over the rounds measured.
"""

import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tempme_export.bench.core.bootstrap import Estimate, Ratio, estimate
from tempme_export.bench.core.row import HALF_WIDTH
from tempme_export.bench.core.timing import Timing, TimingComparison, shortfall
from tempme_export.errors import UsageError

Call = Callable[[], object]
"""Does the whole work of one sample. A float it returns is its seconds by events of the device, which a call then gives
every time; anything else is disregarded."""

Clock = Callable[[], float]
Progress = Callable[[str], None]
Durations = npt.NDArray[np.float64]

FEWEST = 5
"""Rounds taken even where one sample is longer than the whole budget."""

_NEXT_LOOK = 1.2
"""Rounds at the next look at the ratios over those at the last one."""


@dataclass(frozen=True)
class Protocol:
    """Requirements of a measurement.

    A ratio to the first has converged when half of its 95 % interval in this run is at most `half_width` of it. Raw
    times need not be calm: on a shared machine the ratio is what can be known.

    seconds, samples  measure each so long and so often before its ratio is looked at
    budget            seconds that one comparison may measure, all together; where it ends, so do the rounds
    window            samples per warm-up window; a window also ends after `window_seconds`
    lead              seconds that a candidate runs before each of its samples, once or more; 0 for not at all
    agreement         largest relative difference of medians of raw times that count as equal
    resamples, seed   of the bootstrap
    """

    seconds: float = 1.0
    samples: int = 20
    budget: float = 120.0
    half_width: float = HALF_WIDTH
    window: int = 25
    lead: float = 0.01
    agreement: float = 0.05
    resamples: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.seconds <= 0:
            raise UsageError(f"seconds: found {self.seconds}, expected more than 0.")
        if self.budget <= 0:
            raise UsageError(f"budget: found {self.budget} s, expected more than 0.")
        if self.lead < 0:
            raise UsageError(f"lead: found {self.lead} s, expected 0 or more.")
        if self.samples < FEWEST:
            raise UsageError(
                f"samples: found {self.samples}, expected {FEWEST} or more, for percentiles and an interval."
            )
        if self.seed < 0:
            raise UsageError(f"seed: found {self.seed}, expected 0 or more.")

    @property
    def window_seconds(self) -> float:
        """Seconds after which a warm-up window ends although it has fewer than `window` samples, per backend."""
        return self.seconds / 5

    @property
    def warmup_limit(self) -> float:
        """Seconds after which the warm-up is given up as noisy: a sixth of the budget, all together."""
        return self.budget / 6


def agree(windows: list[Durations], agreement: float) -> bool:
    """True where the medians of `windows` lie within `agreement` of the smallest."""
    medians = [float(np.median(window)) for window in windows]
    return max(medians) - min(medians) <= agreement * min(medians)


def _turn(call: Call, lead: float, clock: Clock) -> tuple[float, float, float]:
    """Seconds of a call by the clock, by the device or NaN, and of the untimed calls before it."""
    begun = start = clock()
    while start - begun < lead:
        call()
        start = clock()
    found = call()
    return clock() - start, found if isinstance(found, float) else math.nan, start - begun


def _round(calls: Mapping[str, Call], lead: float, clock: Clock) -> Durations:
    """Call every backend in order. [backends, 3] seconds: by the clock, by the device or NaN, and of the lead."""
    return np.array([_turn(call, lead, clock) for call in calls.values()])


def _window(take: Callable[[], Durations], protocol: Protocol) -> Durations:
    """[rounds, backends] seconds: `window` rounds, or fewer when the slowest backend uses up the time."""
    rounds: list[Durations] = []
    while len(rounds) < protocol.window:
        rounds.append(take())
        if len(rounds) >= 3 and np.sum(rounds, axis=0).max() >= protocol.window_seconds:
            break
    return np.array(rounds)


def warm_up(
    take: Callable[[], Durations], protocol: Protocol, progress: Progress
) -> tuple[list[Durations], list[bool]]:
    """Run windows until the last three of every column agree, or the limit is reached.

    take  one round: [columns] seconds
    Returns the windows, each [rounds, columns] seconds, and whether each column is steady.
    """
    windows: list[Durations] = []
    spent: Durations = np.zeros(1)
    while True:
        windows.append(_window(take, protocol))
        spent = spent + windows[-1].sum(axis=0)
        progress(f"warm-up: {sum(map(len, windows))} rounds, {spent.sum():.0f} s")
        if len(windows) < 3:
            continue
        steady = [agree([window[:, i] for window in windows[-3:]], protocol.agreement) for i in range(len(spent))]
        if all(steady) or spent.sum() >= protocol.warmup_limit:
            return windows, steady


@dataclass
class _Taken:
    """Rounds as they are taken: seconds of every name by the clock and by the device, each [rounds of it]."""

    names: Sequence[str]
    judged: Collection[str]
    protocol: Protocol

    def __post_init__(self) -> None:
        self.rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in self.names}
        self.active = list(self.names)
        self.totals = dict.fromkeys(self.names, 0.0)
        self.spent = 0.0

    def add(self, durations: Durations) -> None:
        """A whole round of those that are active: [active, 3] seconds."""
        for name, (wall, device, lead) in zip(self.active, durations.tolist(), strict=True):
            self.rounds[name].append((wall, device))
            self.totals[name] += wall
            self.spent += wall + lead

    @property
    def count(self) -> int:
        return len(self.rounds[self.names[0]])

    @property
    def over(self) -> bool:
        """True once the budget has ended."""
        return self.count >= FEWEST and self.spent >= self.protocol.budget

    @property
    def enough(self) -> bool:
        """True where there are samples and time enough for a look at the ratios."""
        least = min(self.totals[name] for name in self.active)
        return self.count >= self.protocol.samples and least >= self.protocol.seconds

    def wall(self, name: str) -> Durations:
        return np.array([wall for wall, _ in self.rounds[name]])

    def device(self, name: str) -> Durations:
        """Empty where the calls give none."""
        device = np.array([device for _, device in self.rounds[name]])
        return device[:0] if np.isnan(device).any() else device

    def seconds(self, name: str) -> Durations:
        """By the device where it tells, else by the clock."""
        device = self.device(name)
        return device if len(device) else self.wall(name)

    def estimate(self, name: str) -> Estimate:
        """Of how many times as fast as the first it is, over the rounds that both took part in."""
        own = self.seconds(name)
        base = self.seconds(self.names[0])[: len(own)]
        return estimate(base / own, resamples=self.protocol.resamples, seed=self.protocol.seed)

    def open_ratios(self) -> list[str]:
        """Active names whose ratio counts and has not converged."""
        rest = [name for name in self.active[1:] if name in self.judged]
        return [name for name in rest if _half_width(self.estimate(name)) > self.protocol.half_width]

    def leave_out_converged(self, left: Sequence[str]) -> None:
        """Go on with the first and those that are `left`, in their order."""
        self.active = [name for name in self.active if name == self.names[0] or name in left]


def _half_width(found: Estimate) -> float:
    ratio = found.ratio()
    return (ratio.high - ratio.low) / (2 * ratio.value)


def _measure(calls: Mapping[str, Call], taken: _Taken, clock: Clock, progress: Progress) -> bool:
    """Take rounds until every ratio that counts has converged, the budget ends, or Ctrl-C after enough rounds.

    Rounds are added where they are needed: what has converged takes no part in later ones. Returns whether Ctrl-C
    ended it; a round that Ctrl-C cuts in two does not count. Raises KeyboardInterrupt before FEWEST rounds.
    """
    look = taken.protocol.samples
    lead = taken.protocol.lead if len(calls) > 1 else 0.0  # alone, it has no neighbour
    try:
        while True:
            taken.add(_round({name: calls[name] for name in taken.active}, lead, clock))
            if taken.count % 10 == 0:
                progress(f"measuring: {taken.count} rounds, {taken.spent:.0f} s, {len(taken.active) - 1} ratios open")
            if taken.over:
                return False
            if taken.count >= look and taken.enough:
                left = taken.open_ratios()
                if not left:
                    return False
                taken.leave_out_converged(left)
                look = math.ceil(_NEXT_LOOK * taken.count)
    except KeyboardInterrupt:
        if taken.count < FEWEST:
            raise
        return True


def _timing(name: str, taken: _Taken, *, steady: bool) -> Timing:
    own, device = taken.wall(name), taken.device(name)
    ratio, half_width, needs = Ratio(1.0, 1.0, 1.0), 0.0, 0.0  # to itself
    if name != taken.names[0]:
        found = taken.estimate(name)
        ratio, half_width = found.across_runs().ratio(), _half_width(found)
    converged = name not in taken.judged or half_width <= taken.protocol.half_width
    if not converged:
        both = float(np.median(own) + np.median(taken.wall(taken.names[0])))
        both *= taken.spent / sum(taken.totals.values())  # with the leads
        needs = len(own) * ((half_width / taken.protocol.half_width) ** 2 - 1) * both
    return Timing(
        name=name,
        samples=tuple(own.tolist()),
        steady=steady and agree(np.array_split(taken.seconds(name), 3), taken.protocol.agreement),
        ratio=ratio,
        half_width=half_width,
        converged=converged,
        needs=needs,
        device_samples=tuple(device.tolist()),
    )


def _notes(windows: list[Durations], taken: _Taken, timings: Iterable[Timing], *, interrupted: bool) -> tuple[str, ...]:
    """The point at which the protocol was cut short, in words."""
    notes, protocol = [], taken.protocol
    left = [timing for timing in timings if not timing.converged]
    shortest = min(len(window) for window in windows)
    if shortest < protocol.window:
        notes.append(
            f"warm-up windows of {shortest} samples, fewer than {protocol.window}: "
            f"a window ends after {protocol.window_seconds:g} s"
        )
    if interrupted:
        notes.append(f"interrupted after {taken.count} rounds")
    elif taken.over and (left or taken.count < protocol.samples):
        notes.append(f"the budget of {protocol.budget:g} s ended after {taken.count} rounds")
    return (*notes, *map(shortfall, left))


def compare(
    calls: Mapping[str, Call],
    protocol: Protocol,
    *,
    judged: Collection[str] | None = None,
    clock: Clock = time.perf_counter,
    progress: Progress = lambda _: None,
) -> TimingComparison:
    """Time `calls` side by side; the first is what the others are compared with.

    calls     name -> what does the whole work of one sample
    judged    names whose ratios have to converge; None for all
    clock     seconds, rising
    progress  is told now and then how far the measurement is

    Ctrl-C while measuring ends it: what was measured is returned, marked as interrupted. Raises KeyboardInterrupt where
    it comes in the warm-up or before FEWEST rounds were measured.
    """
    names = list(calls)
    windows, steady = warm_up(lambda: _round(calls, 0.0, clock)[:, 0], protocol, progress)
    taken = _Taken(names, names if judged is None else judged, protocol)
    interrupted = _measure(calls, taken, clock, progress)
    timings = {name: _timing(name, taken, steady=calm) for name, calm in zip(names, steady, strict=True)}
    return TimingComparison(
        order=tuple(names),
        timings=timings,
        warmup_windows=tuple(len(window) for window in windows),
        notes=_notes(windows, taken, timings.values(), interrupted=interrupted),
        interrupted=interrupted,
    )
