"""Facts of a TensorRT engine (`video.plan`): the builder writes them into the manifest for the runtime."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tempme_export.artifacts.registry import PLAN, PLUGIN_ONNX
from tempme_export.errors import BundleError

ENGINE = PLAN.file
SOURCE = PLUGIN_ONNX.file  # the graph that the engine is built from
KEY = "trt"  # in the manifest
Shape = tuple[int | None, ...]
Tensors = dict[str, tuple[np.dtype[np.generic], Shape]]


@dataclass(frozen=True)
class EngineFacts:
    """An engine runs on the GPU model and with the TensorRT version that built it, and with no older driver.

    tensorrt    version that built it, all four numbers
    gpu         name of the GPU model
    capability  of its generation, such as sm_90
    driver      release of the NVIDIA driver, such as 580.65.06; empty where it could not be read
    precision   "fp32", "fp16" or "bf16", of the matrix products
    batch       videos per call: smallest, usual and largest
    inputs      name -> (numpy dtype, shape), None for the batch
    outputs     the same
    target      what the plugins' PTX was built for, such as sm_90
    plugins     plugin layers by operator, as the network was parsed
    engine_plugins  plugin layers that the finished engine holds
    layers      layers of the engine by precision; "none" where a layer holds no floating-point tensor
    products    those of them that multiply matrices, by the precision of their operands
    attentions  fused attentions
    seconds     that building took
    """

    tensorrt: str
    gpu: str
    capability: str
    driver: str
    precision: str
    batch: tuple[int, int, int]
    inputs: dict[str, tuple[str, Shape]]
    outputs: dict[str, tuple[str, Shape]]
    target: str
    plugins: dict[str, int]
    engine_plugins: int
    layers: dict[str, int]
    products: dict[str, int]
    attentions: int
    seconds: float

    @property
    def shares(self) -> dict[str, float]:
        """Share of layers by precision, the largest first."""
        total = sum(self.layers.values())
        return {name: n / total for name, n in sorted(self.layers.items(), key=lambda item: (-item[1], item[0]))}

    @staticmethod
    def tensors(stated: Mapping[str, tuple[str, Shape]]) -> Tensors:
        """Inputs or outputs with their dtypes."""
        return {name: (np.dtype(dtype), shape) for name, (dtype, shape) in stated.items()}

    def to_dict(self) -> dict[str, Any]:
        """Values for the manifest."""
        return asdict(self)

    @classmethod
    def from_dict(cls, document: Any) -> "EngineFacts":
        """Read what `to_dict` wrote, also through JSON. Raises BundleError for anything else."""
        try:
            rest = dict(document)
            inputs, outputs = (
                {name: (str(dtype), tuple(shape)) for name, (dtype, shape) in rest.pop(key).items()}
                for key in ("inputs", "outputs")
            )
            smallest, usual, largest = map(int, rest.pop("batch"))
            return cls(**rest, inputs=inputs, outputs=outputs, batch=(smallest, usual, largest))
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise BundleError(
                f"the manifest's {KEY!r} does not describe an engine: {error}. Build it again: "
                "tempme-export rebuild DIR."
            ) from error
