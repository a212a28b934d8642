"""Bundle -> model repository of Triton Inference Server. The server itself has not been run with one yet.

REPOSITORY/README.md, and for each model MODEL/config.pbtxt and MODEL/1/model.onnx or model.plan, with the file of a
graph's weights where they lie beside it.
"""

import os
import shutil
from contextlib import suppress
from pathlib import Path

from tempme_export.artifacts import registry
from tempme_export.artifacts.bundle import Bundle, folder_of, one_release, verify_files
from tempme_export.artifacts.graph_files import data_path
from tempme_export.encoder.profile import FROM_CHECKPOINT
from tempme_export.errors import BundleError, ExportError
from tempme_export.files import building, publish
from tempme_export.parity.tolerance import INT8
from tempme_export.runtime.base import check_threads
from tempme_export.serving.model_config import MARK, VERSION, ServedModel, TensorSpec, model_config, served_models

CONFIG, README = "config.pbtxt", "README.md"


def _failed(bundle: Bundle) -> list[str]:
    gate = bundle.manifest.get("gate")
    reports = [*bundle.manifest["parity"], *(gate["reports"] if gate else ())]
    return sorted({report["artifact"] for report in reports if report["status"] == "failed"})


def _check_bundle(bundle: Bundle) -> None:
    failed = _failed(bundle)
    if failed:
        raise BundleError(
            f"{bundle.path} was kept for inspection: {', '.join(failed)} did not agree with the reference, so it is "
            "not served. Export a bundle that passes."
        )
    verify_files(bundle)


def _is_ours(entry: Path) -> bool:
    marked = entry / CONFIG if entry.is_dir() else entry
    models = {one.platform.model for one in registry.BACKENDS if one.platform}
    if entry.name not in {README, *models} or not marked.is_file():
        return False
    return MARK in marked.read_text(encoding="utf-8", errors="replace")


def _in_use(folder: Path) -> ExportError:
    return ExportError(f"{folder} exists and is not empty. Add --force to replace it, or choose another folder.")


def check_folder(folder: str | Path, bundle: Path, force: bool = False) -> Path:
    """The folder of a repository of the bundle that lies, or will lie, at `bundle`, its links resolved.

    Raises before anything is written what would fail after it: BundleError for a folder in the bundle, ExportError for
    one that is in use, holds anything else or cannot be written. Other models in it are never removed.
    """
    folder = Path(folder).resolve()
    if folder.is_relative_to(bundle.resolve()):
        raise BundleError(f"{folder} lies in the bundle, which holds its own files only. Choose another folder.")
    if folder.exists() and not folder.is_dir():
        raise ExportError(f"{folder} is a file, expected a folder for the model repository. Choose another.")
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    if entries and not force:
        raise _in_use(folder)
    strange = [entry.name for entry in entries if not _is_ours(entry)]
    if strange:
        raise ExportError(
            f"{folder} also holds {', '.join(strange)}, which tempme-export did not write there; it is left alone. "
            "Choose another folder; a server takes several --model-repository."
        )
    if not folder.parent.is_dir():
        raise ExportError(f"{folder.parent} is not a folder, so {folder.name} cannot be written there.")
    return folder


