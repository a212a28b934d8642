"""What Triton Inference Server is told of each model: its `config.pbtxt`, as text.

The schema is `ModelConfig` of the server's published `model_config.proto`. The server's ONNX Runtime backend computes
and returns the outputs that are listed and no others, so the decisions of a traced graph are left out: their first axis
counts clips, and the server batches along a first axis of requests. Its TensorRT backend wants every output listed.
"""

import json
from dataclasses import dataclass

from tempme_export.artifacts.bundle import TEXT, VIDEO, Bundle
from tempme_export.encoder.profile import BatchRange
from tempme_export.errors import BundleError
from tempme_export.parity.tolerance import INT8
from tempme_export.runtime.engine_facts import ENGINE, KEY, EngineFacts

MARK = "# Written by tempme-export."
VERSION = "1"
_PLATFORMS = {".onnx": "onnxruntime_onnx", ".plan": "tensorrt_plan"}
_TYPES = {"float32": "TYPE_FP32", "float16": "TYPE_FP16", "bool": "TYPE_BOOL"}
_VIDEO_OUTPUT = "video_embedding"


@dataclass(frozen=True)
class TensorSpec:
    """One input or output.

    data_type  name of the server's type, such as TYPE_FP32
    dims       its axes after the batch
    """

    name: str
    data_type: str
    dims: tuple[int, ...]


@dataclass(frozen=True)
class ServedModel:
    """One model of a repository.

    artifact     file of the bundle
    kind         where instances run: KIND_AUTO takes the GPUs that are there, otherwise the processor
    batch        rows per call: what `max_batch_size` and the preferred sizes come from
    fingerprint  the bundle's sha256, which a running server then tells of its model
    threads      of a processor, for one call of an ONNX graph; None: as many as it has cores
    """

    name: str
    artifact: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    kind: str
    batch: BatchRange
    fingerprint: str
    threads: int | None = None

    @property
    def suffix(self) -> str:
        """`.onnx` or `.plan`."""
        return self.artifact[self.artifact.rindex(".") :]

    @property
    def filename(self) -> str:
        """What the backend looks for in the folder of a version."""
        return f"model{self.suffix}"

    @property
    def platform(self) -> str:
        """The server's name of the file's format."""
        return _PLATFORMS[self.suffix]

    @property
    def preferred(self) -> tuple[int, ...]:
        """Batch sizes to wait for: the usual and the largest. One row is no batch to wait for."""
        return tuple(sorted({self.batch.opt, self.batch.max} - {1}))


def _engine(bundle: Bundle) -> ServedModel:
    """The engine as its facts describe it: its batch range and types are those it was built with."""
    manifest = bundle.manifest
    facts = EngineFacts.from_dict(manifest.get(KEY))

    def specs(tensors: dict[str, tuple[str, tuple[int | None, ...]]]) -> tuple[TensorSpec, ...]:
        try:
            return tuple(
                TensorSpec(name, _TYPES[dtype], tuple(int(axis or -1) for axis in shape[1:]))
                for name, (dtype, shape) in tensors.items()
            )
        except KeyError as error:
            raise BundleError(f"{ENGINE} has a tensor of type {error}, expected one of {', '.join(_TYPES)}.") from None

    more = sorted(facts.outputs.keys() - {_VIDEO_OUTPUT})
    if more:
        raise BundleError(
            f"{ENGINE} also returns {', '.join(more)}, and the server's TensorRT backend leaves no output of an engine "
            "away. Build the engine without them: tempme-export --rebuild DIR."
        )
    return ServedModel(
        "video_trt",
        ENGINE,
        specs(facts.inputs),
        specs(facts.outputs),
        "KIND_GPU",
        BatchRange(*facts.batch),
        manifest["sha256"],
    )


def served_models(bundle: Bundle, threads: int | None = None) -> tuple[ServedModel, ...]:
    """The bundle's models in the order video, text and, where it holds an engine, video_trt.

    The axes are those of `export_video` and `export_text`: frames float32 [B, F, 3, S, S], with a frame mask also
    bool [B, F], token_ids int64 [B, L], embeddings float32 [B, E] whatever the precision inside. Raises BundleError
    for an engine that the server could not serve.
    """
    manifest, profile = bundle.manifest, bundle.profile
    size, embed = manifest["image"]["size"], (manifest["backbone"]["embed"],)
    # ONNX Runtime has no bfloat16 kernels for processors, and int8 is proven on processors only.
    kind = {"bf16": "KIND_GPU", INT8: "KIND_CPU"}.get(manifest["precision"], "KIND_AUTO")
    mask = (TensorSpec("frame_mask", "TYPE_BOOL", (profile.frames,)),) if manifest["frame_mask"] else ()
    frames = (TensorSpec("frames", "TYPE_FP32", (profile.frames, 3, size, size)), *mask)
    tokens = (TensorSpec("token_ids", "TYPE_INT64", (profile.text_length,)),)
    video = (TensorSpec(_VIDEO_OUTPUT, "TYPE_FP32", embed),)
    text = (TensorSpec("text_embedding", "TYPE_FP32", embed),)
    shared = (kind, profile.batch, manifest["sha256"], threads)
    models = (ServedModel("video", VIDEO, frames, video, *shared), ServedModel("text", TEXT, tokens, text, *shared))
    return (*models, _engine(bundle)) if ENGINE in manifest["files"] else models


def _numbers(values: tuple[int, ...]) -> str:
    return f"[ {', '.join(map(str, values))} ]"


def _tensor(field: str, tensor: TensorSpec) -> str:
    return (
        f"{field} {{\n  name: {json.dumps(tensor.name)}\n  data_type: {tensor.data_type}\n"
        f"  dims: {_numbers(tensor.dims)}\n}}"
    )


def model_config(model: ServedModel) -> str:
    """The `config.pbtxt` of one model."""
    blocks = [
        f"{MARK} Schema: ModelConfig of Triton Inference Server's model_config.proto.",
        f"name: {json.dumps(model.name)}",
        f"platform: {json.dumps(model.platform)}",
        f"max_batch_size: {model.batch.max}",
        *(_tensor("input", tensor) for tensor in model.inputs),
        *(_tensor("output", tensor) for tensor in model.outputs),
        f"instance_group {{\n  count: 1\n  kind: {model.kind}\n}}",
        "version_policy {\n  latest {\n    num_versions: 1\n  }\n}",
    ]
    if model.preferred:
        blocks.append(f"dynamic_batching {{\n  preferred_batch_size: {_numbers(model.preferred)}\n}}")
    parameters = {"bundle_sha256": model.fingerprint}
    if model.threads is not None:
        parameters["intra_op_thread_count"] = str(model.threads)  # the ONNX Runtime backend's own name
    blocks += [
        f"parameters {{\n  key: {json.dumps(key)}\n  value {{\n    string_value: {json.dumps(value)}\n  }}\n}}"
        for key, value in parameters.items()
    ]
    return "\n".join(blocks) + "\n"
