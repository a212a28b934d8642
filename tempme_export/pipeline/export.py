"""Checkpoint -> accepted bundle, and the verification of one: the order in which the parts are used."""

import importlib.metadata
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tempme_export.artifacts.backend import Folder
from tempme_export.artifacts.bundle import (
    PT2,
    SELFTEST,
    SUFFIX,
    TEXT,
    VIDEO,
    Bundle,
    check_destination,
    failed_path,
    folder_of,
    one_release,
    open_bundle,
    publish,
    verify_files,
    write_manifest,
)
from tempme_export.artifacts.graph_files import data_path, graph_files
from tempme_export.data.annotations import RetrievalData
from tempme_export.encoder.checkpoint import OPEN_CLIP, Checkpoint
from tempme_export.encoder.model import check_supported
from tempme_export.encoder.profile import BatchRange, Profile
from tempme_export.encoder.recipe import Recipe, open_recipe
from tempme_export.errors import UsageError
from tempme_export.evaluation.gate import Gate, GateData, open_gate, run_gate
from tempme_export.exporters import pt2 as package_exporter
from tempme_export.exporters.external_data import LARGEST_FILE
from tempme_export.exporters.onnx import DEFAULT_OPSET, OPSETS, export_text, export_video
from tempme_export.exporters.plugin_onnx import export_plugin_video
from tempme_export.exporters.trt import builder
from tempme_export.files import building
from tempme_export.media.preprocess import Preprocess
from tempme_export.parity.checks import ParityReport
from tempme_export.parity.selftest import CLIPS, check_fits, load_selftest, make_selftest, preprocess_for, save_selftest
from tempme_export.parity.tolerance import INT8, PRECISIONS, TOLERANCES
from tempme_export.parity.verification import Standard, judge, raise_if_failed
from tempme_export.pipeline.engine_request import engine_nodes
from tempme_export.quantization import export as int8
from tempme_export.quantization.build import Quantization
from tempme_export.quantization.build import prepare as quantize
from tempme_export.quantization.calibration import FEWEST, read_calibration
from tempme_export.quantization.ranges import DEFAULT_METHOD, check_method
from tempme_export.runtime.engine_facts import ENGINE, KEY, SOURCE, EngineFacts
from tempme_export.runtime.nvidia import engine_device
from tempme_export.runtime.ort import check_device
from tempme_export.runtime.package_facts import PackageFacts, read_facts

Progress = Callable[[str, Any], None]
_CHECKPOINT_SUFFIXES = {".pt", ".pth", ".bin", ".safetensors", ".ckpt"}
_PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "open_clip_torch", "numpy")


def _silent(stage: str, result: Any) -> None:
    """No progress wanted."""


def tool_version() -> str:
    """Version of this package."""
    return importlib.metadata.version("tempme-export")


def _versions() -> dict[str, str]:
    installed = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions()}
    return {"python": platform.python_version()} | {p: installed[p] for p in _PACKAGES if p in installed}


def default_output(source: str) -> Path:
    """`ckpt.pt` -> `ckpt.tempme` beside it; `open_clip:MODEL/TAG` -> `MODEL-TAG.tempme` here.

    A suffix that is no checkpoint's belongs to the name: `model.bin.0` -> `model.bin.0.tempme`.
    """
    if source.startswith(OPEN_CLIP):
        return Path(source.removeprefix(OPEN_CLIP).replace("/", "-") + SUFFIX)
    path = Path(source)
    stem = path.stem if path.suffix.lower() in _CHECKPOINT_SUFFIXES else path.name
    return path.with_name(stem + SUFFIX)


def _manifest(
    recipe: Recipe,
    precision: str,
    frame_mask: bool,
    opset: int,
    reports: list[ParityReport],
    pt2: PackageFacts | None = None,
    gate: Gate | None = None,
    trace: bool = False,
    quantization: Quantization | None = None,
    engine: EngineFacts | None = None,
) -> dict[str, Any]:
    backbone, checkpoint = recipe.backbone, recipe.checkpoint
    return {
        "tool_version": tool_version(),
        "checkpoint": {"path": checkpoint.source, "sha256": checkpoint.sha256, "remarks": list(checkpoint.remarks)},
        "conventions": {one.about: one.to_dict() for one in recipe.conventions},
        "profile": recipe.profile.to_dict(),
        "backbone": asdict(backbone),
        "schedule": asdict(recipe.plan),
        "precision": precision,
        "frame_mask": frame_mask,
        "trace": trace,
        "opset": opset,
        "pt2": pt2.to_dict() if pt2 else None,
        KEY: engine.to_dict() if engine else None,
        "logit_scale": float(checkpoint.tensors["logit_scale"]),
        "image": {"size": backbone.image_size, "mean": list(backbone.mean), "std": list(backbone.std)},
        "versions": _versions(),
        "tolerances": asdict(TOLERANCES[precision]),
        "parity": [report.to_dict() for report in reports],
        "gate": gate.to_dict() if gate else None,
        "quantization": quantization.to_dict() if quantization else None,
    }


