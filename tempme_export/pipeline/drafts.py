"""Drafts: what a dry run writes beside the bundle, for a machine that has what this one lacks."""

from dataclasses import replace
from pathlib import Path

from tempme_export.artifacts.artifact import Artifact, Making
from tempme_export.artifacts.bundle import MANIFEST, SUFFIX
from tempme_export.artifacts.graph_files import data_path, graph_files
from tempme_export.encoder.recipe import Recipe
from tempme_export.errors import BundleError
from tempme_export.files import building
from tempme_export.pipeline.spec import ExportSpec
from tempme_export.progress import SILENT


def check_request(spec: ExportSpec) -> None:
    """Raise as `ExportSpec.check`, but for what only this machine lacks to build from drafts: a preview tells that."""
    replace(spec, options=spec.options - {one.option for one in spec.drafts}).check()


def draft_path(artifact: Artifact, out: Path) -> Path:
    """Path at which a dry run leaves an artifact: beside the bundle `out`, under its name."""
    return out.with_name(f"{out.name.removesuffix(SUFFIX)}.{artifact.file}")


def check_draft(path: Path, force: bool) -> None:
    """Raise BundleError for a path in a bundle, and for one that is taken: always by a folder, by a file without
    `force`."""
    if (path.absolute().parent / MANIFEST).is_file():
        raise BundleError(f"{path.parent} is a bundle, which holds its own files only. Choose another --out.")
    for one in (path, data_path(path)):
        if one.is_dir():
            raise BundleError(f"{one} is a folder, expected to write a file there. Choose another --out.")
        if one.exists() and not force:
            raise BundleError(f"{one} exists. Add --force to replace it, or choose another --out.")


def write_draft(artifact: Artifact, recipe: Recipe, spec: ExportSpec, path: Path) -> tuple[Path, ...]:
    """The artifact alone, complete or not at all, and its data where it has some; the files written.

    Raises as its exporter.
    """
    with building(path) as work:
        named = replace(artifact, file=path.name)
        artifact.exporter.build(named, Making(recipe, spec, work, path, None, SILENT))
        data_path(path).unlink(missing_ok=True)  # of the graph that is replaced
        for made in reversed(graph_files(work / path.name)):
            made.replace(path.with_name(made.name))
    return graph_files(path)
