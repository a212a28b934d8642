"""PyTorch modules as Runners: the reference and the fast encoder."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tempme_export.encoder.recipe import Recipe
from tempme_export.runtime.base import Arrays, Runner
from tempme_export.runtime.devices import after_fork, torch_device


class TorchRunner(Runner):
    """A module whose forward takes the inputs in order and returns one tensor."""

    not_after_fork = "torch"

    def __init__(self, module: nn.Module, recipe: Recipe, name: str, tower: str, device: str = "cpu") -> None:
        """tower  "video" or "text". Raises BackendError for a missing device."""
        self.name, self._device = name, torch_device(device)
        self.module = module.to(self._device).eval()
        self._output = f"{tower}_embedding"
        size, profile = recipe.backbone.image_size, recipe.profile
        if tower == "video":
            self.inputs = {"frames": (np.dtype(np.float32), (None, profile.frames, 3, size, size))}
        else:
            self.inputs = {"token_ids": (np.dtype(np.int64), (None, profile.text_length))}

    def _open(self) -> nn.Module:
        return self.module

    def _leave_behind(self) -> None:
        super()._leave_behind()
        after_fork()

    @property
    def on_gpu(self) -> bool:
        """True where inputs have to be copied to a device of their own."""
        return self._device.type == "cuda"

    def to_device(self, inputs: Mapping[str, NDArray[np.generic]]) -> list[Tensor]:
        """The inputs on the device, in the module's order; on a GPU the copies are complete."""
        tensors = [torch.from_numpy(np.ascontiguousarray(inputs[name])).to(self._device) for name in self.inputs]
        if self.on_gpu:
            torch.cuda.synchronize(self._device)
        return tensors

    @torch.inference_mode()
    def encode(self, tensors: Sequence[Tensor]) -> Arrays:
        """Run the module on `to_device`'s tensors."""
        return {self._output: self.opened()(*tensors).float().cpu().numpy()}

    def _infer(self, inputs: Mapping[str, NDArray[np.generic]]) -> Arrays:
        return self.encode(self.to_device(inputs))

    def resident(self, inputs: Mapping[str, NDArray[np.generic]]) -> Callable[[], object] | None:
        """The module without gradients, and not in inference mode, whose tensors compilers meet less often."""
        return torch.no_grad()(partial(self.module, *self.to_device(inputs))) if self.on_gpu else None
