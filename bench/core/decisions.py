"""Merge decisions: every merge's assignment, and the share of tokens that go elsewhere than the original's."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tempme_export.bench.core.candidate import Entry
from tempme_export.encoder.model import Merges, VideoEncoder
from tempme_export.encoder.reference import MergeLog, ReferenceVideo
from tempme_export.runtime.pytorch import TorchRunner

T = TypeVar("T")


class WithAssignments(nn.Module):
    """The fast encoder with its decisions as further outputs."""

    def __init__(self, encoder: VideoEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, frames: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """frames [B, F, 3, S, S] -> embedding [B, E] and every merge's assignment int32."""
        merges = Merges()
        embedding = self.encoder.encode(frames, None, merges)
        return embedding, tuple(assign for assign, _ in merges)


@torch.inference_mode()
def decisions(entry: Entry, frames: NDArray[np.float32]) -> tuple[Tensor, ...] | None:
    """Every merge's assignment; None where the path does not tell, as compiled code does not.

    frames  [B, F, 3, S, S], normalised pixels
    """
    runner = entry.runner
    if not isinstance(runner, TorchRunner):
        return None
    module, (on_device,) = runner.module, runner.to_device({"frames": frames})
    if isinstance(module, VideoEncoder):
        _, found = WithAssignments(module)(on_device)
        return tuple(found)
    with torch.autocast(on_device.device.type, torch.bfloat16, enabled=entry.precision == "bf16"):
        inner = getattr(module, "module", module)
        if not isinstance(inner, ReferenceVideo):
            return None
        log = MergeLog()
        inner.video_feature(on_device, log=log)
    return tuple(step.assign for step in log.steps)


def changed_share(expected: Sequence[Tensor], found: Sequence[Tensor] | None) -> float | None:
    """Share of tokens that go elsewhere, over all merges; None where `found` tells none."""
    if not found:
        return None
    changed = sum(int((a != b).sum()) for a, b in zip(expected, found, strict=True))
    return changed / sum(one.numel() for one in expected)


def in_float32(run: Callable[[], T]) -> T:
    """`run` in float32 throughout: convolutions do not round to TF32, as they otherwise do on a GPU."""
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        return run()
    finally:
        torch.backends.cudnn.allow_tf32 = allowed