def estimate_bytes(recipe: Recipe, precision: str, pt2: bool = False, trt: bool = False) -> int:
    """Upper estimate of a bundle's size: its weights and the self-test clips, a tenth added."""
    weights = _weights(recipe) + _video_weights(recipe) * (
        pt2 + 2 * trt
    )  # an engine comes with the graph it was built from
    clips = len(CLIPS) * recipe.profile.frames * 3 * recipe.backbone.image_size**2
    code = 16 * 2**20 if pt2 else 0
    return int(1.1 * (weights * _width(precision) + clips)) + 4 * 2**20 + code


def planned_files(
    recipe: Recipe, precision: str, pt2: bool = False, trt: bool = False, largest_file: int = LARGEST_FILE
) -> list[str]:
    """Names of what a bundle will hold beside its manifest, by the size of the weights."""
    video = _video_weights(recipe) * _width(precision)
    text = _weights(recipe) * _width(precision) - video

    def graph(name: str, weights: int) -> list[str]:
        return [name, data_path(Path(name)).name] if weights > largest_file else [name]

    engine = [*graph(SOURCE, video), ENGINE] if trt else []
    return [SELFTEST, *graph(VIDEO, video), *graph(TEXT, text), *([PT2] if pt2 else []), *engine]


def scratch_bytes(recipe: Recipe, precision: str, pt2: bool = False, trt: bool = False) -> int:
    """What is written beside a bundle for a while: compiling a package, its weights as an object file, and linked;
    building an engine, a copy of it and the builder's timings."""
    weights = _video_weights(recipe) * _width(precision)
    return 3 * weights * pt2 + builder.needed_bytes(weights) * trt


def _weights(recipe: Recipe) -> int:
    return sum(tensor.numel() for tensor in recipe.checkpoint.tensors.values())


def _video_weights(recipe: Recipe) -> int:
    return sum(tensor.numel() for name, tensor in recipe.checkpoint.tensors.items() if name.startswith("visual."))


def _width(precision: str) -> int:
    return {"fp32": 4, "int8": 1}.get(precision, 2)


def _check_int8(precision: str, calibrate: str | Path | None, method: str | None, device: str, pt2: bool) -> None:
    if method is not None:
        check_method(method)
    if precision != INT8:
        if calibrate is not None:
            raise UsageError(f"found calibration data and precision {precision}. Calibration is for --precision int8.")
        if method is not None:
            raise UsageError(f"found --ranges {method} and precision {precision}. Ranges are for --precision int8.")
        return
    if calibrate is None:
        raise UsageError(
            "--precision int8 fixes its scales on videos: give --calibrate with a folder of at least "
            f"{FEWEST} like those that will be indexed, or with annotations as --gate takes them."
        )
    if pt2 or device != "cpu":
        found = "--pt2" if pt2 else f"--device {device}"
        raise UsageError(f"--precision int8 is for ONNX on CPUs, found {found}. Use fp16 or bf16 there.")


def check_request(
    precision: str,
    batch: tuple[int, int, int] | None,
    opset: int,
    device: str,
    pt2: bool = False,
    calibrate: str | Path | None = None,
    ranges: str | None = None,
    trt: bool = False,
    workspace_gib: float | None = None,
) -> None:
    """Refuse what no checkpoint could mend, before the work.

    Raises UsageError for values that do not exist or contradict each other, and BackendError without the runtime, the
    device, what an engine is built with or, for a package, the compiler.
    """
    if trt:
        builder.check_options(precision, workspace_gib)
        builder.check_builder(device)
    if precision not in PRECISIONS:
        raise UsageError(f"precision {precision!r} is not one of {', '.join(PRECISIONS)}.")
    _check_int8(precision, calibrate, ranges, device, pt2)
    if batch is not None and not 1 <= batch[0] <= batch[1] <= batch[2]:
        raise UsageError(f"batch {batch} must have 1 <= MIN <= OPT <= MAX.")
    if opset not in OPSETS:
        raise UsageError(f"opset {opset} is not one of {', '.join(map(str, OPSETS))}, which are tested.")
    check_device(device)
    if pt2:
        package_exporter.check_builder(device)


