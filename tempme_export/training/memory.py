"""Memory of a training step, counted tensor by tensor without allocating it.

The step itself runs on tensors that have a shape and no storage (torch's fake tensors), so that any model and batch
is counted on any machine in seconds, and the count cannot drift from the code. What it cannot see is outside the
tensors: the device's context, the kernels' own workspaces, the rounding and the gaps of the allocator. On a GPU,
attention with the size term also copies the term to [B, N, N] in each block, and matching has its own kernels.
"""

import copy
import dataclasses
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tempme_export.encoder.recipe import Recipe
from tempme_export.errors import UsageError
from tempme_export.media.preprocess import preprocess_for
from tempme_export.training.distributed import World
from tempme_export.training.encoder import TrainableModel
from tempme_export.training.optimizer import make_optimizer
from tempme_export.training.step import Stepper

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class MemoryAccount:
    """Bytes of one training step in one process.

    batch      captions, each with its video, of this process
    precision  fp32, or bf16 where the towers run under autocast
    frozen     parameters that do not train
    trained    parameters that do
    gradients  of the trained parameters, after the backward pass
    optimizer  AdamW's two moments and its step counts
    inputs     pictures as bytes, token ids, which pairs are valid
    saved      what the forward pass keeps for the backward pass, beyond parameters and inputs; each storage once
    peak       the most that is alive at one time
    """

    batch: int
    precision: Precision
    frozen: int
    trained: int
    gradients: int
    optimizer: int
    inputs: int
    saved: int
    peak: int

    @property
    def resident(self) -> int:
        """Bytes that stay from step to step: parameters and the optimizer's state."""
        return self.frozen + self.trained + self.optimizer

    @property
    def temporary(self) -> int:
        """Bytes on top of everything else at the peak: results on their way, and gradients already there."""
        return self.peak - self.resident - self.inputs - self.saved

    def to_dict(self) -> dict[str, Any]:
        """Values for JSON."""
        return {**dataclasses.asdict(self), "resident": self.resident, "temporary": self.temporary}


class _Ledger(TorchDispatchMode):
    """Adds up the storages that are alive, and those saved for the backward pass, while it is entered.

    longest  tokens of the longest text: the one number that the step reads from a tensor and acts on
    """

    def __init__(self, longest: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.longest = longest
        self.live = self.peak = self.saved = 0
        self._alive: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()
        self._counted: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return 1.0 if args[0].is_floating_point() else self.longest - 1  # a finite loss; the last end token
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._add(leaf)
        return result

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._alive:
            return
        self._alive.add(storage)
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._drop, storage.nbytes()).atexit = False

    def _drop(self, n_bytes: int) -> None:
        self.live -= n_bytes

    def hold(self, tensors: Iterable[Tensor]) -> int:
        """Enter tensors that were there before and count as alive, never as saved. Returns their bytes."""
        before = self.live
        for tensor in tensors:
            self._add(tensor)
            self._counted.add(tensor.untyped_storage())
        return self.live - before

    def pack(self, tensor: Tensor) -> Tensor:
        """A hook that sees what autograd saves."""
        storage = tensor.untyped_storage()
        if storage not in self._counted:
            self._counted.add(storage)
            self.saved += storage.nbytes()
        return tensor.detach()  # an output that kept itself would keep the graph that made it


def _shadow(model: TrainableModel) -> TrainableModel:
    """The model with fake parameters on the CPU; the given one keeps its own."""
    memo: dict[int, Any] = {
        id(parameter): nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype), parameter.requires_grad)
        for parameter in model.parameters()
    }
    return copy.deepcopy(model, memo)


def _bytes(tensors: Iterable[Tensor | None]) -> int:
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def _inputs(recipe: Recipe, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures, token ids and which pairs are valid, as a batch has them."""
    frames, size = recipe.profile.frames, recipe.backbone.image_size
    pixels = torch.empty(batch, frames, size, size, 3, dtype=torch.uint8)
    token_ids = torch.empty(batch, recipe.profile.text_length, dtype=torch.int64)
    return pixels, token_ids, torch.empty(batch, dtype=torch.bool)


def account(model: TrainableModel, recipe: Recipe, batch: int, precision: Precision) -> MemoryAccount:
    """Count the memory of one training step in the middle of a run.

    model      says what trains; it is neither run nor changed
    recipe     what the model was made from: frames, picture size and text length
    batch      pairs in the step; the longest text fills its length
    precision  fp32, or bf16 for autocast

    Saved tensors grow in proportion to the batch, but for copies of weights in bfloat16 and the loss's [B, B].
    Raises UsageError for a batch below 1 or another precision.
    """
    if batch < 1:
        raise UsageError(f"found a batch of {batch} to account for, expected 1 or more.")
    if precision not in ("fp32", "bf16"):
        raise UsageError(f"found precision {precision!r} to account for, expected fp32 or bf16.")
    with FakeTensorMode():
        shadow, inputs = _shadow(model), _inputs(recipe, batch)
        optimizer = make_optimizer(shadow, rate=1.0, weight_decay=0.0)
        world = World(0, 1, torch.device("cpu"))
        stepper = Stepper(shadow, optimizer, preprocess_for(recipe), world, precision, clip_norm=1.0)
        for parameter in stepper.parameters:
            parameter.grad = torch.empty_like(parameter)
        gradients = _bytes(parameter.grad for parameter in stepper.parameters)
        optimizer.step()  # its state exists from the first step on
        optimizer.zero_grad(set_to_none=True)
        states = [one for state in optimizer.state.values() for one in state.values() if isinstance(one, Tensor)]
        ledger = _Ledger(recipe.profile.text_length)
        ledger.hold([*shadow.parameters(), *states])
        input_bytes = ledger.hold(inputs)
        with ledger, torch.autograd.graph.saved_tensors_hooks(ledger.pack, lambda tensor: tensor):
            stepper(*inputs, rate=1.0)
        return MemoryAccount(
            batch=batch,
            precision=precision,
            frozen=_bytes(p for p in shadow.parameters() if not p.requires_grad),
            trained=_bytes(p for p in shadow.parameters() if p.requires_grad),
            gradients=gradients,
            optimizer=_bytes(states),
            inputs=input_bytes,
            saved=ledger.saved,
            peak=ledger.peak,
        )


def largest_batch(one: MemoryAccount, other: MemoryAccount, capacity: int) -> int:
    """The largest batch whose peak stays within `capacity` bytes, on the line through two accounts; 0 where none does.

    The accounts are of one model at two batch sizes. Raises UsageError where they are of the same size.
    """
    if one.batch == other.batch:
        raise UsageError(
            f"found two accounts of batch {one.batch}, expected different ones. Account for another batch."
        )
    per_pair = (other.peak - one.peak) / (other.batch - one.batch)
    return max(0, one.batch + int((capacity - one.peak) // per_pair))
