"""`tempme-export rebuild DIR`: what a bundle can build again for this machine, from the files that it carries."""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tempme_export.artifacts import registry
from tempme_export.artifacts.artifact import Artifact, Making
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
from tempme_export.files import building, file_sha256
from tempme_export.media.preprocess import preprocess_in
from tempme_export.parity.checks import ParityReport
from tempme_export.parity.selftest import load_selftest
from tempme_export.parity.verification import Parity, Standard, raise_if_failed, verify_on
from tempme_export.pipeline.spec import ExportSpec
from tempme_export.progress import SILENT, Progress

if TYPE_CHECKING:
    from tempme_export.encoder.recipe import Recipe

_WRITTEN = ("format", "files", "sha256")  # by write_manifest
_Facts = Mapping[str, Mapping[str, Any]]


def _renewable(bundle: Bundle) -> tuple[Artifact, ...]:
    """The artifacts whose sources a bundle has, also where the export was not asked for them. Raises BundleError for
    none."""
    rebuilt = registry.rebuilt()
    found = tuple(one for one in rebuilt if one.source in bundle.manifest["files"])
    if not found:
        options = " ".join(f"--{one.option}" for one in rebuilt)
        raise BundleError(
            f"{bundle.path} has no {', no '.join(str(one.source) for one in rebuilt)}, so no engine can be built from "
            f"it. Export it again with its checkpoint: tempme-export CKPT {options}."
        )
    return found


def _check_sources(bundle: Bundle, renewed: Sequence[Artifact]) -> Intact:
    """Raise BundleError unless every file but the renewed, which may be gone or spoilt, is what the manifest says."""
    files, spoilt = bundle.manifest["files"], {one.file for one in renewed}
    for name, entry in files.items():
        path = bundle.path / name
        if name not in spoilt and (not path.is_file() or file_sha256(path) != entry["sha256"]):
            raise BundleError(f"{path} is missing or was changed. Export the bundle again.")
    unknown = sorted({path.name for path in bundle.path.iterdir()} - {*files, MANIFEST, *spoilt})
    if unknown:
        raise BundleError(
            f"{bundle.path} holds what does not belong to the bundle and would be lost: {', '.join(unknown)}. "
            "Move it elsewhere."
        )
    return Intact(len(files))


@dataclass(frozen=True)
class _Weightless:
    """Part of a recipe that a bundle still knows: all but its weights."""

    profile: Profile
    backbone: Backbone
    schedule: Schedule


def _recipe(bundle: Bundle) -> "Recipe":
    """For exporters that build from a source, which ask for no weights."""
    fields: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in bundle.manifest["backbone"].items()
    }
    return cast("Recipe", _Weightless(bundle.profile, Backbone(**fields), bundle.schedule))


def _carry_over(folder: Path, names: list[str], work: Path) -> None:
    """Files as links, where the file system can."""
    for name in names:
        try:
            os.link(folder / name, work / name)
        except OSError:
            shutil.copy2(folder / name, work / name)


def _manifest(bundle: Bundle, facts: _Facts, reports: Sequence[ParityReport]) -> dict[str, Any]:
    kept = {key: value for key, value in bundle.manifest.items() if key not in _WRITTEN}
    verified = {one.artifact for one in reports}
    others = [one for one in kept["parity"] if one["artifact"] not in verified]
    return {**kept, **facts, "parity": [*others, *(one.to_dict() for one in reports)]}


def _build(renewed: Sequence[Artifact], making: Making) -> dict[str, dict[str, Any]]:
    """All of them again; what they say of themselves."""
    said = {one.option: one.exporter.build(one, making) for one in renewed}
    return {option: facts for option, facts in said.items() if option is not None and facts is not None}


def _verify(renewed: Sequence[Artifact], built: Folder, bundle: Bundle, device: str) -> list[ParityReport]:
    """Each on the backends that verify it, against the bundle's self-test."""
    sizes, preprocess = bundle.profile.batch, preprocess_in(bundle.manifest)
    batches = (sizes.min, sizes.opt, sizes.max)
    standard = Standard(load_selftest(built.path / SELFTEST), bundle.schedule, preprocess, batches)
    backends = (one for one in registry.verifying(built, device) if one.artifact in renewed)
    return [verify_on(backend, built, standard, device) for backend in backends]


def rebuild(
    bundle_path: str | Path,
    *,
    device: str = "cuda",
    workspace_gib: float | None = None,
    verbose: bool = False,
    progress: Progress = SILENT,
) -> Bundle:
    """Build the artifacts of a bundle again whose sources it carries, verify them, and put them and its manifest in
    place.

    The bundle changes at the end and at once: until the new engine is accepted, the old one stays.
    Raises BackendError, before any work, where no engine can be built here; UsageError for a workspace that is none;
    BundleError for a bundle that is damaged, holds other files, has no source or is replaced meanwhile; ExportError
    where building fails, ParityError where the new engine computes something else.
    """
    for required in filter(None, (one.requirements for one in registry.rebuilt())):
        required.check_rebuild(device, workspace_gib)
    bundle = open_bundle(Path(bundle_path).resolve())
    renewed = _renewable(bundle)
    progress.tell(_check_sources(bundle, renewed))
    carried = [name for name in bundle.manifest["files"] if name not in {one.file for one in renewed}]
    path, precision = bundle.path, bundle.manifest["precision"]
    spec = ExportSpec(
        path,
        precision=precision,
        frame_mask=bundle.manifest["frame_mask"],
        device=device,
        workspace_gib=workspace_gib,
        verbose=verbose,
    )
    with building(path) as work:
        with one_release(bundle, carried):
            _carry_over(bundle.path, carried, work)
        facts = _build(renewed, Making(_recipe(bundle), spec, work, path, None, progress))
        reports = _verify(renewed, Folder(work, precision, facts), bundle, device)
        progress.tell(Parity(tuple(reports)))
        raise_if_failed(reports, f"{path} keeps the engine it had.")
        manifest = write_manifest(work, _manifest(bundle, facts, reports))
        check_release(bundle, carried)
        publish(work, path, replace=True)
    complete = Bundle(path, manifest)
    progress.tell(complete)
    return complete
