"""What `tempme-export` does once its options make sense: build, plan, verify, rebuild, lay out for a server."""

import time
from dataclasses import asdict, dataclass
from pathlib import Path

from tempme_export.artifacts.bundle import Bundle, check_destination, open_bundle
from tempme_export.cli import console
from tempme_export.cli.terminal import show_warning, write_json
from tempme_export.errors import ExportError
from tempme_export.pipeline import engine_request, export
from tempme_export.pipeline.rebuild import rebuild
from tempme_export.quantization.calibration import read_calibration
from tempme_export.serving.repository import check_folder, write_repository


@dataclass(frozen=True)
class Request:
    """The options of a build; the fields are the parameters of `pipeline.export`."""

    checkpoint: str
    profile: str | None
    activation: str | None
    out: Path | None
    precision: str
    batch: tuple[int, int, int] | None
    frame_mask: bool
    trace: bool
    pt2: bool
    trt: bool
    device: str
    opset: int
    calibrate: str | None
    ranges: str | None
    gate: str | None
    gate_videos: Path | None
    allow_damaged: bool
    workspace_gib: float | None
    verbose: bool
    force: bool

    @property
    def target(self) -> Path:
        """The bundle's folder."""
        return self.out or export.default_output(self.checkpoint)


def _say_done(text: str, statuses: list[str]) -> None:
    if "not run" in statuses:
        text += "; parity was NOT RUN for the lines above, so nothing is proven about them on this machine"
    console.show_done(text)


def _statuses(bundle: Bundle) -> list[str]:
    gated = bundle.manifest.get("gate")
    return [report["status"] for report in [*bundle.manifest["parity"], *(gated["reports"] if gated else ())]]


def _write_bundle_json(bundle: Bundle, written: tuple[Path, ...] = ()) -> None:
    """What was built is in place, so that a stdout that takes no document is no failure."""
    repository = {"repository": list(written)} if written else {}
    try:
        write_json({"bundle": bundle.path, "manifest": bundle.manifest} | repository)
    except ExportError as error:
        show_warning(f"{error} {bundle.path} is complete.")


def verify_bundle(folder: Path, device: str, as_json: bool) -> None:
    """Check a bundle's bytes and run its self-test."""
    reports = export.verify(folder, device=device, progress=console.show_progress)
    if as_json:
        write_json({"bundle": str(folder), "parity": [report.to_dict() for report in reports]})
    _say_done(f"{folder} verified", [report.status for report in reports])


def rebuild_engine(folder: Path, device: str, workspace_gib: float | None, verbose: bool, as_json: bool) -> None:
    """Build a bundle's engine again, for the GPU at hand."""
    started = time.perf_counter()
    bundle = rebuild(
        folder, device=device, workspace_gib=workspace_gib, verbose=verbose, progress=console.show_progress
    )
    if as_json:
        _write_bundle_json(bundle)
    console.show_done(f"{folder} has a new engine, in {time.perf_counter() - started:.0f} s")


def serve_bundle(folder: Path, repository: Path, threads: int | None, force: bool, as_json: bool) -> None:
    """Write the model repository of a bundle that is there."""
    bundle = open_bundle(folder)
    written = write_repository(bundle, repository, force, threads)
    console.show_progress("repository", written)
    if as_json:
        _write_bundle_json(bundle, written)
    console.show_done(f"{repository} serves {folder}")


def export_bundle(request: Request, repository: Path | None, threads: int | None, as_json: bool) -> None:
    """Build a bundle and, where asked for, its model repository."""
    started = time.perf_counter()
    if repository is not None:
        check_folder(repository, request.target, request.force)
    options = {name: getattr(request, name) for name in Request.__dataclass_fields__}
    given = [options.pop(name) for name in ("checkpoint", "profile", "out")]
    bundle = export.export(*given, **options, progress=console.show_progress)
    written: tuple[Path, ...] = ()
    if repository is not None:
        written = write_repository(bundle, repository, request.force, threads)
        console.show_progress("repository", written)
    if as_json:
        _write_bundle_json(bundle, written)
    _say_done(f"{bundle.path} in {time.perf_counter() - started:.0f} s", _statuses(bundle))


def plan_bundle(request: Request, repository: Path | None, as_json: bool) -> None:
    """Show what would be built. Nothing is written but, for an engine, the graph that it would be built from."""
    export.check_request(
        request.precision,
        request.batch,
        request.opset,
        request.device,
        request.pt2,
        request.calibrate,
        request.ranges,
    )
    target, trt = request.target, request.trt
    recipe = export.requested_recipe(
        request.checkpoint, request.profile, request.batch, request.trace, request.activation
    )
    gate = export.requested_gate(request.gate, request.gate_videos, recipe)
    calibration = None
    if request.calibrate is not None:
        calibration = read_calibration(request.calibrate, recipe, request.allow_damaged)
    console.show_recipe(recipe)
    if calibration is not None:
        console.show_calibration(calibration)
    if gate is not None:
        console.show_gate_data(gate)
    engine = None
    if trt:
        engine = engine_request.requested_engine(recipe, request.precision, request.frame_mask, request.device)
        console.show_progress("engine plan", engine)
    needed = export.estimate_bytes(recipe, request.precision, request.pt2, trt)
    needed_meanwhile = needed + export.scratch_bytes(recipe, request.precision, request.pt2, trt)
    check_destination(target, needed_meanwhile, request.force, recipe.checkpoint.sha256)
    if repository is not None:
        check_folder(repository, target, request.force)
    source = engine_request.source_path(target)
    if trt:
        engine_request.check_source(source, request.force)
        for path in engine_request.write_source(recipe, source, request.precision, request.frame_mask):
            console.show_file(path)
    files = export.planned_files(recipe, request.precision, request.pt2, trt)
    if as_json:
        document = {"out": str(target), "profile": recipe.profile.to_dict(), "schedule": asdict(recipe.plan)}
        document["conventions"] = {one.about: one.to_dict() for one in recipe.conventions}
        asked = {} if gate is None else {"gate": gate.to_dict()}
        scales = {} if calibration is None else {"calibration": calibration.to_dict()}
        planned = {} if engine is None else {"engine": engine.to_dict(), "written": str(source)}
        write_json({**document, "files": files, **asked, **scales, **planned})
    wrote = f"wrote {source} and nothing else" if trt else "nothing written"
    console.show_done(
        f"dry run: {wrote}. {target} would take about {needed / 1e6:.0f} MB: {', '.join(files)}, manifest.json"
    )
