"""OpenVINO on the CPU as a Runner. Float32 is in full: its own bfloat16 on some processors is switched off."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tempme_export.artifacts.backend import ArtifactFacts, Setting
from tempme_export.errors import BackendError, BundleError
from tempme_export.files import library_path
from tempme_export.runtime.base import Arrays, Runner, check_threads
from tempme_export.runtime.malloc import trim_malloc
from tempme_export.runtime.probing import DOUBLE, Report, check_double, report, version_of

_TELEMETRY = "openvino_telemetry"


@contextmanager
def without_telemetry() -> Iterator[None]:
    """OpenVINO reports its import to a server, and has no setting against it that does not write to the home folder.

    It does without the package that does the reporting where that cannot be imported.
    """
    if _TELEMETRY in sys.modules:
        yield
        return
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.modules.pop(_TELEMETRY, None)


def import_openvino() -> Any:
    """The openvino package. Raises BackendError without it."""
    try:
        with without_telemetry():
            import openvino
    except ImportError as error:
        raise BackendError("OpenVINO is not installed. Run: pip install 'tempme-export[openvino]'.") from error
    return openvino


def _check_device(device: str) -> None:
    if device != "cpu":
        raise BackendError(f"OpenVINO runs on the CPU here, and {device} was asked for. Use --device cpu.")


class OpenVinoRunner(Runner):
    """An ONNX file compiled for the CPU.

    Calls run one after another: compiled for the lowest latency, the model has one stream, in which further requests
    would wait for each other too.
    """

    one_at_a_time = True
    not_after_fork = "OpenVINO"

    def __init__(
        self,
        path: Path,
        device: str = "cpu",
        threads: int | None = None,
        name: str = "openvino",
        max_batch: int | None = None,
    ) -> None:
        """threads    of one call; None: as many as the processor has cores
        max_batch  as of every Runner

        Raises UsageError for `threads` below 1, BackendError without OpenVINO or for another device, and BundleError
        for a file it cannot read.
        """
        check_threads(threads)
        self.name, self.max_batch = name, max_batch
        self._path, self._device, self._threads = path.absolute(), device, threads
        self.opened()

    def _open(self) -> Any:
        """The compiled model's request."""
        openvino = import_openvino()
        _check_device(self._device)
        settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        if self._threads is not None:
            settings["INFERENCE_NUM_THREADS"] = str(self._threads)
        core = openvino.Core()
        try:
            with library_path(self._path) as named:
                model = core.read_model(named)
            # Before compiling: afterwards a value next to a cast may answer to two names.
            self._outputs = [port.any_name for port in model.outputs]
            self.inputs = {
                port.any_name: (
                    np.dtype(port.element_type.to_dtype()),
                    tuple(axis.get_length() if axis.is_static else None for axis in port.partial_shape),
                )
                for port in model.inputs
            }
            compiled = core.compile_model(model, "CPU", settings)
        except RuntimeError as error:
            raise BundleError(f"{self._path} cannot be loaded by OpenVINO: {error}") from error
        request = compiled.create_infer_request()
        trim_malloc()
        return request

    def _infer(self, inputs: Mapping[str, NDArray[np.generic]]) -> Arrays:
        request = self.opened()
        request.infer(dict(inputs), share_inputs=True)
        tensors = (request.get_output_tensor(i) for i in range(len(self._outputs)))
        return {name: tensor.data.copy() for name, tensor in zip(self._outputs, tensors, strict=True)}


def probe() -> Report:
    """Compile and run a graph of one node on the CPU."""
    with without_telemetry():
        import openvino

    core = openvino.Core()
    compiled = core.compile_model(core.read_model(DOUBLE), "CPU")
    check_double(lambda x: compiled({"x": x})[0])
    version = (version_of(openvino) or "").partition("-")[0]
    return report(version or None, f"devices {', '.join(core.available_devices)}")


def choose_device(facts: ArtifactFacts, device: str | None) -> str:
    """The CPU. Raises BackendError for another device, or without OpenVINO."""
    import_openvino()
    _check_device(device or "cpu")
    return "cpu"


def describe(facts: ArtifactFacts, device: str) -> str:
    """Words for a report."""
    return f"OpenVINO, {device}"


def open_runner(path: Path, facts: ArtifactFacts, setting: Setting) -> OpenVinoRunner:
    """Raises as `OpenVinoRunner`."""
    return OpenVinoRunner(path, setting.device, threads=setting.threads, max_batch=setting.max_batch)
