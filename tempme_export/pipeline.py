"""Checkpoint -> accepted bundle, and the verification of one: the order in which the parts are used."""

import importlib.metadata
import platform
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tempme_export.bundle import (
    PT2,
    SELFTEST,
    SUFFIX,
    TEXT,
    VIDEO,
    Bundle,
    building,
    check_destination,
    failed_path,
    open_bundle,
    publish,
    verify_files,
    write_manifest,
)
from tempme_export.checkpoint import OPEN_CLIP, Checkpoint, load_checkpoint
from tempme_export.errors import BackendError, ParityError, PrecisionError, UsageError
from tempme_export.export import to_pt2
from tempme_export.export.to_onnx import DEFAULT_OPSET, OPSETS, export_text, export_video
from tempme_export.package_facts import PackageFacts, read_facts
from tempme_export.parity import ParityReport, check_batches, check_text, check_video
from tempme_export.preprocess import Preprocess
from tempme_export.profile import BatchRange, Profile
from tempme_export.recipe import Recipe, prepare
from tempme_export.runtime.ort import OrtRunner, check_device
from tempme_export.runtime.pt2 import Pt2Runner
from tempme_export.schedule import Schedule
from tempme_export.selftest import CLIPS, SelfTest, load_selftest, make_selftest, preprocess_for, save_selftest
from tempme_export.tolerance import PRECISIONS, TOLERANCES

Progress = Callable[[str, Any], None]
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
    """`ckpt.pt` -> `ckpt.tempme` beside it; `open_clip:MODEL/TAG` -> `MODEL-TAG.tempme` here."""
    if source.startswith(OPEN_CLIP):
        return Path(source.removeprefix(OPEN_CLIP).replace("/", "-") + SUFFIX)
    return Path(source).with_suffix(SUFFIX)


def _manifest(
    recipe: Recipe,
    precision: str,
    frame_mask: bool,
    opset: int,
    reports: list[ParityReport],
    pt2: PackageFacts | None = None,
) -> dict[str, Any]:
    backbone, checkpoint = recipe.backbone, recipe.checkpoint
    return {
        "tool_version": tool_version(),
        "checkpoint": {"path": checkpoint.source, "sha256": checkpoint.sha256},
        "profile": recipe.profile.to_dict(),
        "backbone": asdict(backbone),
        "schedule": asdict(recipe.plan),
        "precision": precision,
        "frame_mask": frame_mask,
        "opset": opset,
        "pt2": pt2.to_dict() if pt2 else None,
        "logit_scale": float(checkpoint.tensors["logit_scale"]),
        "image": {"size": backbone.image_size, "mean": list(backbone.mean), "std": list(backbone.std)},
        "versions": _versions(),
        "tolerances": asdict(TOLERANCES[precision]),
        "parity": [report.to_dict() for report in reports],
    }


def estimate_bytes(recipe: Recipe, precision: str, pt2: bool = False) -> int:
    """Upper estimate of a bundle's size: its weights and the self-test clips, a tenth added."""
    weights = sum(tensor.numel() for tensor in recipe.checkpoint.tensors.values())
    weights += _video_weights(recipe) if pt2 else 0
    clips = len(CLIPS) * recipe.profile.frames * 3 * recipe.backbone.image_size**2
    code = 16 * 2**20 if pt2 else 0
    return int(1.1 * (weights * _width(precision) + clips)) + 4 * 2**20 + code


def scratch_bytes(recipe: Recipe, precision: str) -> int:
    """What compiling a package writes beside it for a while: the weights as an object file, and linked."""
    return 3 * _video_weights(recipe) * _width(precision)


def _video_weights(recipe: Recipe) -> int:
    return sum(tensor.numel() for name, tensor in recipe.checkpoint.tensors.items() if name.startswith("visual."))


def _width(precision: str) -> int:
    return 4 if precision == "fp32" else 2


def judge(
    folder: Path,
    selftest: SelfTest,
    plan: Schedule,
    preprocess: Preprocess,
    precision: str,
    batches: tuple[int, ...],
    device: str,
    elsewhere: bool = False,
) -> list[ParityReport]:
    """Run every artifact of a folder against the self-test: the graphs under ONNX Runtime, a package under torch.

    A runtime that cannot run the precision gives a report that says so; a missing one, or a missing device,
    raises BackendError, and so does a package of another machine or device, unless the bundle was built `elsewhere`.
    """
    tolerance, ort = TOLERANCES[precision], f"ONNX Runtime, {device}"
    names = [name for merge in plan.merges for name in (merge.assign_name, merge.tokens_name)]

    def video() -> tuple[Any, ...]:
        with OrtRunner(folder / VIDEO, device, expose=names) as exposing:
            checks = check_video(selftest, plan, preprocess, exposing, tolerance)
        with OrtRunner(folder / VIDEO, device) as runner:
            return *checks, *check_batches(selftest, preprocess, runner, batches, tolerance)

    def text() -> tuple[Any, ...]:
        with OrtRunner(folder / TEXT, device) as runner:
            return tuple(check_text(selftest, runner, tolerance))

    def package() -> tuple[Any, ...]:
        with Pt2Runner(folder / PT2, device) as runner:
            checks = check_video(selftest, plan, preprocess, runner, tolerance, with_tokens=False)
            return *checks, *check_batches(selftest, preprocess, runner, batches, tolerance)

    runs = [(VIDEO, ort, video), (TEXT, ort, text)]
    if (folder / PT2).is_file():
        runs.append((PT2, f"AOTInductor, {device}", package))
    reports = []
    for artifact, backend, run in runs:
        try:
            reports.append(ParityReport(artifact, backend, run()))
        except BackendError as error:
            without_kernels = isinstance(error, PrecisionError) and precision != "fp32"
            if not without_kernels and not (elsewhere and artifact == PT2):
                raise
            reports.append(ParityReport(artifact, backend, (), reason=str(error)))
    return reports


