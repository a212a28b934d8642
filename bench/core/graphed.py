"""A module replayed from a CUDA graph, as a deployed encoder is; on a CPU called as it is."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from tempme_export.bench.core.clocks import capture
from tempme_export.runtime.base import Arrays
from tempme_export.runtime.pytorch import TorchRunner


class GraphRunner(TorchRunner):
    """Keeps the graph of one input shape; another shape is captured anew."""

    _graph: torch.cuda.CUDAGraph | None = None
    _inputs: list[Tensor]
    _embedding: Tensor

    def replaying(self, tensors: Sequence[Tensor]) -> Callable[[], Tensor]:
        """A call that launches the graph on `to_device`'s tensors and returns the output, which the next call writes
        anew."""
        if not self.on_gpu:
            return inferring(self.module, tensors)
        if self._graph is None or self._inputs[0].shape != tensors[0].shape:
            if self._graph is not None:
                self._graph.reset()
            self._inputs = [tensor.clone() for tensor in tensors]
            self._graph, (self._embedding,) = capture((inferring(self.module, self._inputs),))
        for own, tensor in zip(self._inputs, tensors, strict=True):
            own.copy_(tensor)
        graph, embedding = self._graph, self._embedding

        def replay() -> Tensor:
            graph.replay()
            return embedding

        return replay

    def encode(self, tensors: Sequence[Tensor]) -> Arrays:
        """Run the graph on `to_device`'s tensors."""
        return {self._output: self.replaying(tensors)().float().cpu().numpy()}


def inferring(module: Callable[..., Tensor], tensors: Sequence[Tensor]) -> Callable[[], Tensor]:
    """The module on the tensors. Without gradients, and not in inference mode, whose tensors compilers meet less
    often."""
    return torch.no_grad()(partial(module, *tensors))
