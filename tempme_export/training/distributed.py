"""One process or several under torchrun: who takes part, and what they tell each other."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from tempme_export.errors import TempMeExportError, UsageError
from tempme_export.runtime.devices import torch_device

T = TypeVar("T")

# The others wait while the first process decodes a whole data set into the cache. A process that dies is noticed by
# torchrun at once, not by this limit.
_PATIENCE = timedelta(days=2)


class _GatherRows(torch.autograd.Function):
    """Rows of all processes, in the order of their ranks.

    Every process computes the same loss L from the same gathered rows, and afterwards gradients are averaged over
    the processes. A process's own rows must therefore carry W times dL/drows: only this process passes them on, and
    the average over W divides by W. What enters L outside the gathered rows (the temperature) has dL/d. in every
    process, and its average is itself. So both equal the gradient of a single process with the whole batch.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.rows = len(rows)
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        own = gradients[0].narrow(0, dist.get_rank() * ctx.rows, ctx.rows)
        return own * dist.get_world_size()


@dataclass(frozen=True)
class World:
    """The processes of one training. `rank` 0 is the first: it alone prints and writes."""

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """True in the process that prints and writes."""
        return self.rank == 0

    def gather(self, rows: Tensor) -> Tensor:
        """[b, ...] of each process -> [b * size, ...] in all, differentiable; b is the same everywhere."""
        return rows if self.size == 1 else _GatherRows.apply(rows)

    def gather_objects(self, own: T) -> list[T]:
        """Every process's object, by rank."""
        if self.size == 1:
            return [own]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, own)
        return found

    def on_first(self, work: Callable[[], T]) -> T:
        """Run `work` in the first process and tell its result to all. The others wait, and raise its error."""
        if self.size == 1:
            return work()
        told: list[Any] = [None]
        if self.first:
            try:
                told = [(work(), None)]
            except TempMeExportError as error:
                told = [(None, error)]
        dist.broadcast_object_list(told, src=0)
        result, refusal = told[0]
        if refusal is not None:
            raise refusal
        return result


def _whole(name: str) -> int:
    text = os.environ.get(name, "")
    if not text.isdecimal():
        raise UsageError(f"the environment has {name}={text!r} beside WORLD_SIZE; torchrun sets both. Use torchrun.")
    return int(text)


class TorchHost:
    """Devices and process groups that torch offers here."""

    def has_gpu(self) -> bool:
        """True where torch sees a GPU."""
        return torch.cuda.is_available()

    def device(self, name: str) -> torch.device:
        """A device by its name. Raises BackendError where it is not there."""
        return torch_device(name)

    def enter(self, device: torch.device) -> None:
        """Join the group that torchrun made: over NCCL between GPUs, over Gloo between processors."""
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)

    def leave(self) -> None:
        """Leave the group."""
        dist.destroy_process_group()


_MACHINE = TorchHost()


@contextmanager
def join_world(device: str, machine: TorchHost = _MACHINE) -> Iterator[World]:
    """Take part in the training that torchrun started, or train alone where none did.

    device  auto (CUDA where torch sees it), cpu, cuda or cuda:N; under torchrun, cuda means one GPU a process
    Raises BackendError for a device that is
    not there and UsageError for cuda:N with several processes or an environment that torchrun did not make.
    """
    if device == "auto":
        device = "cuda" if machine.has_gpu() else "cpu"
    size = _whole("WORLD_SIZE") if "WORLD_SIZE" in os.environ else 1
    if size == 1:
        yield World(0, 1, machine.device(device))
        return
    rank, local = _whole("RANK"), _whole("LOCAL_RANK")
    if device == "cuda":
        device = f"cuda:{local}"
    elif device.startswith("cuda:"):
        raise UsageError(f"--device {device} names one GPU, and torchrun started {size} processes. Use --device cuda.")
    chosen = machine.device(device)
    machine.enter(chosen)
    try:
        yield World(rank, size, chosen)
    finally:
        machine.leave()