def _raise_if_failed(reports: list[ParityReport], where: str) -> None:
    failed = [
        f"{report.artifact}: {check.name} is {check.value:.3g}, limit {check.limit:g}"
        for report in reports
        if report.status == "failed"
        for check in report.checks
        if not check.passed
    ]
    if failed or any(report.status == "failed" for report in reports):
        raise ParityError(f"parity failed. {'; '.join(failed) or 'Nothing was compared'}. {where}")


def check_request(
    precision: str, batch: tuple[int, int, int] | None, opset: int, device: str, pt2: bool = False
) -> None:
    """Refuse what no checkpoint could mend, before the work.

    Raises UsageError for values that do not exist and BackendError without the runtime, the device or, for a
    package, the compiler.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"precision {precision!r} is not one of {', '.join(PRECISIONS)}.")
    if batch is not None and not 1 <= batch[0] <= batch[1] <= batch[2]:
        raise UsageError(f"batch {batch} must have 1 <= MIN <= OPT <= MAX.")
    if opset not in OPSETS:
        raise UsageError(f"opset {opset} is not one of {', '.join(map(str, OPSETS))}, which are tested.")
    check_device(device)
    if pt2:
        to_pt2.check_builder(device)


def requested_recipe(
    checkpoint: Checkpoint | str | Path, profile: Profile | str | Path | None, batch: tuple[int, int, int] | None
) -> Recipe:
    """The recipe that `export` builds, with the caller's batch range where one is given."""
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = load_checkpoint(checkpoint)
    recipe = prepare(checkpoint, profile)
    if batch is None:
        return recipe
    return replace(recipe, profile=replace(recipe.profile, batch=BatchRange(*batch)))


def export(
    checkpoint: Checkpoint | str | Path,
    profile: Profile | str | Path | None = None,
    out: str | Path | None = None,
    *,
    precision: str = "fp32",
    batch: tuple[int, int, int] | None = None,
    frame_mask: bool = False,
    pt2: bool = False,
    device: str = "cpu",
    opset: int = DEFAULT_OPSET,
    force: bool = False,
    progress: Progress = _silent,
) -> Bundle:
    """Build a bundle and accept it only when it agrees with the oracle.

    checkpoint  a path, `open_clip:MODEL/PRETRAINED`, or one already loaded
    profile     a shipped name, a path, a Profile; None: inferred from the checkpoint's shapes
    out         the bundle's folder; None: the checkpoint's name with `.tempme`
    batch       min, opt, max videos per call; None: the profile's
    pt2         also compile `video.pt2`, for `device`
    progress    called with a stage's name and its result

    Raises any TempMeExportError; on ParityError the build is kept as `OUT.failed`, otherwise nothing stays.
    """
    check_request(precision, batch, opset, device, pt2)
    recipe = requested_recipe(checkpoint, profile, batch)
    progress("recipe", recipe)
    out = default_output(recipe.checkpoint.source) if out is None else Path(out)
    needed = estimate_bytes(recipe, precision, pt2) + (scratch_bytes(recipe, precision) if pt2 else 0)
    check_destination(out, needed_bytes=needed, force=force)
    sizes = recipe.profile.batch
    with building(out) as work:
        selftest = make_selftest(recipe)
        save_selftest(selftest, work / SELFTEST)
        progress("selftest", selftest)
        export_video(recipe, work / VIDEO, precision, opset, frame_mask)
        progress("file", work / VIDEO)
        export_text(recipe, work / TEXT, precision, opset)
        progress("file", work / TEXT)
        if pt2:
            to_pt2.export_video(recipe, work / PT2, precision, device, frame_mask)
            progress("file", work / PT2)
        batches = tuple(sorted({sizes.min, sizes.opt, sizes.max}))
        preprocess = preprocess_for(recipe)
        reports = judge(work, selftest, recipe.plan, preprocess, precision, batches, device)
        progress("parity", reports)
        facts = read_facts(work / PT2) if pt2 else None
        write_manifest(work, _manifest(recipe, precision, frame_mask, opset, reports, facts))
        if any(report.status == "failed" for report in reports):
            publish(work, failed_path(out))
        _raise_if_failed(reports, f"The build is kept as {failed_path(out)} for inspection.")
        publish(work, out)
    bundle = open_bundle(out)
    progress("bundle", bundle)
    return bundle


def verify(path: str | Path, *, device: str = "cpu", progress: Progress = _silent) -> list[ParityReport]:
    """Check every byte of a bundle and run its self-test on this machine.

    Raises BundleError for a changed file, ParityError where the self-test fails, BackendError without a
    runtime.
    """
    bundle = open_bundle(path)
    verify_files(bundle)
    progress("files", bundle)
    image, sizes = bundle.manifest["image"], bundle.profile.batch
    preprocess = Preprocess(image["size"], tuple(image["mean"]), tuple(image["std"]))
    selftest = load_selftest(bundle.path / SELFTEST)
    batches = tuple(sorted({sizes.min, sizes.opt}))
    precision = bundle.manifest["precision"]
    reports = judge(bundle.path, selftest, bundle.plan, preprocess, precision, batches, device, elsewhere=True)
    progress("parity", reports)
    _raise_if_failed(reports, f"{bundle.path} does not compute here what it did where it was built.")
    return reports
