"""The learning rate over a run: a linear rise, then half a cosine down to nothing."""

import math


def warmup_steps(total: int, warmup: float) -> int:
    """How many of `total` steps rise; `warmup` is their share."""
    return round(total * warmup)


def rate_at(step: int, total: int, warmup: float, peak: float) -> float:
    """Learning rate of step 0, 1, ... total - 1.

    The first step has peak / n of n rising steps, the last rising one and the first after it the peak; what follows
    falls along a cosine that reaches 0 at `total`, one step after the last.
    """
    rising = warmup_steps(total, warmup)
    if step < rising:
        return peak * (step + 1) / rising
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rising) / (total - rising)))
