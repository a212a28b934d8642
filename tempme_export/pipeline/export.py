"""Checkpoint -> accepted bundle: the order in which the parts are used."""

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tempme_export.artifacts import registry
from tempme_export.artifacts.artifact import Making
from tempme_export.artifacts.backend import Folder
from tempme_export.artifacts.bundle import (
    SELFTEST,
    Bundle,
    check_destination,
    failed_path,
    publish,
    write_manifest,
)
from tempme_export.artifacts.graph_files import graph_files
from tempme_export.data.annotations import RetrievalData
from tempme_export.encoder.checkpoint import Checkpoint
from tempme_export.encoder.profile import Profile
from tempme_export.encoder.recipe import Recipe
from tempme_export.evaluation.gate import Gate, run_gate
from tempme_export.evaluation.gate_data import GateData
from tempme_export.exporters.external_data import LARGEST_FILE
from tempme_export.exporters.onnx import DEFAULT_OPSET
from tempme_export.exporters.tokenizer import export_tokenizer
from tempme_export.files import building
from tempme_export.media.preprocess import preprocess_for
from tempme_export.media.stored_tokenizer import TOKENIZER
from tempme_export.parity.checks import ParityReport
from tempme_export.parity.making import make_selftest
from tempme_export.parity.selftest import save_selftest
from tempme_export.parity.tolerance import TOLERANCES
from tempme_export.parity.verification import Parity, Standard, raise_if_failed, verify_artifacts
from tempme_export.pipeline.spec import ExportSpec, asked
from tempme_export.progress import SILENT, Progress, Written
from tempme_export.quantization.build import Quantization
from tempme_export.quantization.build import prepare as quantize
from tempme_export.quantization.calibration import read_calibration
from tempme_export.quantization.ranges import DEFAULT_METHOD

_PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "open_clip_torch", "numpy")


def tool_version() -> str:
    """Version of this package."""
    return importlib.metadata.version("tempme-export")


def _versions() -> dict[str, str]:
    installed = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions()}
    return {"python": platform.python_version()} | {p: installed[p] for p in _PACKAGES if p in installed}


@dataclass(frozen=True)
class Built:
    """Results of an export beside the files.

    facts  option -> what an artifact says of itself
    """

    facts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    reports: Sequence[ParityReport] = ()
    gate: Gate | None = None
    quantization: Quantization | None = None

    @property
    def verdicts(self) -> list[ParityReport]:
        """Reports of parity and of the gate."""
        return [*self.reports, *(self.gate.reports if self.gate else ())]


def _manifest(spec: ExportSpec, recipe: Recipe, built: Built) -> dict[str, Any]:
    backbone, checkpoint = recipe.backbone, recipe.checkpoint
    return {
        "tool_version": tool_version(),
        "checkpoint": {"path": checkpoint.source, "sha256": checkpoint.sha256, "remarks": list(checkpoint.remarks)},
        "conventions": {one.about: one.to_dict() for one in recipe.conventions},
        "profile": recipe.profile.to_dict(),
        "backbone": asdict(backbone),
        "schedule": asdict(recipe.schedule),
        "precision": spec.precision,
        "frame_mask": spec.frame_mask,
        "trace": spec.expose_merges,
        "opset": spec.opset,
        **{option: built.facts.get(option) for option in registry.options()},
        "logit_scale": float(checkpoint.tensors["logit_scale"]),
        "image": {"size": backbone.image_size, "mean": list(backbone.mean), "std": list(backbone.std)},
        "versions": _versions(),
        "tolerances": asdict(TOLERANCES[spec.precision]),
        "parity": [report.to_dict() for report in built.reports],
        "gate": built.gate.to_dict() if built.gate else None,
        "quantization": built.quantization.to_dict() if built.quantization else None,
    }


def _run_gate(
    data: GateData | None,
    reports: Sequence[ParityReport],
    recipe: Recipe,
    folder: Folder,
    spec: ExportSpec,
    progress: Progress,
) -> Gate | None:
    """None where no gate is asked for, or where parity failed: what computes something else is not worth the time."""
    if data is None or any(report.status == "failed" for report in reports):
        return None
    progress.tell(data)
    gate = run_gate(recipe, folder, data, spec.device, progress, spec.allow_damaged)
    progress.tell(gate)
    return gate


def _quantize(spec: ExportSpec, recipe: Recipe, progress: Progress) -> Quantization | None:
    if spec.calibrate is None:
        return None
    with progress.step("int8: reading calibration clips"):
        calibration = read_calibration(spec.calibrate, recipe, spec.allow_damaged)
    progress.tell(calibration)
    quantization = quantize(recipe, calibration, spec.ranges or DEFAULT_METHOD, progress)
    progress.tell(quantization)
    return quantization


