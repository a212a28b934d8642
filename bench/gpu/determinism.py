"""Bitwise equality of two runs of one computation: every fused call, and the whole encoder."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from tempme_export.bench.candidates import DTYPES
from tempme_export.bench.core.clocks import capture
from tempme_export.bench.core.decisions import WithAssignments
from tempme_export.bench.kernels.calls import fused_calls, merging_calls
from tempme_export.encoder.model import VideoEncoder
from tempme_export.encoder.recipe import Recipe

RUNS = 3
_DIRT = 2**26


@dataclass(frozen=True)
class DeterminismRow:
    """A computation, run `runs` times; `equal`: every bit came out alike. `nans` counts NaNs in the first run."""

    what: str
    dtype: str
    shape: str
    runs: int
    equal: bool
    nans: int

    @property
    def passed(self) -> bool:
        return self.equal and self.nans == 0


def _dirty(device: torch.device) -> None:
    """Leave NaNs in memory that the next run is given, so that what it does not write shows."""
    n = _DIRT if device.type == "cuda" else 2**16
    blocks = [torch.full((n >> shift,), torch.nan, device=device) for shift in range(0, 16, 2)]
    del blocks


def _tensors(result: object) -> Iterator[Tensor]:
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, list | tuple):
        for one in result:
            yield from _tensors(one)


def _bits(result: object) -> list[Tensor]:
    return [one.detach().contiguous().view(torch.uint8).clone() for one in _tensors(result)]


def repeat(what: str, dtype: str, shape: str, device: torch.device, run: Callable[[], object]) -> DeterminismRow:
    """Run it RUNS times in memory full of NaNs, and compare bit by bit."""
    with torch.inference_mode():
        _dirty(device)
        result = run()
        nans = sum(int(one.isnan().sum()) for one in _tensors(result) if one.is_floating_point())
        first, equal = _bits(result), True
        for _ in range(RUNS - 1):
            del result
            _dirty(device)
            result = run()
            again = _bits(result)
            equal &= len(again) == len(first) and all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    return DeterminismRow(what, dtype, shape, RUNS, equal, nans)


def encoder_rows(recipe: Recipe, batch: int, dtypes: Iterable[str], device: torch.device) -> Iterator[DeterminismRow]:
    """For each dtype the whole encoder with its decisions, called and, on a GPU, replayed from a CUDA graph; then every
    fused call of it that differs from those before in shapes or options."""
    size = recipe.backbone.image_size
    generator = torch.Generator(device).manual_seed(0)
    frames = torch.randn(batch, recipe.profile.frames, 3, size, size, generator=generator, device=device)
    for dtype in dtypes:
        encoder = VideoEncoder(recipe, DTYPES[dtype]).to(device)
        yield from _whole(WithAssignments(encoder), frames, dtype)
        seen = set()
        for call in merging_calls(fused_calls(encoder, frames)):
            options = tuple(tuple(one.shape) if isinstance(one, Tensor) else one for one in call.inputs)
            if (call.name, options) not in seen:
                seen.add((call.name, options))
                run = partial(call.run, *call.inputs)
                yield repeat(f"block {call.block}, {call.name}", dtype, call.shape, device, run)


def _whole(module: WithAssignments, frames: Tensor, dtype: str) -> Iterator[DeterminismRow]:
    device, shape = frames.device, " x ".join(map(str, frames.shape))
    yield repeat("encoder", dtype, shape, device, partial(module, frames))
    if device.type == "cuda":
        with torch.inference_mode():
            graph, results = capture((partial(module, frames),))

        def replay() -> object:
            graph.replay()
            return results

        yield repeat("encoder, CUDA graph", dtype, shape, device, replay)
        graph.reset()
