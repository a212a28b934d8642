"""The 95 % interval of a speed, from every sample."""

from collections.abc import Sequence

from tempme_export.bench.core.bootstrap import estimate

FEWEST = 5
RESAMPLES, SEED = 2000, 0


def rate_interval(seconds: Sequence[float], batch: int) -> tuple[float, float] | None:
    """Videos/s: `batch` over the 95 % interval of the median call, which took `seconds`, in the order measured.

    By a block bootstrap, so that samples that depend on those before them do not narrow it. None for fewer than five
    samples, of which no spread can be told.
    """
    import numpy as np

    if len(seconds) < FEWEST:
        return None
    median = estimate(np.asarray(seconds, dtype=np.float64), resamples=RESAMPLES, seed=SEED).ratio()
    return batch / median.high, batch / median.low
