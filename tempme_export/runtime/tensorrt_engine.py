"""A TensorRT engine in a GPU's memory, set up once for a few batch sizes.

Each size has an execution context, whose shape never changes again, and a CUDA graph: plugins built ahead of time load
their kernels anew at every change of shape and never unload them (NVIDIA/TensorRT issue 4849, seen with 11.1 and 11.2).
The contexts run one after another on one stream, so they share the memory between layers.

Has not been run with TensorRT yet: written against the documentation of 10.15 to 11.4 and NVIDIA's published bindings.
"""

import contextlib
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tempme_export.encoder.profile import BatchRange
from tempme_export.errors import BackendError, BundleError, InputError
from tempme_export.names import command
from tempme_export.runtime.base import Arrays
from tempme_export.runtime.engine_facts import EngineFacts
from tempme_export.runtime.tensorrt_package import start


class _Log:
    """The last errors that TensorRT logs of an engine."""

    def __init__(self, trt: Any) -> None:
        self.lines: deque[str] = deque(maxlen=3)
        lines = self.lines

        class Logger(trt.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, msg: str) -> None:
                if "ERROR" in str(severity):
                    lines.append(msg)

        self.logger = Logger()

    def text(self) -> str:
        """All of them in one line."""
        return "; ".join(self.lines) or "TensorRT gives no reason"


def _again(path: Path) -> str:
    return f"Build it again: {command('tempme-export', 'rebuild', path.parent)}"


