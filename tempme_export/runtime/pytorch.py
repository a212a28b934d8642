"""PyTorch modules as Runners: the oracle and the fast encoder."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tempme_export.devices import torch_device
from tempme_export.recipe import Recipe
from tempme_export.runtime.base import Arrays, Runner


class TorchRunner(Runner):
    """A module whose forward takes the inputs in order and returns one tensor."""

    def __init__(self, module: nn.Module, recipe: Recipe, name: str, tower: str, device: str = "cpu") -> None:
        """tower  "video" or "text". Raises BackendError for a missing device."""
        self.name, self._device = name, torch_device(device)
        self._module = module.to(self._device).eval()
        self._output = f"{tower}_embedding"
        size, profile = recipe.backbone.image_size, recipe.profile
        if tower == "video":
            self.inputs = {"frames": (np.dtype(np.float32), (None, profile.frames, 3, size, size))}
        else:
            self.inputs = {"token_ids": (np.dtype(np.int64), (None, profile.text_length))}

    @torch.inference_mode()
    def _infer(self, inputs: Mapping[str, NDArray[np.generic]]) -> Arrays:
        tensors = [torch.from_numpy(np.ascontiguousarray(inputs[name])).to(self._device) for name in self.inputs]
        return {self._output: self._module(*tensors).float().cpu().numpy()}
