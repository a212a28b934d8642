"""A TensorRT engine as a Runner: it needs TensorRT, torch for memory and streams, and nothing of the encoder's code.

Has not been run with TensorRT yet: written against the documentation of 10.9 to 11.4 and NVIDIA's published bindings.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tempme_export.artifacts.backend import ArtifactFacts, Setting
from tempme_export.errors import BackendError, BundleError
from tempme_export.names import command
from tempme_export.runtime.base import Arrays, Runner
from tempme_export.runtime.device_time import timed
from tempme_export.runtime.devices import torch_device
from tempme_export.runtime.engine_facts import EngineFacts
from tempme_export.runtime.nvidia import Gpu, find_gpu, gpu_index
from tempme_export.runtime.tensorrt_package import import_tensorrt, parse_version, start


def check_engine(facts: EngineFacts, gpu: Gpu, version: str, path: Path) -> None:
    """Raise BackendError for an engine of another GPU model, another TensorRT or a newer driver, with what rebuilds it.

    Loading it would end in a message of TensorRT's about serialization, or in kernels chosen for another GPU.
    """
    found = []
    if (facts.capability, facts.gpu) != (gpu.capability, gpu.name):
        found.append(f"for {facts.gpu} ({facts.capability}), and this is {gpu.name} ({gpu.capability})")
    if facts.tensorrt != version:
        found.append(f"by TensorRT {facts.tensorrt}, and {version} is installed")
    if facts.driver and gpu.driver and parse_version(gpu.driver) < parse_version(facts.driver):
        found.append(f"with NVIDIA driver {facts.driver}, and {gpu.driver} is installed")
    if found:
        raise BackendError(
            f"{path.name} was built {'; '.join(found)}. Build it again here: "
            f"{command('tempme-export', 'rebuild', path.parent)}"
        )


class Host:
    """Host of an engine: TensorRT, the driver's view of the GPU, and torch for memory and streams."""

    def tensorrt(self) -> Any:
        """The package. Raises BackendError as `import_tensorrt`."""
        return import_tensorrt()

    def gpu(self, device: str) -> Gpu:
        """Raises BackendError as `find_gpu`."""
        return find_gpu(device)

    def device(self, name: str) -> torch.device:
        """Raises BackendError as `torch_device`."""
        return torch_device(name)

    @property
    def cuda(self) -> Any:
        """`torch.cuda`."""
        return torch.cuda


_HERE = Host()


def find_engine_gpu(path: Path, facts: EngineFacts, device: str, host: Host = _HERE) -> None:
    """Raise BackendError unless TensorRT and the GPU are here, and are those that the engine was built for."""
    trt, gpu = host.tensorrt(), host.gpu(device)
    check_engine(facts, gpu, str(trt.__version__), path)


class _Log:
    """The last errors that TensorRT logs while an engine loads."""

    def __init__(self, trt: Any) -> None:
        self.lines: list[str] = []
        lines = self.lines

        class Logger(trt.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, msg: str) -> None:
                if "ERROR" in str(severity):
                    lines.append(msg)

        self.logger = Logger()

    def text(self) -> str:
        """Last lines of the log, in one."""
        return "; ".join(self.lines[-3:]) or "TensorRT gives no reason"


def _again(path: Path) -> str:
    return f"Build it again: {command('tempme-export', 'rebuild', path.parent)}"


def _tensors(
    specs: Mapping[str, tuple[str, tuple[int | None, ...]]],
) -> dict[str, tuple[np.dtype[np.generic], tuple[int | None, ...]]]:
    return {name: (np.dtype(dtype), shape) for name, (dtype, shape) in specs.items()}


