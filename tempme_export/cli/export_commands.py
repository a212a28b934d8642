"""The actions of `tempme-export` that make a bundle, once the options make sense: build, preview, rebuild."""

import time
from dataclasses import asdict
from pathlib import Path

from tempme_export.artifacts.bundle import Bundle, check_destination
from tempme_export.cli import console
from tempme_export.cli.bundle_commands import say_done, write_bundle_json
from tempme_export.cli.terminal import show_again, write_json
from tempme_export.pipeline import export
from tempme_export.pipeline.drafts import check_draft, check_request, draft_path, write_draft
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
    console.show_uses(folder)


def export_bundle(spec: ExportSpec, as_json: bool) -> None:
    """Build a bundle."""
    started = time.perf_counter()
    bundle = export.build(spec, console.progress())
    if as_json:
        write_bundle_json(bundle)
    say_done(f"{bundle.path} in {time.perf_counter() - started:.0f} s", _statuses(bundle))
    console.show_uses(spec.target)


def preview_bundle(spec: ExportSpec, as_json: bool) -> None:
    """Show what would be built. Nothing is written but drafts, from which another machine builds the rest."""
    target = spec.target
    check_request(spec)
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
    found = [one.exporter.preview(recipe, spec) for one in spec.artifacts]
    previews = [one for one in found if one is not None]
    for preview in previews:
        console.show_preview(preview)
    needed = spec.size(recipe)
    check_destination(target, needed + spec.scratch(recipe), spec.force, recipe.checkpoint.sha256)
    drafts = {one: draft_path(one, target) for one in spec.drafts}
    for path in drafts.values():
        check_draft(path, spec.force)
    for artifact, path in drafts.items():
        for written in write_draft(artifact, recipe, spec, path):
            console.show_file(written)
    files = spec.files(recipe)
    if as_json:
        document = {"out": str(target), "profile": recipe.profile.to_dict(), "schedule": asdict(recipe.schedule)}
        document["conventions"] = {one.about: one.to_dict() for one in recipe.conventions}
        asked = {} if gate is None else {"gate": gate.to_dict()}
        scales = {} if calibration is None else {"calibration": calibration.to_dict()}
        previewed = {one.name: one.to_dict() for one in previews}
        written_to = {"written": ", ".join(map(str, drafts.values()))} if drafts else {}
        write_json({**document, "files": files, **asked, **scales, **previewed, **written_to})
    wrote = f"wrote {', '.join(map(str, drafts.values()))} and nothing else" if drafts else "nothing written"
    console.show_done(
        f"dry run: {wrote}. {target} would take about {needed / 1e6:.0f} MB: {', '.join(files)}, manifest.json"
    )
    show_again("tempme-export", without="--dry-run")