class Engine:
    """An engine with its contexts, its stream, and buffers that are pinned and made once, for the largest batch. For
    one caller at a time.

    sizes   batch sizes that it is set up for
    graphs  batch size -> its CUDA graph; empty where none are to be, and where the engine cannot be captured
    """

    def __init__(
        self, path: Path, facts: EngineFacts, trt: Any, cuda: Any, device: torch.device, *, graphs: bool = True
    ) -> None:
        """trt     the package
        cuda    `torch.cuda`
        device  of it

        Raises BundleError for a file that is no engine of these facts, BackendError where the GPU has no memory left or
        the engine does not run.
        """
        self._path, self._trt, self._cuda, self._device = path, trt, cuda, device
        self._inputs, self._outputs = facts.tensors(facts.inputs), facts.tensors(facts.outputs)
        self._largest = facts.batch[-1]
        self.sizes = BatchRange(*facts.batch).sizes
        with cuda.device(device):
            self._load()
            self._allocate()
            with cuda.stream(self._stream):
                self._contexts = {size: self._set_up(size) for size in self.sizes}
                self._stream.synchronize()
                self.graphs = self._captured() if graphs else {}

    def _load(self) -> None:
        try:
            plan = self._path.read_bytes()
        except OSError as error:
            raise BundleError(f"{self._path} cannot be read: {error}. {_again(self._path)}") from error
        self._log = _Log(self._trt)
        self._runtime = start(self._trt.Runtime, self._log.logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise BundleError(f"{self._path} cannot be loaded: {self._log.text()}. {_again(self._path)}")
        names = {self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)}
        if names != {*self._inputs, *self._outputs}:
            raise BundleError(
                f"{self._path} has the inputs and outputs {', '.join(sorted(names))}, and its manifest says "
                f"{', '.join(sorted({*self._inputs, *self._outputs}))}. {_again(self._path)}"
            )

    def _allocate(self) -> None:
        """Pinned memory of the host and memory of the GPU, of every input and output, for the largest batch; memory of
        the GPU for what lies between layers."""
        try:
            self._stream = self._cuda.Stream(self._device)
            self._host = {}
            for name, (dtype, shape) in {**self._inputs, **self._outputs}.items():
                kind = torch.from_numpy(np.empty(0, dtype)).dtype
                sizes = tuple(self._largest if axis is None else axis for axis in shape)
                self._host[name] = torch.empty(sizes, dtype=kind, pin_memory=self._device.type == "cuda")
            self._memory = {name: torch.zeros_like(one, device=self._device) for name, one in self._host.items()}
            between = self._engine.device_memory_size_v2
            self._between = torch.empty(between, dtype=torch.uint8, device=self._device)
            self._stream.wait_stream(self._cuda.current_stream(self._device))  # what the memory was used for before
        except RuntimeError as error:
            raise BackendError(
                f"{self._path.name}: there is no memory for {self._largest} videos: {error}. Free memory, or build for "
                "a smaller largest batch."
            ) from error

    def _set_up(self, size: int) -> Any:
        """A context for batches of this size, which has run once: the first run of one may not be captured."""
        context = self._engine.create_execution_context(self._trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if context is None:
            raise BackendError(
                f"{self._path.name}: TensorRT cannot make a context: {self._log.text()}. Free memory on the GPU, or "
                "build for a smaller largest batch."
            )
        context.set_device_memory(self._between.data_ptr(), self._between.numel())
        for name, tensor in self._memory.items():
            if name in self._inputs and not context.set_input_shape(name, (size, *tensor.shape[1:])):
                raise BackendError(f"{self._path.name}: TensorRT refuses a batch of {size}: {self._log.text()}.")
            context.set_tensor_address(name, tensor.data_ptr())
        self._enqueue(context)
        return context

    def _enqueue(self, context: Any) -> None:
        if not context.execute_async_v3(self._stream.cuda_stream):
            raise BackendError(f"{self._path.name}: TensorRT could not run the engine: {self._log.text()}.")

    def _captured(self) -> dict[int, Any]:
        """The graph of every size; of none where one cannot be captured."""
        graphs = {}
        for size, context in self._contexts.items():
            graphs[size] = self._cuda.CUDAGraph()
            try:
                with self._cuda.graph(graphs[size], stream=self._stream, capture_error_mode="thread_local"):
                    self._enqueue(context)
            except (RuntimeError, BackendError):
                return {}
        return graphs

    def _launch(self, size: int) -> None:
        """Run the engine on what lies in the GPU's memory; the call may return before its work is done."""
        if size in self.graphs:
            self.graphs[size].replay()
        else:
            self._enqueue(self._contexts[size])

    def _size_of(self, rows: int) -> int:
        """The smallest size that holds so many rows. Raises InputError where none does."""
        for size in self.sizes:
            if size >= rows:
                return size
        raise InputError(f"engine: found {rows} rows, expected at most {self.sizes[-1]}. Run them in parts.")

    def run(self, inputs: Mapping[str, NDArray[np.generic]]) -> Arrays:
        """Run from the host and back to it; a batch between two sizes is run with its last row repeated."""
        rows = len(next(iter(inputs.values())))
        size = self._size_of(rows)
        for name, array in inputs.items():
            host = self._host[name]
            host[:rows].copy_(torch.from_numpy(np.ascontiguousarray(array)))
            host[rows:size] = host[rows - 1]
        with self._cuda.device(self._device), self._cuda.stream(self._stream):
            for name in inputs:
                self._memory[name][:size].copy_(self._host[name][:size], non_blocking=True)
            self._launch(size)
            for name in self._outputs:
                self._host[name][:rows].copy_(self._memory[name][:rows], non_blocking=True)
        self._stream.synchronize()
        return {name: self._host[name][:rows].numpy().copy() for name in self._outputs}

    def run_tensors(self, tensors: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Run from the GPU to the GPU. What the caller launches next on its stream waits for it."""
        caller, rows = self._cuda.current_stream(self._device), len(tensors[0])
        size = self._size_of(rows)
        found = {name: torch.empty_like(self._memory[name][:rows]) for name in self._outputs}
        self._stream.wait_stream(caller)
        with self._cuda.device(self._device), self._cuda.stream(self._stream):
            for name, tensor in zip(self._inputs, tensors, strict=True):
                self._memory[name][:rows].copy_(tensor, non_blocking=True)
                if rows < size:
                    self._memory[name][rows:size] = self._memory[name][rows - 1]
            self._launch(size)
            for name, tensor in found.items():
                tensor.copy_(self._memory[name][:rows], non_blocking=True)
        caller.wait_stream(self._stream)
        return found

    def __del__(self) -> None:
        """Free what is TensorRT's in the order that it wants, once nothing runs on it."""
        if "_stream" in vars(self):
            with contextlib.suppress(RuntimeError):  # of a GPU that failed, which was told by the call
                self._stream.synchronize()
        self.graphs, self._contexts = {}, {}
        self._engine = self._runtime = None
