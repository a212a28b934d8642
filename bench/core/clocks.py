"""The clock of a device: CUDA graphs, events, and calls that return the seconds between them.

A CPU takes the same route by the wall clock, for rehearsals: what it times is not a measurement.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from tempme_export.bench.core.protocol import Protocol, compare
from tempme_export.bench.core.timing import Timing

T = TypeVar("T")

SAMPLE_S = 2e-3
"""A sample repeats its work until it lasts so long, in seconds."""

_WARM_UP = 3
_COPY_BYTES = 2**30
_MATRIX = 8192
_DEFAULT_L2 = 64 * 2**20


@dataclass(frozen=True)
class Work:
    """Work that is timed as one: calls that do the same work, one after another, perhaps each on inputs of its own.

    graph  replay them from one CUDA graph; otherwise they are called as they are, launch by launch
    keep   in the graph every call writes to memory of its own; otherwise a call may write where the last one did
    """

    calls: tuple[Callable[[], object], ...]
    graph: bool = False
    keep: bool = False


Timer = Callable[[Mapping[str, Work]], dict[str, Timing]]


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


class DeviceCall:
    """A work as one call that returns the device's seconds for it, or the clock's on a CPU.

    The first call warms it up and fixes how often a sample repeats it. Holds the graph and its memory until closed.
    """

    def __init__(self, work: Work, device: torch.device, sample_s: float = SAMPLE_S) -> None:
        self._work, self._cuda, self._sample_s = work, device.type == "cuda", sample_s
        self._graph: torch.cuda.CUDAGraph | None = None
        self._results: list[object] = []
        self._repeat = 0

    def __call__(self) -> float:
        """Seconds of one of the work's calls."""
        if self._repeat == 0:
            self._choose_repeats()
        return self._elapsed() / (self._repeat * len(self._work.calls))

    def _choose_repeats(self) -> None:
        if self._work.graph and self._cuda:
            self._graph, self._results = capture(self._work.calls, keep=self._work.keep)
        else:
            for _ in range(_WARM_UP):
                self._work.calls[0]()
        self._repeat = 1
        self._elapsed()
        once = max(self._elapsed(), 1e-7)
        self._repeat = min(1000, max(1, math.ceil(self._sample_s / once)))

    def _run(self) -> None:
        if self._graph is not None:
            self._graph.replay()
            return
        for call in self._work.calls:
            call()

    def _elapsed(self) -> float:
        if not self._cuda:
            start_s = time.perf_counter()
            for _ in range(self._repeat):
                self._run()
            return time.perf_counter() - start_s
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        for _ in range(self._repeat):
            self._run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    def close(self) -> None:
        """Free the graph."""
        if self._graph is not None:
            self._graph.reset()
        self._graph, self._results, self._repeat = None, [], 0


def timer(device: torch.device, protocol: Protocol, sample_s: float = SAMPLE_S) -> Timer:
    """Times works side by side by the protocol: on a CUDA device by its events, on a CPU by the wall clock."""

    def measure(works: Mapping[str, Work]) -> dict[str, Timing]:
        calls = {name: DeviceCall(work, device, sample_s) for name, work in works.items()}
        try:
            return compare(calls, protocol).timings
        finally:
            for call in calls.values():
                call.close()

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
