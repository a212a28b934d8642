"""`tempme-export rebuild DIR`: a new engine for this machine, from the graph that the bundle carries."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tempme_export.artifacts import registry
from tempme_export.artifacts.backend import Folder
from tempme_export.artifacts.bundle import (
    MANIFEST,
    SELFTEST,
    Bundle,
    Intact,
    check_release,
    one_release,
    open_bundle,
    publish,
    write_manifest,
)
from tempme_export.encoder.backbone import Backbone
from tempme_export.encoder.profile import Profile
from tempme_export.encoder.schedule import Schedule
from tempme_export.errors import BundleError
from tempme_export.exporters.plugin_nodes import PluginNode, plugin_nodes
from tempme_export.exporters.trt import builder, requirements
from tempme_export.files import building, file_sha256
from tempme_export.media.preprocess import preprocess_in
from tempme_export.parity.checks import ParityReport
from tempme_export.parity.selftest import load_selftest
from tempme_export.parity.verification import Parity, Standard, judge_on, raise_if_failed
from tempme_export.progress import SILENT, Progress
from tempme_export.runtime.engine_facts import ENGINE, KEY, SOURCE, EngineFacts
from tempme_export.runtime.nvidia import engine_device

_WRITTEN = ("format", "files", "sha256")  # by write_manifest


def _check_sources(bundle: Bundle) -> Intact:
    """Raise BundleError unless every file but the engine, which may be gone or spoilt, is what the manifest says."""
    files = bundle.manifest["files"]
    if SOURCE not in files:
        raise BundleError(
            f"{bundle.path} has no {SOURCE}, so no engine can be built from it. Export it again with its checkpoint: "
            "tempme-export CKPT --trt."
        )
    for name, entry in files.items():
        path = bundle.path / name
        if name != ENGINE and (not path.is_file() or file_sha256(path) != entry["sha256"]):
            raise BundleError(f"{path} is missing or was changed. Export the bundle again.")
    unknown = sorted({path.name for path in bundle.path.iterdir()} - {*files, MANIFEST, ENGINE})
    if unknown:
        raise BundleError(
            f"{bundle.path} holds what does not belong to the bundle and would be lost: {', '.join(unknown)}. "
            "Move it elsewhere."
        )
    return Intact(len(files))


@dataclass(frozen=True)
class _Planned:
    """Part of a recipe that a bundle still knows: all but its weights."""

    profile: Profile
    backbone: Backbone
    plan: Schedule


def _nodes(bundle: Bundle) -> tuple[PluginNode, ...]:
    """Plugin nodes of the graph."""
    fields: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in bundle.manifest["backbone"].items()
    }
    return plugin_nodes(_Planned(bundle.profile, Backbone(**fields), bundle.plan))


def _carry_over(folder: Path, names: list[str], work: Path) -> None:
    """Files as links, where the file system can."""
    for name in names:
        try:
            os.link(folder / name, work / name)
        except OSError:
            shutil.copy2(folder / name, work / name)


def _manifest(bundle: Bundle, facts: EngineFacts, report: ParityReport) -> dict[str, Any]:
    kept = {key: value for key, value in bundle.manifest.items() if key not in _WRITTEN}
    others = [one for one in kept["parity"] if one["artifact"] != ENGINE]
    return {**kept, KEY: facts.to_dict(), "parity": [*others, report.to_dict()]}


def rebuild(
    bundle_path: str | Path,
    *,
    device: str = "cuda",
    workspace_gib: float | None = None,
    verbose: bool = False,
    progress: Progress = SILENT,
) -> Bundle:
    """Build `video.plan` again from the bundle's `video.plugin.onnx`, judge it, and put it and its manifest in place.

    The bundle changes at the end and at once: until the new engine is accepted, the old one stays.
    Raises BackendError, before any work, where no engine can be built here; UsageError for a workspace that is none;
    BundleError for a bundle that is damaged, holds other files, has no such graph or is replaced meanwhile; ExportError
    where building fails, ParityError where the new engine computes something else.
    """
    requirements.check_workspace(workspace_gib)
    requirements.check_builder(device, requirements.BUNDLE_STAYS)
    bundle = open_bundle(Path(bundle_path).resolve())
    progress.tell(_check_sources(bundle))
    carried = [name for name in bundle.manifest["files"] if name != ENGINE]
    path = bundle.path
    chosen = engine_device(device)
    with building(path) as work:
        with one_release(bundle, carried):
            _carry_over(bundle.path, carried, work)
        settings = builder.EngineSettings(
            batch=bundle.profile.batch,
            precision=bundle.manifest["precision"],
            device=chosen,
            timing_cache=builder.timing_cache_path(path),
            workspace_gib=workspace_gib,
            verbose=verbose,
        )
        facts = builder.build(work / SOURCE, work / ENGINE, settings, _nodes(bundle), progress)
        progress.tell(facts)
        preprocess = preprocess_in(bundle.manifest)
        standard = Standard(load_selftest(work / SELFTEST), bundle.plan, preprocess, facts.batch)
        built = Folder(work, facts.precision, {KEY: facts.to_dict()})
        (backend,) = (one for one in registry.BACKENDS if one.artifact == registry.PLAN)
        report = judge_on(backend, built, standard, chosen)
        progress.tell(Parity((report,)))
        raise_if_failed([report], f"{path} keeps the engine it had.")
        manifest = write_manifest(work, _manifest(bundle, facts, report))
        check_release(bundle, carried)
        publish(work, path, replace=True)
    renewed = Bundle(path, manifest)
    progress.tell(renewed)
    return renewed
