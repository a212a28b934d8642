"""Intervals of medians and of ratios when samples depend on those before them.

On a shared machine a slow moment lasts for many samples. Drawing single rounds then counts one moment as many
independent ones, and the interval comes out too narrow. Here whole stretches of rounds are drawn.
"""

import functools
import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

LEVEL = 0.95
"""Of every interval that names no other."""

RUN_TO_RUN, RUN_TO_RUN_SHARE = 0.01, 0.25
"""Standard deviation of the logarithm of a ratio between runs of one program, beside what the samples of a run show: so
much, or this share of the spread of single rounds where that is more.

Memory lies elsewhere in each process, threads on other cores, other programs come and go (Kalibera and Jones 2013,
"Rigorous benchmarking in reasonable time"). A single run cannot show it, so what is compared between runs allows for
it. Measured on a virtual machine of two cores that others used too: 0.002, 0.007 and 0.016 of three ratios in sixteen
processes of 250 rounds that spread by 0.04; 0.06 in six processes under load whose rounds spread by 0.22."""

_QUARTILES = 2 * NormalDist().inv_cdf(0.75)
"""Between the quartiles of a normal distribution, in standard deviations."""

AT_ONCE = 4_000_000


@dataclass(frozen=True)
class Ratio:
    """Speed as a multiple of the first, with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Estimate:
    """The logarithm of a median, or of a ratio of two.

    log      natural logarithm
    error    its standard error
    freedom  degrees of freedom behind `error`: independent stretches of rounds less one
    spread   standard deviation of the logarithm of a single round, from the middle half of the rounds
    """

    log: float
    error: float
    freedom: int
    spread: float = 0.0

    def ratio(self, level: float = LEVEL) -> Ratio:
        """The quantity itself with its two-sided interval at `level`."""
        half = student_t(level, self.freedom) * self.error
        return Ratio(math.exp(self.log), math.exp(self.log - half), math.exp(self.log + half))

    def across_runs(self) -> "Estimate":
        """The estimate with an error that allows for what differs between runs too, which counts as known."""
        return self.minus(Estimate(0.0, max(RUN_TO_RUN, RUN_TO_RUN_SHARE * self.spread), 1000))

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

    Twice the length by the rule of Politis and White (2004) for the circular block bootstrap, as corrected by Patton,
    Politis and White (2009), which is not taken below n^(1/3); at most min(3 sqrt(n), n / 3), but n^(1/3) at least.
    Twice, for their length has the error of the interval's width in mind, and intervals that hold the truth as often as
    they say want longer blocks (Sun, Phillips and Jin 2008): at AR(1) 0.7 and 100 rounds, 93 % in place of 88 %.
    """
    n = len(series)
    shortest = math.ceil(n ** (1 / 3))
    longest = max(shortest, min(math.ceil(3 * math.sqrt(n)), n // 3))
    return min(longest, 2 * max(shortest, math.ceil(_optimal_length(series))))


def _optimal_length(series: Floats) -> float:
    """Rounds in one block by Politis and White; 0 where the series tells nothing."""
    n = len(series)
    centred = series - series.mean()
    if n < 3 or not centred.any():
        return 0.0
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
    return float((1.5 * slope**2 / spectrum**2 * n) ** (1 / 3)) if spectrum > 0 else 0.0


def _ranks(series: Floats) -> Floats:
    """Ranks, equal values sharing their mean: ranked by time, those of a coarse clock would look like drift."""
    _, inverse, counts = np.unique(series, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def estimate(series: Floats, *, resamples: int, seed: int, at_once: int = AT_ONCE) -> Estimate:
    """The logarithm of the median of `series`, its error by a circular block bootstrap.

    series   [rounds] float64 above 0, in the order measured
    at_once  drawn samples held in memory together

    The block length follows the autocorrelation of the ranks, which no single spike moves. The error is divided by
    sqrt(1 - block / rounds), since blocks vary around their own mean, and its few independent blocks count as degrees
    of freedom of Student's t.
    """
    n = len(series)
    block = block_length(_ranks(series))
    blocks = math.ceil(n / block)
    starts = np.random.default_rng(seed).integers(n, size=(resamples, blocks, 1))
    medians = np.empty(resamples)
    for chunk in np.array_split(np.arange(resamples), math.ceil(resamples * n / at_once)):
        drawn = ((starts[chunk] + np.arange(block)) % n).reshape(len(chunk), -1)[:, :n]
        medians[chunk] = np.median(series[drawn], axis=1)
    return Estimate(
        log=math.log(np.median(series)),
        error=float(np.std(np.log(medians), ddof=1) / math.sqrt(1 - block / n)),
        freedom=max(1, blocks - 1),
        spread=float(np.subtract(*np.percentile(np.log(series), (75, 25))) / _QUARTILES),
    )


def bootstrap_ratio(base: Floats, other: Floats, *, resamples: int, seed: int) -> Ratio:
    """The median over rounds of base / other with the 95 % interval that another run should agree with: as `estimate`,
    and `RUN_TO_RUN` besides.

    base, other  [rounds] float64, seconds; entry i of both was taken in the same round

    Within a round, what slows the machine for longer cancels; in the ratio of the two medians it does not, for a median
    falls into another moment for each. Between sixteen processes on a shared virtual machine the ratio of medians
    scattered by 1.3 to 2.9 %, the median of ratios by 0.5 to 1.7 %.
    """
    return estimate(base / other, resamples=resamples, seed=seed).across_runs().ratio()


@functools.lru_cache(maxsize=1024)
def student_t(level: float, freedom: int) -> float:
    """The t that |T| stays below with probability `level`, T with `freedom` (1 or more) degrees of freedom.

    Abramowitz and Stegun, 26.7.3 and 26.7.4, inverted by bisection in the angle atan(t / sqrt(freedom)); from 30 on
    their expansion 26.7.5, which is then right to 1e-4.
    """
    if freedom >= 30:
        z = NormalDist().inv_cdf((1 + level) / 2)
        first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
        return (
            z + first / freedom + second / freedom**2 + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384 / freedom**3
        )

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
