"""The products of a tower that can be computed in 8 bits, and what goes into them.

Activations are unsigned with one scale and zero point per tensor, fixed before any video is seen: what a video gives
cannot depend on its neighbours. Weights are signed and symmetric with one scale per output channel, and have 7 bits of
the 8: a processor without int8 dot products adds products in pairs in 16 bits, and 255 * 64 * 2 still fits, where
255 * 127 * 2 would saturate. So every runtime is exact on every processor, without an option of its own.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tempme_export.encoder.model import Linear, TextEncoder, VideoEncoder

ACTIVATION_STEPS = 255
WEIGHT_STEPS = 64

Encoder = VideoEncoder | TextEncoder
Calls = Sequence[Tensor]  # one input of the tower each


@dataclass(frozen=True)
class ActivationStats:
    """The input of a product over the calibration data.

    lowest, highest  of each channel, float32 [I]
    total            of each channel, float64 [I]
    scatter          sum of the outer products of all vectors less their mean, float32 [I, I]
    rows             how many vectors these are
    """

    lowest: Tensor
    highest: Tensor
    total: Tensor
    scatter: Tensor
    rows: int

    @classmethod
    def of(cls, rows: Tensor) -> "ActivationStats":
        """Statistics of one run's vectors, float32 [R, I] with R >= 1."""
        total = rows.sum(dim=0, dtype=torch.float64)
        # About the mean from the start: in float32, squares of a large mean would drown what is about it.
        apart = rows - (total / len(rows)).to(rows.dtype)
        return cls(rows.amin(dim=0), rows.amax(dim=0), total, apart.T @ apart, len(rows))

    @property
    def is_finite(self) -> bool:
        """True where numbers can be drawn from it: no infinity, no NaN, and none by squaring."""
        return bool(self.total.isfinite().all() and self.scatter.isfinite().all())

    @property
    def mean(self) -> Tensor:
        """[I]: the average of each channel."""
        return self.total / self.rows

    def joined(self, other: "ActivationStats") -> "ActivationStats":
        """Statistics of both together."""
        rows = self.rows + other.rows
        apart = (self.mean - other.mean).to(self.scatter.dtype)
        return ActivationStats(
            torch.minimum(self.lowest, other.lowest),
            torch.maximum(self.highest, other.highest),
            self.total + other.total,
            self.scatter + other.scatter + torch.outer(apart, apart) * (self.rows * other.rows / rows),
            rows,
        )

    def divided(self, factors: Tensor) -> "ActivationStats":
        """Statistics once the channels are divided by `factors` [I] > 0."""
        scatter = self.scatter / torch.outer(factors, factors)
        return ActivationStats(self.lowest / factors, self.highest / factors, self.total / factors, scatter, self.rows)

    @property
    def largest(self) -> Tensor:
        """[I]: the largest magnitude of each channel."""
        return torch.maximum(self.lowest.abs(), self.highest.abs())


@dataclass(frozen=True)
class Range:
    """Range of the 256 values of a product's input, both ends included; zero is among them."""

    lowest: float
    highest: float

    @classmethod
    def of(cls, lowest: float, highest: float) -> "Range":
        """The range widened to hold zero, and never empty."""
        low, high = min(lowest, 0.0), max(highest, 0.0)
        return cls(low, high if high > low else low + 1.0)

    @property
    def scale(self) -> float:
        """Distance of two neighbouring values."""
        return (self.highest - self.lowest) / ACTIVATION_STEPS

    @property
    def zero_point(self) -> int:
        """The integer that stands for zero."""
        return round(-self.lowest / self.scale)

    def rounded(self, x: Tensor) -> Tensor:
        """x as its 8 bits give it back."""
        return torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero_point, 0, ACTIVATION_STEPS)


def weight_scales(weight: Tensor) -> Tensor:
    """[O]: distance of two neighbouring steps of each output channel, of which the largest weight is the last."""
    scale = weight.abs().amax(dim=1) / WEIGHT_STEPS
    return torch.where(scale == 0, 1.0, scale)


def products(tower: nn.Module) -> dict[str, Linear]:
    """Every product with weights by its name, in the order of the forward pass."""
    return {name: module for name, module in tower.named_modules() if isinstance(module, Linear)}


@contextmanager
def hooked(tower: nn.Module, hook: Callable[[str, Tensor], Tensor | None]) -> Iterator[None]:
    """Call `hook` with the name and input of every product while the context is open; it may give another input."""

    def attach(name: str) -> Any:
        return lambda module, args: hook(name, args[0])

    handles = [module.register_forward_pre_hook(attach(name)) for name, module in products(tower).items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _counted(call: Tensor, x: Tensor) -> Tensor:
    """[R, I]: the rows of a product's input [..., I] that count. Of a text they end with its end token, the largest id:
    no embedding depends on what lies behind, and that is most of what there is."""
    if call.is_floating_point() or x.shape[1] != call.shape[1]:
        return x.flatten(0, -2)
    return x[torch.arange(call.shape[1]) <= call.argmax(dim=-1, keepdim=True)]


@torch.inference_mode()
def watch(tower: nn.Module, calls: Calls, note: Callable[[str, Tensor], None]) -> None:
    """Run the calibration data through a tower. `note` is given every product's name and its input [R, I]."""
    for call in calls:

        def counted(name: str, x: Tensor, call: Tensor = call) -> None:
            note(name, _counted(call, x))

        with hooked(tower, counted):
            tower(call)


def observe(tower: nn.Module, calls: Calls) -> dict[str, ActivationStats]:
    """Input statistics of each product over the calibration data, at least one call."""
    seen: dict[str, ActivationStats] = {}

    def note(name: str, rows: Tensor) -> None:
        here = ActivationStats.of(rows)
        seen[name] = seen[name].joined(here) if name in seen else here

    watch(tower, calls, note)
    return seen