def requested_recipe(
    checkpoint: Checkpoint | str | Path,
    profile: Profile | str | Path | None,
    batch: tuple[int, int, int] | None,
    trace: bool = False,
    activation: str | None = None,
) -> Recipe:
    """The recipe that `export` builds, with the caller's batch range where one is given.

    Raises CheckpointError for a model that no artifact can hold, and UsageError for a trace of one that merges
    nothing, before any work.
    """
    recipe = open_recipe(checkpoint, profile, activation)
    check_supported(recipe)
    if trace and not recipe.plan.merges:
        raise UsageError(
            f"profile {recipe.profile.name} merges no tokens; a trace holds one output for every merge. Leave out "
            "--trace, or choose a --profile that merges."
        )
    if batch is None:
        return recipe
    return replace(recipe, profile=replace(recipe.profile, batch=BatchRange(*batch)))


def requested_gate(
    gate: RetrievalData | str | Path | None, videos: str | Path | None, recipe: Recipe
) -> GateData | None:
    """The data of the retrieval gate, opened and found fit for one; None where no gate is asked for.

    Raises UsageError for videos without a gate, and InputError as `open_gate`.
    """
    if gate is None:
        if videos is not None:
            raise UsageError("found a folder of videos for the gate and no gate. Give --gate DATA too.")
        return None
    return open_gate(gate, videos, recipe.profile)


def _run_gate(
    data: GateData | None,
    reports: Sequence[ParityReport],
    recipe: Recipe,
    folder: Folder,
    device: str,
    progress: Progress,
    allow_damaged: bool,
) -> Gate | None:
    """None where no gate is asked for, or where parity failed: what computes something else is not worth the time."""
    if data is None or any(report.status == "failed" for report in reports):
        return None
    progress("gate data", data)
    gate = run_gate(recipe, folder, data, device, progress, allow_damaged)
    progress("gate", gate)
    return gate


def _write_towers(
    recipe: Recipe,
    quantization: Quantization | None,
    work: Path,
    precision: str,
    opset: int,
    frame_mask: bool,
    trace: bool,
    largest_file: int,
    progress: Progress,
) -> None:
    video, text = work / VIDEO, work / TEXT
    if quantization is None:
        export_video(recipe, video, precision, opset, frame_mask, trace, largest_file=largest_file)
    else:
        int8.export_video(recipe, quantization.video, video, opset, frame_mask, trace, largest_file=largest_file)
    _report_graph(video, progress)
    if quantization is None:
        export_text(recipe, text, precision, opset, largest_file=largest_file)
    else:
        int8.export_text(recipe, quantization.text, text, opset, largest_file=largest_file)
    _report_graph(text, progress)


def _report_graph(graph: Path, progress: Progress) -> None:
    for path in graph_files(graph):
        progress("file", path)