def _take(source: Path, target: Path) -> None:
    """A hard link, or a copy where the file system has none."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def _write_model(model: ServedModel, bundle: Bundle, work: Path) -> list[Path]:
    config, version = work / model.name / CONFIG, work / model.name / VERSION
    version.mkdir(parents=True)
    config.write_text(model_config(model), encoding="utf-8")
    # The graph names its data, so that keeps its name.
    data = data_path(bundle.path / model.artifact)
    names = {model.artifact: model.filename, data.name: data.name}
    if model.library is not None:
        names[model.library] = model.library
    held = [name for name in names if name in bundle.manifest["files"]]
    for name in held:
        _take(bundle.path / name, version / names[name])
    return [config, *(version / names[name] for name in held)]


def _describe(model: ServedModel) -> str:
    def shapes(tensors: tuple[TensorSpec, ...]) -> str:
        return ", ".join(f"`{t.name}` {t.data_type} [B, {', '.join(map(str, t.dims))}]" for t in tensors)

    low, high = model.smallest, model.batch.max
    batch = f"B from {low} to {high}"
    return f"- `{model.name}`, {model.platform}, {batch}: {shapes(model.inputs)} -> {shapes(model.outputs)}"


def _not_served(bundle: Bundle) -> list[str]:
    """Files that users can run and no server can."""
    folder = folder_of(bundle)
    files = {one.artifact.file for one in registry.served(folder)}
    usable = {one.artifact.file for one in registry.BACKENDS if one.offered}
    return [one.file for one in registry.held(folder) if one.file in usable - files]


def _readme(bundle: Bundle, models: tuple[ServedModel, ...]) -> str:
    """README for clients: all that a config cannot say."""
    manifest, image, backbone = bundle.manifest, bundle.manifest["image"], bundle.profile.backbone
    tokenizer = "that the checkpoint was trained with" if backbone == FROM_CHECKPOINT else f"of {backbone}"
    paragraphs = [
        f"{MARK} A model repository for Triton Inference Server: " + '`tritonserver --model-repository="$PWD"`',
        f"Bundle {manifest['sha256']}, profile {manifest['profile']['name']}, precision {manifest['precision']}.",
        "\n".join(map(_describe, models)),
        f"Frames are RGB, {image['size']} x {image['size']}, scaled to 0..1, less mean {image['mean']} and divided by "
        f"{image['std']}. Token ids come from the tokenizer {tokenizer}: start, words, end, zeros. "
        "Embeddings have unit length; a score is their product times the exponential of "
        f"{manifest['logit_scale']}.",
    ]
    if manifest["frame_mask"]:
        paragraphs.append("`frame_mask` belongs to every request: true for each frame that exists.")
    if manifest.get("trace"):
        file = registry.exposing().file
        paragraphs.append(f"The merges that `{file}` also returns are not served: they have no axis of requests.")
    if manifest["precision"] == INT8:
        paragraphs.append("The models are for processors, best ones with int8 dot products (VNNI, AMX, Arm dotprod).")
    for model in models:
        if model.requires:
            paragraphs.append(f"`{model.name}` {model.requires}.")
        if model.smallest > 1:
            paragraphs.append(
                f"Smaller batches than {model.smallest} that find none to join are refused by `{model.name}`: send "
                "larger ones, or set `max_queue_delay_microseconds` in its config.pbtxt."
            )
    if left := _not_served(bundle):
        paragraphs.append(f"The server has no platform for {', '.join(left)}, which the bundle also holds.")
    return "\n\n".join(paragraphs) + "\n"


def _publish(work: Path, folder: Path, force: bool) -> None:
    """Raises ExportError where the folder has been filled meanwhile."""
    with suppress(OSError):
        folder.rmdir()  # an empty one is as good as none
    try:
        publish(work, folder, replace=force)
    except FileExistsError as error:
        raise _in_use(folder) from error


def write_repository(
    bundle: Bundle, folder: str | Path, force: bool = False, threads: int | None = None
) -> tuple[Path, ...]:
    """Write a repository of the bundle's models: `video`, `text` and, where it holds an engine, one of that.

    folder  complete or not there at all: it is built beside and renamed. Its model files are hard links to the
            bundle's where the file system has them.
    force   replace a repository that this function wrote
    threads of a processor, for one call of an ONNX graph; None: as many as the server's processor has cores

    Returns every file written. Raises UsageError for `threads` below 1; BundleError for a bundle that is damaged,
    failed its checks or is replaced meanwhile; ExportError for a folder that is in use, holds anything else or cannot
    be written.
    """
    check_threads(threads)
    target = check_folder(folder, bundle.path, force)
    models = served_models(bundle, threads)
    with building(target) as work:
        with one_release(bundle):
            _check_bundle(bundle)
            written = [path for model in models for path in _write_model(model, bundle, work)]
        (work / README).write_text(_readme(bundle, models), encoding="utf-8")
        names = [path.relative_to(work) for path in (*written, work / README)]
        check_folder(target, bundle.path, force)  # again: a build takes its time
        _publish(work, target, force)
    return tuple(target / name for name in names)
