"""The fused calls of an encoder: the encoder itself is run and listened to.

A call counts +1 where it is there because tokens merge, and -1 where it is what would run in its place without: the
add + LayerNorm of the same tokens, and attention alone. Their signed sum is what merging costs a block.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tempme_export.encoder.model import VideoEncoder
from tempme_export.encoder.ops import DENSE_FORMS
from tempme_export.kernels import aot, attention, match, merge

Inputs = tuple[Any, ...]
Operator: TypeAlias = "torch._ops.OpOverload[..., Any]"

LAUNCHERS: dict[str, Callable[..., Any]] = {
    name: launcher for module in (attention, match, merge) for name, launcher in vars(module).items()
}
"""What launches the kernels of an operator, by its name."""

_OPERATORS = torch.ops.tempme
_ATTENTION, _ATTENTION_MATCH = _OPERATORS.attention.default, _OPERATORS.attention_match.default
_MERGE_NORM, _ADD_NORM = _OPERATORS.merge_norm.default, _OPERATORS.add_norm.default


@dataclass(frozen=True)
class FusedCall:
    """One call of a fused operator, with the tensors and numbers that it was given."""

    run: Operator
    inputs: Inputs

    @property
    def name(self) -> str:
        return str(self.run).split(".")[1]


class _Listening(TorchDispatchMode):
    """Keeps every fused call, and with it what it reads."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[FusedCall] = []

    def __torch_dispatch__(
        self, func: Operator, types: object, args: Inputs = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in DENSE_FORMS:
            self.calls.append(FusedCall(func, args))
        return func(*args, **(kwargs or {}))


def fused_calls(encoder: VideoEncoder, frames: Tensor) -> list[FusedCall]:
    """Every fused call of one forward on [B, F, 3, S, S], in order; on `meta` they are shapes without memory."""
    with torch.no_grad(), _Listening() as heard:
        encoder(frames)
    return heard.calls


def launches_of(calls: list[FusedCall]) -> tuple[aot.Launch, ...]:
    """The launches of the calls on a GPU; nothing is launched. Raises ValueError for what the kernels do not take."""
    return aot.launches_of(lambda: [LAUNCHERS[call.name](*call.inputs) for call in calls])


@dataclass(frozen=True)
class KernelCall:
    """A fused call of one block, and the same in plain PyTorch.

    sign  +1 or -1, see above
    """

    block: int
    sign: int
    name: str
    inputs: Inputs
    run: Operator

    @property
    def plain(self) -> Callable[..., Any]:
        """Its dense form: what runs where there is no kernel."""
        return cast(Callable[..., Any], DENSE_FORMS[self.run])

    @property
    def shape(self) -> str:
        """Of the tokens, in words."""
        return " x ".join(map(str, self.inputs[0].shape))


def moved_bytes(*values: object) -> int:
    """Bytes of all tensors in inputs and outputs: every input read once and every output written once.

    Scores, split rows and anything else a kernel keeps to itself are not counted, so a rate above the device's copy
    means that caches helped, and a low one that the time goes elsewhere.
    """
    tensors = (one for value in values for one in (value if isinstance(value, tuple) else (value,)))
    return sum(one.numel() * one.element_size() for one in tensors if isinstance(one, Tensor))


def merging_calls(calls: list[FusedCall]) -> Iterator[KernelCall]:
    """The calls of an encoder in which tokens merge and, with sign -1, those that would run in their place."""
    attended = 0
    for call in calls:
        run, inputs = call.run, call.inputs
        if run in (_ATTENTION, _ATTENTION_MATCH):
            attended += 1
        if run is _MERGE_NORM:
            x, delta, _, _, _, weight, bias, factor, *_ = inputs
            block = attended if factor > 1 else attended - 1
            yield KernelCall(block, 1, call.name, inputs, run)
            instead = (x, torch.zeros_like(x) if delta is None else delta, weight, bias)
            yield KernelCall(block, -1, "add_norm", instead, _ADD_NORM)
        elif run is _ATTENTION_MATCH:
            yield KernelCall(attended - 1, 1, call.name, inputs, run)
            yield KernelCall(attended - 1, -1, "attention", inputs[:3], _ATTENTION)
        elif run is _OPERATORS.match_clips.default:
            yield KernelCall(attended, 1, call.name, inputs, run)