def export(
    checkpoint: Checkpoint | str | Path,
    profile: Profile | str | Path | None = None,
    out: str | Path | None = None,
    *,
    activation: str | None = None,
    precision: str = "fp32",
    batch: tuple[int, int, int] | None = None,
    frame_mask: bool = False,
    trace: bool = False,
    pt2: bool = False,
    trt: bool = False,
    device: str = "cpu",
    opset: int = DEFAULT_OPSET,
    calibrate: str | Path | None = None,
    ranges: str | None = None,
    force: bool = False,
    gate: RetrievalData | str | Path | None = None,
    gate_videos: str | Path | None = None,
    allow_damaged: bool = False,
    workspace_gib: float | None = None,
    largest_file: int = LARGEST_FILE,
    verbose: bool = False,
    progress: Progress = _silent,
) -> Bundle:
    """Build a bundle and accept it only when it agrees with the oracle, and with a gate when it retrieves as well.

    checkpoint  a path, `open_clip:MODEL/PRETRAINED`, or one already loaded
    profile     a shipped name, a path, a Profile; None: inferred from the checkpoint's shapes
    out         the bundle's folder; None: the checkpoint's name with `.tempme`
    activation  "quickgelu" or "gelu", for a checkpoint that does not say it; None: what it says, else the profile's
    batch       min, opt, max videos per call; None: the profile's
    trace       `video.onnx` also returns every merge's decision, `assign_00`, ... int32 [batch * clips, N]: the row
                that each token goes to; `video.pt2` and an engine stay without
    pt2         also compile `video.pt2`, for `device`
    trt         also write `video.plugin.onnx` and build the TensorRT engine `video.plan` from it, for `device`, or
                for the first GPU where that is the CPU
    calibrate   for precision int8, and only for it: what `quantization.calibration.read_calibration` reads
    ranges      for precision int8, and only for it: how the ranges of activations are taken from `calibrate`, one of
                `quantization.ranges.METHODS`; None: `DEFAULT_METHOD`
    gate        videos and captions on which the bundle must retrieve what the original path does: what
                `tempme_export.data.annotations.open_data` reads (its test split), or data already read
    gate_videos the folder of the gate's video files; None: where the data says
    allow_damaged  take damaged pictures of the videos of `calibrate` and `gate` as the decoder shows them
    workspace_gib  most GPU memory for the scratch of a layer of the engine; None: all of it
    largest_file most bytes of an ONNX file: the weights of a larger graph lie beside it, in `video.onnx.data` and so on
    verbose     also pass on the log of the engine's builder
    progress    called with a stage's name and its result

    Raises any TempMeExportError; on ParityError the build is kept as `OUT.failed`, otherwise nothing stays but
    the timings of an engine that was built.
    """
    check_request(precision, batch, opset, device, pt2, calibrate, ranges, trt, workspace_gib)
    recipe = requested_recipe(checkpoint, profile, batch, trace, activation)
    progress("recipe", recipe)
    nodes = engine_nodes(recipe) if trt else ()
    gate_data = requested_gate(gate, gate_videos, recipe)
    out = default_output(recipe.checkpoint.source) if out is None else Path(out)
    needed = estimate_bytes(recipe, precision, pt2, trt) + scratch_bytes(recipe, precision, pt2, trt)
    check_destination(out, needed, force, recipe.checkpoint.sha256)
    sizes = recipe.profile.batch
    quantization = None
    if calibrate is not None:
        calibration = read_calibration(calibrate, recipe, allow_damaged)
        progress("calibration", calibration)
        quantization = quantize(recipe, calibration, ranges or DEFAULT_METHOD)
        progress("quantization", quantization)
    with building(out) as work:
        selftest = make_selftest(recipe)
        save_selftest(selftest, work / SELFTEST)
        progress("selftest", selftest)
        _write_towers(recipe, quantization, work, precision, opset, frame_mask, trace, largest_file, progress)
        if pt2:
            package_exporter.export_video(recipe, work / PT2, precision, device, frame_mask)
            progress("file", work / PT2)
        engine = None
        if trt:
            export_plugin_video(recipe, work / SOURCE, precision, frame_mask, largest_file=largest_file)
            _report_graph(work / SOURCE, progress)
            engine = builder.build(
                work / SOURCE,
                work / ENGINE,
                sizes,
                precision,
                device=engine_device(device),
                timing_cache=builder.timing_cache_path(out),
                nodes=nodes,
                workspace_gib=workspace_gib,
                verbose=verbose,
                progress=progress,
            )
            progress("engine", engine)
            progress("file", work / ENGINE)
        batches = tuple(sorted({sizes.min, sizes.opt, sizes.max}))
        built = Folder(work, precision, {KEY: engine.to_dict()} if engine else {})
        reports = judge(built, Standard(selftest, recipe.plan, preprocess_for(recipe), batches), device)
        progress("parity", reports)
        gated = _run_gate(gate_data, reports, recipe, built, device, progress, allow_damaged)
        facts = read_facts(work / PT2) if pt2 else None
        manifest = write_manifest(
            work, _manifest(recipe, precision, frame_mask, opset, reports, facts, gated, trace, quantization, engine)
        )
        verdicts = [*reports, *(gated.reports if gated else ())]
        if any(report.status == "failed" for report in verdicts):
            publish(work, failed_path(out), replace=True)
        raise_if_failed(verdicts, f"The build is kept as {failed_path(out)} for inspection.")
        publish(work, out, replace=force)
    bundle = Bundle(out.absolute(), manifest)
    progress("bundle", bundle)
    return bundle


def verify(path: str | Path, *, device: str = "cpu", progress: Progress = _silent) -> list[ParityReport]:
    """Check every byte of a bundle and run its self-test on this machine.

    Raises BundleError for a changed file or a bundle that is replaced meanwhile, ParityError where the self-test fails,
    BackendError without a runtime.
    """
    bundle = open_bundle(path)
    with one_release(bundle):
        reports = _judge_bundle(bundle, device, progress)
    progress("parity", reports)
    raise_if_failed(reports, f"{bundle.path} does not compute here what it did where it was built.")
    return reports


def _judge_bundle(bundle: Bundle, device: str, progress: Progress) -> list[ParityReport]:
    verify_files(bundle)
    progress("files", bundle)
    image, sizes = bundle.manifest["image"], bundle.profile.batch
    preprocess = Preprocess(image["size"], tuple(image["mean"]), tuple(image["std"]))
    selftest, plan = load_selftest(bundle.path / SELFTEST), bundle.plan
    check_fits(selftest, plan, image["size"], bundle.manifest["backbone"]["embed"])
    batches = tuple(sorted({sizes.min, sizes.opt}))
    return judge(folder_of(bundle), Standard(selftest, plan, preprocess, batches), device, elsewhere=True)
