"""Time that a device works on a call, by its own events."""

from collections.abc import Callable
from typing import Any

import torch


def timed(run: Callable[[], object], device: torch.device, cuda: Any = torch.cuda) -> Callable[[], float]:
    """A call that launches `run` on a GPU's current stream, waits, and returns the seconds between two of the device's
    own events around it."""
    start, end = (cuda.Event(enable_timing=True) for _ in range(2))
    stream = cuda.current_stream(device)

    @torch.inference_mode()
    def call() -> float:
        start.record(stream)
        run()
        end.record(stream)
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3

    return call
