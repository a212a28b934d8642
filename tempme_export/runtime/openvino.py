"""OpenVINO on the CPU as a Runner. Float32 is in full: its own bfloat16 on some processors is switched off."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tempme_export.errors import BackendError, BundleError
from tempme_export.heap import give_back
from tempme_export.runtime.base import Arrays, Runner


def import_openvino() -> Any:
    """The openvino package. Raises BackendError without it."""
    try:
        import openvino
    except ImportError as error:
        raise BackendError("OpenVINO is not installed. Run: pip install 'tempme-export[openvino]'.") from error
    return openvino


class OpenVinoRunner(Runner):
    """An ONNX file compiled for the CPU."""

    def __init__(
        self,
        path: Path,
        device: str = "cpu",
        threads: int | None = None,
        name: str = "openvino",
        max_batch: int | None = None,
    ) -> None:
        """max_batch  as of every Runner.

        Raises BackendError without OpenVINO or for another device, and BundleError for a file it cannot read.
        """
        openvino = import_openvino()
        self.name, self.max_batch = name, max_batch
        if device != "cpu":
            raise BackendError(f"OpenVINO runs on the CPU here, and {device} was asked for. Use --device cpu.")
        settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = str(threads)
        core = openvino.Core()
        try:
            model = core.read_model(str(path))
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
            raise BundleError(f"{path} cannot be loaded by OpenVINO: {error}") from error
        self._request = compiled.create_infer_request()
        give_back()

    def _infer(self, inputs: Mapping[str, NDArray[np.generic]]) -> Arrays:
        self._request.infer(dict(inputs), share_inputs=True)
        tensors = (self._request.get_output_tensor(i) for i in range(len(self._outputs)))
        return {name: tensor.data.copy() for name, tensor in zip(self._outputs, tensors, strict=True)}

    def close(self) -> None:
        """Drop the compiled model and its memory."""
        del self._request
