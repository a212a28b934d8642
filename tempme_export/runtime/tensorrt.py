"""A TensorRT engine as a Runner: it needs TensorRT, torch for memory and streams, and nothing of the encoder's code."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tempme_export.artifacts.backend import ArtifactFacts, Setting
from tempme_export.errors import BackendError
from tempme_export.names import command
from tempme_export.runtime.base import Arrays, Runner
from tempme_export.runtime.devices import torch_device
from tempme_export.runtime.engine_facts import EngineFacts
from tempme_export.runtime.nvidia import Gpu, find_gpu, gpu_index
from tempme_export.runtime.process import calls
from tempme_export.runtime.tensorrt_engine import Engine
from tempme_export.runtime.tensorrt_package import import_tensorrt, parse_version


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

        Raises BackendError as `find_engine_gpu`, and as `Engine`; BundleError as that.
        """
        self.name, self._graphs, self._path = name, graphs, path.absolute()
        self._facts, self._device, self._host = facts, device, host
        self.max_batch, self.inputs = facts.batch[-1], facts.tensors(facts.inputs)
        self.opened()

    def _open(self) -> Engine:
        """The engine in the GPU's memory."""
        host = self._host
        find_engine_gpu(self._path, self._facts, self._device, host)
        with self._told():
            device = host.device(self._device)
            return Engine(self._path, self._facts, host.tensorrt(), host.cuda, device, graphs=self._graphs)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """CUDA's errors, which torch passes on where a result is waited for, as BackendError."""
        try:
            yield
        except RuntimeError as error:
            raise BackendError(
                f"{self.name}: the GPU failed: {error}. Run nvidia-smi to see whether it is well."
            ) from error

    @property
    def graphs(self) -> bool:
        """True where runs are replayed as CUDA graphs."""
        engine: Engine = self.opened()
        return bool(engine.graphs)

    @torch.inference_mode()
    def _infer(self, inputs: Mapping[str, NDArray[np.generic]]) -> Arrays:
        engine: Engine = self.opened()
        with self._told():
            return engine.run(inputs)

    @torch.inference_mode()
    def run_tensors(self, *tensors: torch.Tensor) -> dict[str, torch.Tensor]:
        """The engine itself, without a copy from or to the host: its inputs in order and its outputs, on its GPU.

        The batch is no larger than the engine's. The call may return before its work is done; what the caller launches
        next waits for it. Raises BackendError where the GPU fails, InputError for more rows.
        """
        engine: Engine = self.opened()
        with calls, self._lock, self._told():
            return engine.run_tensors(tensors)

    def resident(self, inputs: Mapping[str, NDArray[np.generic]]) -> Callable[[], object]:
        """The engine without a copy; a batch between the sizes that it is set up for takes the next one's time."""
        device = self._host.device(self._device)
        tensors = [torch.from_numpy(np.ascontiguousarray(inputs[name])).to(device) for name in self.inputs]
        return partial(self.run_tensors, *tensors)


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
