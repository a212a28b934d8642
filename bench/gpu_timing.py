"""Timing device work: CUDA graphs, events, and rounds in which every candidate takes a turn.

A CPU takes the same route with a wall clock, for rehearsals: what it times is not a measurement.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

T = TypeVar("T")
Call = Callable[[], object]

_WARM_UP = 3
_COPY_BYTES = 2**30
_MATRIX = 8192
_DEFAULT_L2 = 64 * 2**20


@dataclass(frozen=True)
class Spread:
    """Seconds per call: the median of `samples` samples and their 20th and 80th percentile."""

    median: float
    p20: float
    p80: float
    samples: int


@dataclass(frozen=True)
class Work:
    """What is timed as one: calls that do the same work, one after another, perhaps each on inputs of its own.

    graph  replay them from one CUDA graph; otherwise they are called as they are, launch by launch
    keep   in the graph every call writes to memory of its own; otherwise a call may write where the last one did
    """

    calls: tuple[Call, ...]
    graph: bool = False
    keep: bool = False


@dataclass(frozen=True)
class Effort:
    """How long to measure: `rounds` samples of at least `sample_s` seconds each, or fewer after `limit_s` seconds."""

    rounds: int = 25
    sample_s: float = 2e-3
    limit_s: float = 20.0


FEWEST = 5
"""Rounds taken even where the time limit is reached."""

Timer = Callable[[Mapping[str, Work]], dict[str, Spread]]


def spread(samples: list[float]) -> Spread:
    """Median and percentiles of seconds per call."""
    p20, median, p80 = (float(one) for one in np.percentile(samples, (20, 50, 80)))
    return Spread(median, p20, p80, len(samples))


def capture(calls: Sequence[Callable[[], T]], *, keep: bool = False) -> tuple[torch.cuda.CUDAGraph, list[T]]:
    """One CUDA graph of all calls in order, and what the last of them (with `keep`, each) returned.

    The calls run on a side stream first: kernels are compiled and libraries take their workspaces there. Results
    live in the graph's memory, and every replay writes them anew.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UP):
            for call in calls if keep else calls[:1]:
                call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    results: list[T] = []
    with torch.cuda.graph(graph):
        for call in calls:
            result = call()
            if keep or not results:
                results.append(result)
            else:
                results[0] = result
            del result
    torch.cuda.synchronize()
    return graph, results


class _Prepared:
    """A work that can be run again and again; holds the graph and its memory until closed."""

    def __init__(self, work: Work, device: torch.device) -> None:
        self._work, self._cuda = work, device.type == "cuda"
        self._graph: torch.cuda.CUDAGraph | None = None
        self._results: list[object] = []
        if work.graph and self._cuda:
            self._graph, self._results = capture(work.calls, keep=work.keep)
        else:
            for _ in range(_WARM_UP):
                work.calls[0]()
        self.repeat = 1

    def run(self) -> None:
        if self._graph is not None:
            self._graph.replay()
            return
        for call in self._work.calls:
            call()

    def sample(self) -> float:
        """Seconds per call."""
        return self._elapsed() / (self.repeat * len(self._work.calls))

    def _elapsed(self) -> float:
        if not self._cuda:
            start_s = time.perf_counter()
            for _ in range(self.repeat):
                self.run()
            return time.perf_counter() - start_s
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        for _ in range(self.repeat):
            self.run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    def settle(self, sample_s: float) -> None:
        """Choose how often a sample repeats the work, so that it lasts `sample_s` seconds."""
        self._elapsed()
        once = max(self._elapsed(), 1e-7)
        self.repeat = min(1000, max(1, math.ceil(sample_s / once)))

    def close(self) -> None:
        if self._graph is not None:
            self._graph.reset()
        self._graph, self._results = None, []


def timer(device: torch.device, effort: Effort) -> Timer:
    """Times works side by side: one sample of each, in order, round after round, so that drift hits all alike.

    On a CUDA device by its events; on a CPU by the wall clock, and graphs are calls.
    """

    def measure(works: Mapping[str, Work]) -> dict[str, Spread]:
        prepared: dict[str, _Prepared] = {}
        try:
            for name, work in works.items():
                prepared[name] = _Prepared(work, device)
                prepared[name].settle(effort.sample_s)
            samples: dict[str, list[float]] = {name: [] for name in works}
            start = time.perf_counter()
            for done in range(effort.rounds):
                if done >= FEWEST and time.perf_counter() - start > effort.limit_s:
                    break
                for name, one in prepared.items():
                    samples[name].append(one.sample())
            return {name: spread(taken) for name, taken in samples.items()}
        finally:
            for one in prepared.values():
                one.close()

    return measure


def copy_work(device: torch.device) -> tuple[Work, int]:
    """A copy within the device's memory, and the bytes it moves: each read once and written once."""
    size = _COPY_BYTES if device.type == "cuda" else 2**22
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return Work((lambda: target.copy_(source),)), 2 * size


def matrix_work(device: torch.device) -> tuple[Work, int]:
    """A square matrix product in bfloat16 (8192 on a GPU), and its floating-point operations."""
    n = _MATRIX if device.type == "cuda" else 256
    a, b = (torch.randn(n, n, device=device).to(torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    return Work((lambda: torch.mm(a, b, out=out),)), 2 * n**3


def l2_bytes(device: torch.device) -> int:
    """Size of the L2 cache, or a guess where torch does not tell; small on a CPU, which only rehearses."""
    if device.type != "cuda":
        return 2**16
    return int(getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0)) or _DEFAULT_L2