class _Engine:
    """An engine in the GPU's memory: its context, its stream, and buffers that are pinned and made once, for the
    largest batch. For one caller at a time.

    From its second run in a row on, a batch size is replayed as a CUDA graph.

    graphs  whether that is so: not where it is not asked for, nor where the engine cannot be captured
    graph   the one of the batch that ran last
    """

    def __init__(self, path: Path, facts: EngineFacts, device: str, name: str, graphs: bool, host: Host) -> None:
        self.graphs, self._name, self._cuda = graphs, name, host.cuda
        self._device = host.device(device)
        self._smallest, _, self._largest = facts.batch
        self.inputs, self.outputs = _tensors(facts.inputs), _tensors(facts.outputs)
        try:
            plan = path.read_bytes()
        except OSError as error:
            raise BundleError(f"{path} cannot be read: {error}. {_again(path)}") from error
        with self._cuda.device(self._device):
            self._load(host.tensorrt(), plan, path)
            try:
                self._stream = self._cuda.Stream(self._device)
                self._host, self._memory = self._buffers()
                self._stream.wait_stream(self._cuda.current_stream(self._device))  # what the memory was used for before
            except RuntimeError as error:
                raise BackendError(
                    f"{path.name}: there is no memory for {self._largest} videos: {error}. Free memory, or build for a "
                    "smaller largest batch."
                ) from error
        self._batch = 0  # that the context is set to
        self.graph: torch.cuda.CUDAGraph | None = None

    def _load(self, trt: Any, plan: bytes, path: Path) -> None:
        self._log = _Log(trt)
        self._runtime = start(trt.Runtime, self._log.logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise BundleError(f"{path} cannot be loaded: {self._log.text()}. {_again(path)}")
        names = {self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)}
        if names != {*self.inputs, *self.outputs}:
            raise BundleError(
                f"{path} has the inputs and outputs {', '.join(sorted(names))}, and its manifest says "
                f"{', '.join(sorted({*self.inputs, *self.outputs}))}. {_again(path)}"
            )
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise BackendError(
                f"{path.name}: TensorRT cannot make a context: {self._log.text()}. Free memory on the GPU, or build "
                "for a smaller largest batch."
            )

    def _buffers(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Pinned memory of the host and memory of the GPU, of every input and output, for the largest batch."""
        host = {}
        for name, (dtype, shape) in {**self.inputs, **self.outputs}.items():
            kind = torch.from_numpy(np.empty(0, dtype)).dtype
            sizes = tuple(self._largest if axis is None else axis for axis in shape)
            host[name] = torch.empty(sizes, dtype=kind, pin_memory=self._device.type == "cuda")
        return host, {name: torch.empty_like(tensor, device=self._device) for name, tensor in host.items()}

    def _prepare(self, batch: int) -> None:
        """Set the context's shapes and addresses; a graph of another batch size is worth nothing from then on."""
        self.graph, self._batch = None, 0
        for name, tensor in self._memory.items():
            if name in self.inputs and not self._context.set_input_shape(name, (batch, *tensor.shape[1:])):
                raise BackendError(f"{self._name}: TensorRT refuses a batch of {batch}: {self._log.text()}.")
            self._context.set_tensor_address(name, tensor.data_ptr())

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._stream.cuda_stream):
            raise BackendError(f"{self._name}: TensorRT could not run the engine: {self._log.text()}.")

    def _capture(self) -> None:
        """Record the engine for the context's batch, which has been run once: the first run may not be recorded.

        An engine that cannot be recorded is run without graphs from then on, and `graphs` says so.
        """
        self._stream.synchronize()
        graph = self._cuda.CUDAGraph()
        try:
            with self._cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                self._enqueue()
        except (RuntimeError, BackendError):
            self.graphs = False
        else:
            self.graph = graph

    def _launch(self, batch: int) -> None:
        """Run the engine on what lies in the GPU's memory; the call may return before its work is done."""
        if batch != self._batch:
            self._prepare(batch)
            self._enqueue()
            self._batch = batch
            return
        if self.graphs and self.graph is None:
            self._capture()
        if self.graph is None:
            self._enqueue()
        else:
            self.graph.replay()

    def run(self, inputs: Mapping[str, NDArray[np.generic]]) -> Arrays:
        """Run from the host and back to it; a batch below the smallest is run with its last row repeated."""
        rows = len(next(iter(inputs.values())))
        batch = max(rows, self._smallest)
        for name, array in inputs.items():
            host = self._host[name]
            host[:rows].copy_(torch.from_numpy(np.ascontiguousarray(array)))
            host[rows:batch] = host[rows - 1]
        with self._cuda.device(self._device), self._cuda.stream(self._stream):
            for name in inputs:
                self._memory[name][:batch].copy_(self._host[name][:batch], non_blocking=True)
            self._launch(batch)
            for name in self.outputs:
                self._host[name][:rows].copy_(self._memory[name][:rows], non_blocking=True)
        self._stream.synchronize()
        return {name: self._host[name][:rows].numpy().copy() for name in self.outputs}

    def run_tensors(self, tensors: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Run from the GPU to buffers on it."""
        caller, batch = self._cuda.current_stream(self._device), len(tensors[0])
        self._stream.wait_stream(caller)
        with self._cuda.device(self._device), self._cuda.stream(self._stream):
            for name, tensor in zip(self.inputs, tensors, strict=True):
                self._memory[name][:batch].copy_(tensor, non_blocking=True)
            self._launch(batch)
        caller.wait_stream(self._stream)
        return {name: self._memory[name][:batch] for name in self.outputs}

    def __del__(self) -> None:
        """Free what is TensorRT's in the order that it wants."""
        self.graph = self._context = self._engine = self._runtime = None


class TensorRtRunner(Runner):
    """An engine on the GPU it was built for. It has one set of buffers, so calls run one after another."""

    one_at_a_time = True
    not_after_fork = "CUDA"

    def __init__(
        self,
        path: Path,
        facts: EngineFacts,
        device: str = "cuda",
        name: str = "tensorrt",
        *,
        graphs: bool = True,
        host: Host = _HERE,
    ) -> None:
        """graphs  whether to capture CUDA graphs
        host    what it runs on

        Raises BackendError as `find_engine_gpu` and where the GPU has no memory left, BundleError for a file that is no
        engine.
        """
        self.name, self._graphs, self._path = name, graphs, path.absolute()
        self._facts, self._device, self._host = facts, device, host
        self.max_batch, self.inputs = facts.batch[-1], _tensors(facts.inputs)
        self.opened()

    def _open(self) -> _Engine:
        """The engine in the GPU's memory."""
        find_engine_gpu(self._path, self._facts, self._device, self._host)
        return _Engine(self._path, self._facts, self._device, self.name, self._graphs, self._host)

    @property
    def graphs(self) -> bool:
        """True where runs are replayed as CUDA graphs."""
        engine: _Engine = self.opened()
        return engine.graphs

    @torch.inference_mode()
    def _infer(self, inputs: Mapping[str, NDArray[np.generic]]) -> Arrays:
        engine: _Engine = self.opened()
        try:
            return engine.run(inputs)
        except RuntimeError as error:  # CUDA's, which torch passes on where a result is waited for
            raise BackendError(f"{self.name}: the GPU failed while the engine ran: {error}") from error

    @torch.inference_mode()
    def run_tensors(self, *tensors: torch.Tensor) -> dict[str, torch.Tensor]:
        """The engine itself, without a copy from or to the host: its inputs in order and its outputs, on its GPU.

        The batch lies within the engine's. What is returned holds until the next run, whichever thread asks for that.
        The call may return before its work is done; what the caller launches next waits for it.
        """
        engine: _Engine = self.opened()
        with self._lock:
            return engine.run_tensors(tensors)

    def timed(self, inputs: Mapping[str, NDArray[np.generic]]) -> Callable[[], float]:
        """A call that runs the engine on inputs which lie on the GPU already, and returns the device's seconds for it.

        The batch lies within the engine's.
        """
        device = self._host.device(self._device)
        tensors = [torch.from_numpy(np.ascontiguousarray(inputs[name])).to(device) for name in self.inputs]
        return timed(lambda: self.run_tensors(*tensors), device, self._host.cuda)


def choose_device(facts: ArtifactFacts, device: str | None) -> str:
    """The first GPU unless another is asked for. Raises BackendError for what is no GPU or not there."""
    chosen = device or "cuda"
    gpu_index(chosen)
    return str(torch_device(chosen))


def check_fit(path: Path, facts: ArtifactFacts, device: str) -> None:
    """Raises BackendError as `find_engine_gpu`."""
    find_engine_gpu(path, EngineFacts.from_dict(facts), device)


def describe(facts: ArtifactFacts, device: str) -> str:
    """Words for a report."""
    engine = EngineFacts.from_dict(facts)
    return f"TensorRT {engine.tensorrt}, {engine.gpu}"


def open_runner(path: Path, facts: ArtifactFacts, setting: Setting) -> TensorRtRunner:
    """Raises as `TensorRtRunner`."""
    return TensorRtRunner(path, EngineFacts.from_dict(facts), setting.device)
