"""The learning rate over a run: a linear rise, then half a cosine down to nothing."""

import math


def warmup_steps(total: int, warmup: float) -> int:
    """Number of warm-up steps among `total`; `warmup` is their share. At least one where there is any."""
    return max(1, round(total * warmup)) if warmup else 0


def rate_at(step: int, total: int, warmup: float, peak: float, from_zero: bool = True) -> float:
    """Learning rate of step 0, 1, ... total - 1.

    from_zero  step k of n rising ones has k / n of the peak: the first has 0 and moves nothing. Otherwise it has
               (k + 1) / n: the last rising one has the peak already
    The first step after the rise has the peak; what follows falls along a cosine that reaches 0 at `total`, one step
    after the last.
    """
    rising = warmup_steps(total, warmup)
    if step < rising:
        return peak * (step if from_zero else step + 1) / rising
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rising) / (total - rising)))
