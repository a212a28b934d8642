"""One training step: two towers, one loss over the whole batch, one update."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tempme_export.errors import BackendError
from tempme_export.media.preprocess import Preprocess
from tempme_export.training.distributed import World
from tempme_export.training.encoder import TrainableModel
from tempme_export.training.loss import contrastive_loss
from tempme_export.training.optimizer import clamp_scale

_BUCKET = 1 << 24  # values averaged in one message: 64 MB of float32


@dataclass(frozen=True)
class Outcome:
    """Result of one step. `pairs` of the batch counted; the weights moved only where `finite`."""

    loss: float
    gradient_norm: float
    temperature: float
    pairs: int

    @property
    def finite(self) -> bool:
        """True where neither loss nor gradient is NaN or infinite."""
        return math.isfinite(self.loss) and math.isfinite(self.gradient_norm)


def resolve_precision(precision: str, device: torch.device, cuda: Any = torch.cuda) -> str:
    """`fp32` or `bf16` for what was asked; auto is bf16 on a GPU that has it. Raises BackendError where it has not."""
    has_bf16 = device.type == "cpu" or cuda.is_bf16_supported()
    if precision == "auto":
        return "bf16" if device.type == "cuda" and has_bf16 else "fp32"
    if precision == "bf16" and not has_bf16:
        raise BackendError(f"--precision bf16: {cuda.get_device_name(device)} has no bfloat16. Use fp32.")
    return precision


class Normalise:
    """uint8 pictures to the encoder's input, on the device where it trains."""

    def __init__(self, preprocess: Preprocess, device: torch.device) -> None:
        self.mean = torch.tensor(preprocess.mean, device=device)[:, None, None]
        self.std = torch.tensor(preprocess.std, device=device)[:, None, None]

    def __call__(self, pixels: Tensor) -> Tensor:
        """uint8 [..., S, S, 3] -> float32 [..., 3, S, S], value for value what Preprocess.normalise gives."""
        channels_first = pixels.movedim(-1, -3).contiguous()  # as bytes, and before broadcasts over whole pictures
        return channels_first.float().div_(255).sub_(self.mean).div_(self.std)


def _buckets(gradients: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    for gradient in gradients:
        if bucket and sum(g.numel() for g in bucket) + gradient.numel() > _BUCKET:
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket


def average_gradients(parameters: Iterable[nn.Parameter], world: World) -> None:
    """Mean of every gradient over all processes, in place; a parameter without one has none anywhere."""
    if world.size == 1:
        return
    for bucket in _buckets(p.grad for p in parameters if p.grad is not None):
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
        dist.all_reduce(flat)
        flat /= world.size
        for gradient, part in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
            gradient.copy_(part.view_as(gradient))


class Stepper:
    """Takes training steps with a model and its optimizer; the same in one process and in each of several."""

    def __init__(
        self,
        model: TrainableModel,
        optimizer: torch.optim.Optimizer,
        preprocess: Preprocess,
        world: World,
        precision: str,
        clip_norm: float,
        loss: Callable[..., Tensor] = contrastive_loss,
    ) -> None:
        self.model, self.optimizer, self.world = model, optimizer, world
        self.clip_norm, self.bf16, self.loss = clip_norm, precision == "bf16", loss
        self.normalise = Normalise(preprocess, world.device)
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def autocast(self) -> torch.autocast:
        """The context in which the towers run."""
        return torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.bf16)

    def __call__(self, pixels: Tensor, token_ids: Tensor, valid: Tensor, rate: float) -> Outcome:
        """Move the weights once, unless loss or gradient is not finite.

        This process's part of the batch, on its device:
        pixels     uint8 [b, F, S, S, 3]
        token_ids  int64 [b, L]
        valid      bool [b]; pairs that are False take no part
        rate       learning rate of this step
        """
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            video, text = self.model(self.normalise(pixels), token_ids)
        counted = self.world.gather(valid.to(torch.uint8)).bool()
        loss = self.loss(self.world.gather(text), self.world.gather(video), self.model.logit_scale.exp(), counted)
        loss.backward()
        average_gradients(self.parameters, self.world)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        outcome = Outcome(
            float(loss.detach()), float(norm), float(torch.exp(-self.model.logit_scale.detach())), int(counted.sum())
        )
        if outcome.finite:
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()
            clamp_scale(self.model.logit_scale)
        return outcome
