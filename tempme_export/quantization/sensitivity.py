"""Accuracy lost to each product when it alone is computed in 8 bits, and the products therefore left in float."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tempme_export.encoder.model import Merges, Stages, VideoEncoder
from tempme_export.progress import SILENT, Progress
from tempme_export.quantization.products import Calls, Encoder, Range, hooked, products
from tempme_export.quantization.rounding import Rounded, put

# Of centred cosine, what all that is rounded in a tower may cost together. bfloat16 alone costs a ViT-B/16 of random
# weights 0.016: below that, products would go back to float for decisions that turn at any rounding.
LIMIT = 2e-2


@dataclass(frozen=True)
class Sensitivity:
    """One product, or the text embedding.

    `cost` is what the median centred cosine of the calibration data loses when it alone is rounded.
    The median, because a clip whose decisions nearly tie may turn with any rounding whatever, which is no product's
    fault. For the same reason a cost only gives an order and has no limit of its own: on a ViT-B/32 with planted
    outliers such a limit left nine products in float, and their clips were no nearer than those of the whole tower.
    """

    product: str
    cost: float


@torch.inference_mode()
def embed(tower: nn.Module, calls: Calls) -> Tensor:
    """[n, E]: what a tower gives for all calls."""
    return torch.cat([tower(call) for call in calls])


def costliest_first(found: Iterable[Sensitivity]) -> tuple[Sensitivity, ...]:
    """In the order in which they are given back to float: what cannot be told comes first."""
    return tuple(sorted(found, key=lambda one: -math.inf if math.isnan(one.cost) else -one.cost))


def centred_loss(expected: Tensor, found: Tensor) -> float:
    """1 - the median over rows of the cosine after the mean of `expected` is subtracted from both. [n, E] each."""
    mean = expected.double().mean(dim=0)
    return 1 - float(F.cosine_similarity(expected - mean, found - mean, dim=-1).median())


def _stages(tower: Encoder, call: Tensor) -> Stages:
    """For one run: what a video encoder merges is kept as long as its stages are."""
    return tower.stages(Merges()) if isinstance(tower, VideoEncoder) else tower.stages(call)


def _stage_of(product: str) -> int:
    """Blocks are the stages between the first and the last."""
    part, *rest = product.split(".")
    if part == "blocks":
        return int(rest[0]) + 1
    return 0 if part == "conv1" else -1


def _states(stages: Stages, call: Tensor) -> list[Any]:
    """Input of each stage, and the output of the last."""
    states: list[Any] = [call]
    for stage in stages:
        states.append(stage(states[-1]))
    return states


def _from(stages: Stages, first: int, states: Sequence[Any]) -> Tensor:
    """The embedding when everything from stage `first` on is computed anew."""
    x = states[first % len(stages)]
    for stage in stages[first:]:
        x = stage(x)
    return x


@contextmanager
def rounded(tower: nn.Module, parameters: Mapping[str, Rounded], ranges: Mapping[str, Range]) -> Iterator[None]:
    """Compute the products named by `parameters` in 8 bits while the context is open."""
    before = {name: Rounded(one.weight, one.bias) for name, one in products(tower).items() if name in parameters}
    put(tower, parameters)
    try:
        with hooked(tower, lambda name, x: ranges[name].rounded(x) if name in parameters else None):
            yield
    finally:
        put(tower, before)


@torch.inference_mode()
def measure(
    tower: Encoder,
    parameters: Mapping[str, Rounded],
    ranges: Mapping[str, Range],
    calls: Calls,
    progress: Progress = SILENT,
) -> tuple[Sensitivity, ...]:
    """Every product of a tower, the costliest first.

    parameters  of every product in 8 bits
    calls       at least two inputs: one alone has no centre
    """
    states = [_states(_stages(tower, call), call) for call in calls]
    expected = torch.cat([one[-1] for one in states])
    found = []
    with progress.step("trying products in 8 bits", len(parameters), "products") as step:
        for done, (name, one) in enumerate(parameters.items()):
            step.advance(done, name)
            with rounded(tower, {name: one}, ranges):
                parts = [
                    _from(_stages(tower, call), _stage_of(name), kept) for call, kept in zip(calls, states, strict=True)
                ]
            found.append(Sensitivity(name, centred_loss(expected, torch.cat(parts))))
    return costliest_first(found)


@torch.inference_mode()
def choose_in_float(
    tower: nn.Module,
    parameters: Mapping[str, Rounded],
    ranges: Mapping[str, Range],
    calls: Calls,
    expected: Tensor,
    sensitivities: Sequence[Sensitivity],
    limit: float = LIMIT,
) -> tuple[tuple[str, ...], float]:
    """Leave the costliest in float, one after another, until the tower keeps within a limit; none if it does at once.

    expected  [n, E]: what `calls` gave before anything was rounded
    Returns the products and what all that is rounded costs together.
    """
    count = 0
    while True:
        in_float = tuple(one.product for one in sensitivities[:count])
        kept = {name: one for name, one in parameters.items() if name not in in_float}
        with rounded(tower, kept, ranges):
            cost = centred_loss(expected, embed(tower, calls))
        if cost <= limit or not kept:
            return in_float, cost
        count += 1
