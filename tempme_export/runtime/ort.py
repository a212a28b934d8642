"""ONNX Runtime as a Runner."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tempme_export.artifacts.backend import ArtifactFacts, Setting
from tempme_export.errors import BackendError, BundleError, PrecisionError
from tempme_export.files import library_path
from tempme_export.runtime.base import Arrays, Runner, check_threads
from tempme_export.runtime.malloc import trim_malloc
from tempme_export.runtime.probing import DOUBLE, ProbeError, Report, check_double, report, version_of

_DTYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(bool)": np.bool_}
_DATA_FOLDER = "session.model_external_initializers_file_folder_path"
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_REMOTE = "AzureExecutionProvider"  # calls a service; nothing on this machine
_GRAPH, _OUTPUT, _NAME = 7, 12, 1  # fields of onnx.proto's ModelProto, GraphProto and ValueInfoProto


def import_onnxruntime() -> ModuleType:
    """The onnxruntime package. Raises BackendError without it."""
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendError(
            "ONNX Runtime is not installed. Run: pip install 'tempme-export[cpu]' (or [gpu])."
        ) from error
    module: ModuleType = onnxruntime
    return module


def check_device(device: str) -> None:
    """Raises BackendError for a device that ONNX Runtime does not know or was not built for."""
    ort = import_onnxruntime()
    kind, _, index = device.partition(":")
    if kind not in _PROVIDERS or (index and (kind == "cpu" or not index.isdecimal())):
        raise BackendError(f"device {device!r} is not supported by ONNX Runtime here. Use cpu, cuda or cuda:N.")
    if _PROVIDERS[kind] not in ort.get_available_providers():
        raise BackendError(
            f"device {device} was asked for, and this ONNX Runtime has no {_PROVIDERS[kind]}. "
            "Install onnxruntime-gpu with its CUDA libraries, or use --device cpu."
        )


def _field(number: int, content: bytes) -> bytes:
    """A field of a protobuf message that holds bytes, a text or a message."""
    size, length = len(content), bytearray()
    while size > 127:
        length.append(size & 127 | 128)
        size >>= 7
    return bytes((number << 3 | 2, *length, size)) + content


def _with_outputs(path: Path, names: Sequence[str]) -> bytes:
    """The model's bytes with further values as outputs; weights that lie beside it stay there.

    A message that follows another in one stream is merged with it: its graph's outputs are added.
    """
    try:
        model = path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path} cannot be loaded: {error}") from error
    outputs = b"".join(_field(_OUTPUT, _field(_NAME, name.encode())) for name in names)
    return model + _field(_GRAPH, outputs)


class OrtRunner(Runner):
    """An ONNX file on one execution provider.

    `extra_outputs` names values inside the graph to return beside its outputs.
    """

    def __init__(
        self,
        path: Path,
        device: str = "cpu",
        extra_outputs: Sequence[str] = (),
        threads: int | None = None,
        name: str = "ort",
        max_batch: int | None = None,
    ) -> None:
        """threads    of one call; None: as many as the processor has cores
        max_batch  as of every Runner

        Raises UsageError for `threads` below 1, BackendError when the provider does not load, PrecisionError when it
        cannot run the graph's types, and BundleError for a file that is no ONNX model."""
        check_threads(threads)
        self.name, self.max_batch = name, max_batch
        self._path, self._device, self._extra_outputs, self._threads = (
            path.absolute(),
            device,
            tuple(extra_outputs),
            threads,
        )
        if device != "cpu":
            self.not_after_fork = "CUDA"
        self.opened()

    def _session_options(self, ort: ModuleType) -> Any:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        return options

    def _open(self) -> Any:
        """The session."""
        path, device = self._path, self._device
        check_device(device)
        ort = import_onnxruntime()
        kind, _, index = device.partition(":")
        provider = _PROVIDERS[kind]
        options = self._session_options(ort)
        errors = ort.capi.onnxruntime_pybind11_state
        try:
            settings = [(provider, {"device_id": index or "0"})] if kind == "cuda" else [provider]
            with library_path(path) as named:
                if self._extra_outputs:  # bytes have no folder
                    options.add_session_config_entry(_DATA_FOLDER, str(Path(named).parent))
                model = _with_outputs(path, self._extra_outputs) if self._extra_outputs else named
                session = ort.InferenceSession(model, options, providers=settings)
        except errors.NotImplemented as error:
            raise PrecisionError(f"ONNX Runtime on {device} cannot run {path.name}: {error}") from error
        except (
            errors.InvalidProtobuf,
            errors.InvalidGraph,
            errors.InvalidArgument,
            errors.NoSuchFile,
            errors.Fail,
            errors.RuntimeException,
            UnicodeDecodeError,  # of the message, which quotes the damaged file
        ) as error:
            raise BundleError(f"{path} cannot be loaded by ONNX Runtime: {error}") from error
        if provider not in session.get_providers():
            raise BackendError(
                f"ONNX Runtime fell back to {', '.join(session.get_providers())}: {provider} does not load. "
                "Install onnxruntime-gpu with its CUDA libraries, or use --device cpu."
            )
        self.inputs = {
            value.name: (
                np.dtype(_DTYPES[value.type]),
                tuple(axis if isinstance(axis, int) else None for axis in value.shape),
            )
            for value in session.get_inputs()
        }
        self._outputs = [value.name for value in session.get_outputs()]
        trim_malloc()
        return session

    def _infer(self, inputs: Mapping[str, NDArray[np.generic]]) -> Arrays:
        return dict(zip(self._outputs, self.opened().run(self._outputs, dict(inputs)), strict=True))


def probe() -> Report:
    """Import ONNX Runtime; `providers` are those it was built with, which says nothing about whether they load."""
    import onnxruntime

    providers = [name for name in onnxruntime.get_available_providers() if name != _REMOTE]
    return report(version_of(onnxruntime), providers=providers)


def probe_provider(name: str) -> Report:
    """Run a graph of one node on one execution provider; ONNX Runtime falls back to another without a word."""
    import onnxruntime

    session = onnxruntime.InferenceSession(DOUBLE, providers=[name])
    if name not in session.get_providers():
        raise ProbeError(f"does not load: ONNX Runtime fell back to {', '.join(session.get_providers())}")
    check_double(lambda x: session.run(None, {"x": x})[0])
    return report(None)


def choose_device(facts: ArtifactFacts, device: str | None) -> str:
    """The CPU unless a GPU is asked for. Raises BackendError as `check_device`."""
    check_device(device or "cpu")
    return device or "cpu"


def describe(facts: ArtifactFacts, device: str) -> str:
    """Words for a report."""
    return f"ONNX Runtime, {device}"


def open_runner(path: Path, facts: ArtifactFacts, setting: Setting) -> OrtRunner:
    """Raises as `OrtRunner`."""
    return OrtRunner(
        path, setting.device, extra_outputs=setting.extra_outputs, threads=setting.threads, max_batch=setting.max_batch
    )
