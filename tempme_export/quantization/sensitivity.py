"""What each product costs in accuracy when it alone is computed in 8 bits, and which are therefore left in float."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tempme_export.model import Merges, Stages, VideoEncoder
from tempme_export.quantization.products import (
    Calls,
    Range,
    Seen,
    corrected_bias,
    hooked,
    products,
    rounded_weight,
)

LIMIT = 2e-3  # of centred cosine that one product may cost: a fifth of what the whole tower may


@dataclass(frozen=True)
class Sensitivity:
    """One product. `cost` is what the median centred cosine of the calibration data loses when it alone is rounded.

    The median, because a clip whose decisions nearly tie may turn with any rounding whatever, which is no product's
    fault and would put the first that turns it into float.
    """

    product: str
    cost: float

    @property
    def in_float(self) -> bool:
        """Whether it is left in float: it costs more than LIMIT, or what cannot be told."""
        return not self.cost <= LIMIT


def centred_loss(expected: Tensor, found: Tensor) -> float:
    """1 - the median over rows of the cosine after the mean of `expected` is subtracted from both. [n, E] each."""
    mean = expected.double().mean(dim=0)
    return 1 - float(F.cosine_similarity(expected - mean, found - mean, dim=-1).median())


def _stages(tower: nn.Module, call: Tensor) -> Stages:
    return tower.stages(Merges()) if isinstance(tower, VideoEncoder) else tower.stages(call)


def _stage_of(product: str) -> int:
    """Blocks are the stages between the first and the last."""
    part, *rest = product.split(".")
    if part == "blocks":
        return int(rest[0]) + 1
    return 0 if part == "conv1" else -1


def _states(stages: Stages, call: Tensor) -> list[Any]:
    """What goes into each stage, and what comes out of the last."""
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


@torch.inference_mode()
def measure(
    tower: nn.Module, ranges: Mapping[str, Range], seen: Mapping[str, Seen], calls: Calls
) -> tuple[Sensitivity, ...]:
    """Every product of a tower, the costliest first.

    calls  at least two inputs: one alone has no centre
    """
    stages = [_stages(tower, call) for call in calls]
    states = [_states(one, call) for one, call in zip(stages, calls, strict=True)]
    expected = torch.cat([one[-1] for one in states])
    found = []
    for name, module in products(tower).items():
        first = _stage_of(name)
        weight, bias = module.weight, module.bias
        module.weight, module.bias = rounded_weight(weight), corrected_bias(module, seen[name])
        try:
            with hooked(tower, lambda which, x, name=name: ranges[name].rounded(x) if which == name else None):
                rounded = torch.cat([_from(one, first, kept) for one, kept in zip(stages, states, strict=True)])
        finally:
            module.weight, module.bias = weight, bias
        found.append(Sensitivity(name, centred_loss(expected, rounded)))
    return tuple(sorted(found, key=lambda one: -one.cost))
