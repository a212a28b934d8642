"""Measurements: the timings of a comparison, and how well its ratios are known."""

from dataclasses import dataclass

import numpy as np

from tempme_export.bench.core.bootstrap import Ratio
from tempme_export.errors import UnstableError


@dataclass(frozen=True)
class Timing:
    """One of those that were measured side by side.

    samples         seconds per call, none dropped; sample i was taken in round i. One that has converged takes no part
                    in later rounds
    device_samples  the same by events of the device; empty where the call gives none
    steady          the warm-up converged, and the thirds of the measurement agree
    ratio           times as fast as the first, with the interval that another run should agree with
    half_width      half of the ratio's interval in this run, as a share of it
    converged       whether that is narrow enough
    needs           seconds that narrowing it would take, by 1 / sqrt(rounds); 0 where it is
    """

    name: str
    samples: tuple[float, ...]
    steady: bool
    ratio: Ratio
    half_width: float = 0.0
    converged: bool = True
    needs: float = 0.0
    device_samples: tuple[float, ...] = ()

    @property
    def seconds(self) -> tuple[float, ...]:
        """By the device where it tells, else by the clock."""
        return self.device_samples or self.samples

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
        return float(np.mean(self.seconds))

    @property
    def cov(self) -> float:
        """Coefficient of variation: standard deviation over mean."""
        return float(np.std(self.seconds, ddof=1) / np.mean(self.seconds))

    def times_as_fast_as(self, other: "Timing") -> float:
        """The median ratio over the rounds that both took part in."""
        rounds = min(len(self.seconds), len(other.seconds))
        return float(np.median(np.divide(other.seconds[:rounds], self.seconds[:rounds])))

    def percentile(self, q: float) -> float:
        """The q-th percentile in seconds, linear between samples."""
        return float(np.percentile(self.seconds, q))


@dataclass(frozen=True)
class TimingComparison:
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
    def unconverged(self) -> list[Timing]:
        """Those whose ratio is not known well enough."""
        return [timing for timing in self.timings.values() if not timing.converged]

    def require_converged(self) -> None:
        """Raise UnstableError naming those whose ratio did not converge."""
        if self.unconverged:
            raise UnstableError(
                f"{'; '.join(map(shortfall, self.unconverged))}. Measure longer with --budget, or close other programs."
            )


def shortfall(timing: Timing) -> str:
    """Distance of a ratio from convergence, and what it would take, in words."""
    return (
        f"the ratio of {timing.name} has not converged: it is known within {100 * timing.half_width:.3g} %, and about "
        f"{timing.needs:.0f} s more would do"
    )