def _build_artifacts(spec: ExportSpec, making: Making) -> dict[str, dict[str, Any]]:
    """All that are asked for; what they say of themselves."""
    facts = {}
    for artifact in spec.artifacts:
        with making.progress.step(f"building {artifact.file}"):
            said = artifact.exporter.build(artifact, making)
        if said is not None and artifact.option is not None:
            facts[artifact.option] = said
        for path in graph_files(making.folder / artifact.file):
            making.progress.tell(Written(path))
    return facts


def export(
    checkpoint: Checkpoint | str | Path,
    profile: Profile | str | Path | None = None,
    out: str | Path | None = None,
    *,
    activation: str | None = None,
    precision: str = "fp32",
    batch: tuple[int, int, int] | None = None,
    frame_mask: bool = False,
    expose_merges: bool = False,
    pt2: bool = False,
    trt: bool = False,
    also: Sequence[str] = (),
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
    progress: Progress = SILENT,
) -> Bundle:
    """Build a bundle and accept it only when it agrees with the reference, and with a gate when it retrieves as well.

    checkpoint  a path, `open_clip:MODEL/PRETRAINED`, or one already loaded
    profile     a shipped name, a path, a Profile; None: inferred from the checkpoint's shapes
    out         the bundle's folder; None: the checkpoint's name with `.tempme`
    activation  "quickgelu" or "gelu", for a checkpoint that does not say it; None: what it says, else the profile's
    batch       min, opt, max videos per call; None: the profile's
    expose_merges
                `video.onnx` also returns every merge's decision, `assign_00`, ... int32 [batch * clips, N]: the row
                that each token goes to; `video.pt2` and an engine stay without
    pt2         also compile `video.pt2`, for `device`
    trt         also write `video.plugin.onnx` and build the TensorRT engine `video.plan` from it, for `device`, or
                for the first GPU where that is the CPU
    also        options of further artifacts, as `artifacts.registry` names them
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
    progress    hears of every step and of what it leaves: Recipe, Calibration, Quantization, SelfTest, Written for
                each file, EngineFacts, Parity, GateData, Gate, and at last the Bundle

    Raises any TempMeExportError; on ParityError the build is kept as `OUT.failed`, otherwise nothing stays but
    the timings of an engine that was built.
    """
    spec = ExportSpec(
        checkpoint=checkpoint,
        profile=profile,
        out=out,
        activation=activation,
        precision=precision,
        batch=batch,
        frame_mask=frame_mask,
        expose_merges=expose_merges,
        options=asked([("pt2", pt2), ("trt", trt), *((option, True) for option in also)]),
        device=device,
        opset=opset,
        calibrate=calibrate,
        ranges=ranges,
        force=force,
        gate=gate,
        gate_videos=gate_videos,
        allow_damaged=allow_damaged,
        workspace_gib=workspace_gib,
        largest_file=largest_file,
        verbose=verbose,
    )
    return build(spec, progress)


def build(spec: ExportSpec, progress: Progress = SILENT) -> Bundle:
    """Build what was asked for; raises as `export`."""
    spec.check()
    with progress.step("reading the checkpoint"):
        recipe = spec.recipe()
    progress.tell(recipe)
    gate_data, out = spec.gate_data(recipe), spec.target
    check_destination(out, spec.size(recipe) + spec.scratch(recipe), spec.force, recipe.checkpoint.sha256)
    quantization = _quantize(spec, recipe, progress)
    with building(out) as work:
        with progress.step("self-test: the original path"):
            selftest = make_selftest(recipe)
        save_selftest(selftest, work / SELFTEST)
        progress.tell(selftest)
        if selftest.captions:
            export_tokenizer(work / TOKENIZER)
            progress.tell(Written(work / TOKENIZER))
        facts = _build_artifacts(spec, Making(recipe, spec, work, out, quantization, progress))
        sizes, folder = recipe.profile.batch, Folder(work, spec.precision, facts)
        batches = tuple(sorted({sizes.min, sizes.opt, sizes.max}))
        standard = Standard(selftest, recipe.schedule, preprocess_for(recipe), batches)
        reports = verify_artifacts(folder, standard, spec.device, progress=progress)
        progress.tell(Parity(tuple(reports)))
        gate = _run_gate(gate_data, reports, recipe, folder, spec, progress)
        built = Built(facts, reports, gate, quantization)
        manifest = write_manifest(work, _manifest(spec, recipe, built))
        if any(report.status == "failed" for report in built.verdicts):
            publish(work, failed_path(out), replace=True)
        raise_if_failed(built.verdicts, f"The build is kept as {failed_path(out)} for inspection.")
        publish(work, out, replace=spec.force)
    bundle = Bundle(out.absolute(), manifest)
    progress.tell(bundle)
    return bundle
