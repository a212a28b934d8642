"""The actions of `tempme-export` that make a bundle, once the options make sense: build, preview, rebuild."""

import time
from dataclasses import asdict, replace
from pathlib import Path

from tempme_export.artifacts.bundle import Bundle, check_destination
from tempme_export.cli import console
from tempme_export.cli.bundle_commands import say_done, write_bundle_json
from tempme_export.cli.terminal import write_json
from tempme_export.pipeline import engine_request, export
from tempme_export.pipeline.rebuild import rebuild
from tempme_export.pipeline.spec import ExportSpec
from tempme_export.quantization.calibration import read_calibration


def _statuses(bundle: Bundle) -> list[str]:
    gated = bundle.manifest.get("gate")
    return [report["status"] for report in [*bundle.manifest["parity"], *(gated["reports"] if gated else ())]]


def rebuild_engine(folder: Path, device: str, workspace_gib: float | None, verbose: bool, as_json: bool) -> None:
    """Build a bundle's engine again, for the GPU at hand."""
    started = time.perf_counter()
    bundle = rebuild(folder, device=device, workspace_gib=workspace_gib, verbose=verbose, progress=console.progress())
    if as_json:
        write_bundle_json(bundle)
    console.show_done(f"{folder} has a new engine, in {time.perf_counter() - started:.0f} s")


def export_bundle(spec: ExportSpec, as_json: bool) -> None:
    """Build a bundle."""
    started = time.perf_counter()
    bundle = export.build(spec, console.progress())
    if as_json:
        write_bundle_json(bundle)
    say_done(f"{bundle.path} in {time.perf_counter() - started:.0f} s", _statuses(bundle))


def preview_bundle(spec: ExportSpec, as_json: bool) -> None:
    """Show what would be built. Nothing is written but, for an engine, the graph that it would be built from."""
    target, trt = spec.target, engine_request.OPTION in spec.options
    replace(spec, options=spec.options - {engine_request.OPTION}).check()  # its plan says what is missing
    recipe = spec.recipe()
    gate = spec.gate_data(recipe)
    calibration = None
    if spec.calibrate is not None:
        calibration = read_calibration(spec.calibrate, recipe, spec.allow_damaged)
    console.show_recipe(recipe)
    if calibration is not None:
        console.show_calibration(calibration)
    if gate is not None:
        console.show_gate_data(gate)
    engine = None
    if trt:
        engine = engine_request.requested_engine(recipe, spec)
        console.show_engine_plan(engine)
    needed = spec.size(recipe)
    check_destination(target, needed + spec.scratch(recipe), spec.force, recipe.checkpoint.sha256)
    source = engine_request.source_path(target)
    if trt:
        engine_request.check_source(source, spec.force)
        for path in engine_request.write_source(recipe, source, spec.precision, spec.frame_mask):
            console.show_file(path)
    files = spec.files(recipe)
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
