"""Intervals of medians and of their ratios when samples depend on those before them.

On a shared machine a slow moment lasts for many samples. Drawing single rounds then counts one moment as many
independent ones, and the interval comes out too narrow. Here whole stretches of rounds are drawn.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

LEVEL = 0.95
"""Of every interval that names no other."""

_AT_ONCE = 4_000_000
"""Drawn samples held in memory together."""


@dataclass(frozen=True)
class Ratio:
    """How many times as fast as the first, with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Estimate:
    """The logarithm of a median or of a ratio of medians.

    log      natural logarithm
    error    its standard error
    freedom  degrees of freedom behind `error`: independent stretches of rounds less one
    """

    log: float
    error: float
    freedom: int

    def ratio(self, level: float = LEVEL) -> Ratio:
        """The quantity itself with its two-sided interval at `level`."""
        half = student_t(level, self.freedom) * self.error
        return Ratio(math.exp(self.log), math.exp(self.log - half), math.exp(self.log + half))

    def minus(self, other: "Estimate") -> "Estimate":
        """The difference of two independent estimates; its degrees of freedom by Welch and Satterthwaite."""
        own, others = self.error**2, other.error**2
        if own + others == 0:
            freedom = min(self.freedom, other.freedom)
        else:
            freedom = int((own + others) ** 2 / (own**2 / self.freedom + others**2 / other.freedom))
        return Estimate(self.log - other.log, math.sqrt(own + others), max(1, freedom))


def block_length(series: Floats) -> int:
    """Rounds in one block, from the autocorrelation of `series`, [rounds] float64.

    The rule of Politis and White (2004) for the circular block bootstrap, as corrected by Patton, Politis and
    White (2009), but not below n^(1/3) and not above the larger of that and min(3 sqrt(n), n / 3).
    """
    n = len(series)
    shortest = math.ceil(n ** (1 / 3))
    longest = max(shortest, min(math.ceil(3 * math.sqrt(n)), n // 3))
    centred = series - series.mean()
    if n < 3 or not centred.any():
        return shortest
    size = 1 << (2 * n - 1).bit_length()
    covariance = np.fft.irfft(np.abs(np.fft.rfft(centred, size)) ** 2, size)[:n] / n
    run = max(5, math.ceil(math.sqrt(math.log10(n))))
    lags = min(n - 1, math.ceil(math.sqrt(n)) + run)
    small = np.abs(covariance[1 : lags + 1] / covariance[0]) < 2 * math.sqrt(math.log10(n) / n)
    last = next((m for m in range(lags) if small[m : m + run].all()), lags)
    bandwidth = min(2 * max(last, 1), lags)
    lag = np.arange(1, bandwidth + 1)
    window = np.minimum(1, 2 * (1 - lag / bandwidth))
    slope = 2 * np.sum(window * lag * covariance[1 : bandwidth + 1])
    spectrum = covariance[0] + 2 * np.sum(window * covariance[1 : bandwidth + 1])
    if spectrum <= 0:
        return shortest
    optimal = (1.5 * slope**2 / spectrum**2 * n) ** (1 / 3)
    return int(min(longest, max(shortest, math.ceil(optimal))))


def estimate(rounds: Floats, powers: Sequence[int], *, resamples: int, seed: int) -> Estimate:
    """The logarithm of a product of powers of medians, its error by a circular block bootstrap over rounds.

    rounds  [rounds, contenders] float64, seconds above 0; a row is drawn as a whole, so that what slowed all of
            a round cancels in a ratio
    powers  one per contender: (1,) is the median of one, (1, -1) the ratio of the first to the second

    The block length follows the autocorrelation of the differences of ranks, which no single spike moves and in
    which common drift cancels as it does in the ratio. The error is divided by sqrt(1 - block / rounds), by
    which blocks around their own mean vary too little, and its few independent blocks count as degrees of
    freedom of Student's t.
    """
    n = len(rounds)
    weights = np.array(powers, dtype=np.float64)
    block = block_length(rounds.argsort(axis=0, kind="stable").argsort(axis=0, kind="stable") @ weights)
    blocks = math.ceil(n / block)
    generator = np.random.default_rng(seed)
    starts = generator.integers(n, size=(resamples, blocks, 1))
    logs = np.empty(resamples)
    for chunk in np.array_split(np.arange(resamples), math.ceil(resamples * n / _AT_ONCE)):
        drawn = ((starts[chunk] + np.arange(block)) % n).reshape(len(chunk), -1)[:, :n]
        logs[chunk] = sum(weight * np.log(np.median(rounds[:, i][drawn], axis=1)) for i, weight in enumerate(weights))
    return Estimate(
        log=float(weights @ np.log(np.median(rounds, axis=0))),
        error=float(np.std(logs, ddof=1) / math.sqrt(1 - block / n)),
        freedom=max(1, blocks - 1),
    )


def bootstrap_ratio(base: Floats, other: Floats, *, resamples: int, seed: int) -> Ratio:
    """Ratio of the median times base / other with its 95 % interval, as `estimate`.

    base, other  [rounds] float64, seconds; entry i of both was taken in the same round
    """
    return estimate(np.stack([base, other], axis=1), (1, -1), resamples=resamples, seed=seed).ratio()


@functools.lru_cache(maxsize=1024)
def student_t(level: float, freedom: int) -> float:
    """The t that |T| stays below with probability `level`, T with `freedom` (1 or more) degrees of freedom.

    Abramowitz and Stegun, 26.7.3 and 26.7.4, inverted by bisection in the angle atan(t / sqrt(freedom)).
    """

    def probability(angle: float) -> float:
        odd = freedom % 2
        sine, cosine = math.sin(angle), math.cos(angle)
        term, total = (cosine if odd else 1.0), 0.0
        for k in range(1 + odd, freedom, 2):
            total += term
            term *= cosine**2 * k / (k + 1)
        return (angle + sine * total) * 2 / math.pi if odd else sine * total

    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if probability(middle) < level else (low, middle)
    return math.sqrt(freedom) * math.tan(low)
