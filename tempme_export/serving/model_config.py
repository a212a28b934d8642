"""Configuration of each model for Triton Inference Server: its `config.pbtxt`, as text.

The schema is `ModelConfig` of the server's published `model_config.proto`. The server's ONNX Runtime backend computes
and returns the outputs that are listed and no others, so the decisions of a graph with merge outputs are
left out: their first axis counts clips, and the server batches along a first axis of requests. Its TensorRT backend
wants every output listed.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tempme_export.artifacts import registry
from tempme_export.artifacts.backend import Backend, Platform
from tempme_export.artifacts.bundle import Bundle, folder_of
from tempme_export.encoder.profile import BatchRange
from tempme_export.errors import BundleError
from tempme_export.parity.tolerance import INT8

MARK = "# Written by tempme-export."
VERSION = "1"
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
    library      file of the bundle with operators of that graph, which the server loads with it; None: none
    platform     the server's name of the file's format
    kind         where instances run: KIND_AUTO takes the GPUs that are there, otherwise the processor
    batch        rows per call: what `max_batch_size` and the preferred sizes come from
    fingerprint  the bundle's sha256, which a running server then tells of its model
    smallest     rows per call that the artifact takes
    requires     what a client must know of it
    few_sizes    the server is to form batches of few sizes
    threads      of a processor, for one call of an ONNX graph; None: as many as it has cores
    """

    name: str
    artifact: str
    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    kind: str
    batch: BatchRange
    fingerprint: str
    smallest: int = 1
    requires: str = ""
    few_sizes: bool = False
    threads: int | None = None
    library: str | None = None

    @property
    def suffix(self) -> str:
        """`.onnx` or `.plan`."""
        return self.artifact[self.artifact.rindex(".") :]

    @property
    def filename(self) -> str:
        """File name that the backend looks for in the folder of a version."""
        return f"model{self.suffix}"

    @property
    def preferred(self) -> tuple[int, ...]:
        """Batch sizes to wait for: the usual and the largest, or all few sizes. One row is no batch to wait for."""
        sizes = self.batch.sizes if self.few_sizes else (self.batch.opt, self.batch.max)
        return tuple(sorted({*sizes} - {1}))


def _stated(backend: Backend, platform: Platform, bundle: Bundle) -> ServedModel:
    """A model as its artifact describes itself: its batch range and types are those it was built with."""
    file, facts = backend.artifact.file, folder_of(bundle).facts_of(backend.artifact)

    def specs(tensors: Mapping[str, Any]) -> tuple[TensorSpec, ...]:
        unknown = sorted({dtype for dtype, _ in tensors.values()} - _TYPES.keys())
        if unknown:
            raise BundleError(f"{file} has a tensor of type {unknown[0]!r}, expected one of {', '.join(_TYPES)}.")
        return tuple(
            TensorSpec(name, _TYPES[dtype], tuple(int(axis or -1) for axis in shape[1:]))
            for name, (dtype, shape) in tensors.items()
        )

    try:
        more = sorted(facts["outputs"].keys() - {_VIDEO_OUTPUT})
        if more:
            raise BundleError(
                f"{file} also returns {', '.join(more)}, and the server leaves no output of such a file away. Build it "
                "without them: tempme-export rebuild DIR."
            )
        inputs, outputs = specs(facts["inputs"]), specs(facts["outputs"])
        batch, requires = BatchRange(*facts["batch"]), platform.requires.format(**facts)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        option = backend.artifact.option
        raise BundleError(
            f"the manifest's {option!r} does not describe {file}: {error}. Build it again: tempme-export rebuild DIR."
        ) from error
    fingerprint = bundle.manifest["sha256"]
    return ServedModel(
        platform.model,
        file,
        platform.format,
        inputs,
        outputs,
        platform.kind or "KIND_AUTO",
        batch,
        fingerprint,
        batch.min,
        requires,
        platform.few_sizes,
    )


def _graph(backend: Backend, platform: Platform, bundle: Bundle, threads: int | None) -> ServedModel:
    """A model with the axes that every graph of its tower has."""
    manifest, profile = bundle.manifest, bundle.profile
    size, embed = manifest["image"]["size"], (manifest["backbone"]["embed"],)
    # ONNX Runtime has no bfloat16 kernels for processors, and int8 is proven on processors only.
    kind = platform.kind or {"bf16": "KIND_GPU", INT8: "KIND_CPU"}.get(manifest["precision"], "KIND_AUTO")
    if backend.artifact.tower == "text":
        inputs: tuple[TensorSpec, ...] = (TensorSpec("token_ids", "TYPE_INT64", (profile.text_length,)),)
        output = TensorSpec("text_embedding", "TYPE_FP32", embed)
    else:
        mask = (TensorSpec("frame_mask", "TYPE_BOOL", (profile.frames,)),) if manifest["frame_mask"] else ()
        inputs = (TensorSpec("frames", "TYPE_FP32", (profile.frames, 3, size, size)), *mask)
        output = TensorSpec(_VIDEO_OUTPUT, "TYPE_FP32", embed)
    artifact = backend.artifact
    return ServedModel(
        platform.model,
        artifact.graph or artifact.file,
        platform.format,
        inputs,
        (output,),
        kind,
        profile.batch,
        manifest["sha256"],
        requires=platform.requires.format(**folder_of(bundle).facts_of(artifact)),
        threads=threads,
        library=artifact.file if artifact.graph else None,
    )


def served_models(bundle: Bundle, threads: int | None = None) -> tuple[ServedModel, ...]:
    """The bundle's models, one of each artifact that the server can run: video, text and so on.

    The axes are those of `export_video` and `export_text`: frames float32 [B, F, 3, S, S], with a frame mask also
    bool [B, F], token_ids int64 [B, L], embeddings float32 [B, E] whatever the precision inside; an artifact that
    states its own has those. Raises BundleError for one that the server could not serve.
    """
    models = []
    for backend in registry.served(folder_of(bundle)):
        if (platform := backend.platform) is not None:
            stated = platform.stated
            models.append(_stated(backend, platform, bundle) if stated else _graph(backend, platform, bundle, threads))
    return tuple(models)


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
    if model.library is not None:  # a path that the server hands to the system as it is
        path = f"{model.name}/{VERSION}/{model.library}"
        blocks.append(f"model_operations {{\n  op_library_filename: [ {json.dumps(path)} ]\n}}")
    parameters = {"bundle_sha256": model.fingerprint}
    if model.threads is not None:
        parameters["intra_op_thread_count"] = str(model.threads)  # the ONNX Runtime backend's own name
    blocks += [
        f"parameters {{\n  key: {json.dumps(key)}\n  value {{\n    string_value: {json.dumps(value)}\n  }}\n}}"
        for key, value in parameters.items()
    ]
    return "\n".join(blocks) + "\n"
