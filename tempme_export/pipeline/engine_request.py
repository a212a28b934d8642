"""What `--trt` asks for, before anything is built: the plan, and the graph alone for a machine that has TensorRT."""

from pathlib import Path

from tempme_export.artifacts.artifact import Spec
from tempme_export.artifacts.bundle import MANIFEST, SUFFIX
from tempme_export.artifacts.graph_files import data_path, graph_files
from tempme_export.encoder.recipe import Recipe
from tempme_export.errors import BackendError, BundleError
from tempme_export.exporters.external_data import LARGEST_FILE
from tempme_export.exporters.plugin_onnx import export_plugin_video
from tempme_export.exporters.trt import requirements
from tempme_export.exporters.trt.engine import engine_nodes
from tempme_export.exporters.trt.plan import EnginePlan, engine_plan
from tempme_export.exporters.trt.plugin_builds import ptx_target
from tempme_export.files import building
from tempme_export.runtime.engine_facts import SOURCE
from tempme_export.runtime.nvidia import engine_device, find_gpu

OPTION = "trt"


def requested_engine(recipe: Recipe, spec: Spec) -> EnginePlan:
    """What an export with `trt` would build, and what this machine lacks for it. Raises UsageError as it would."""
    nodes = engine_nodes(recipe)
    requirements.check_options(spec.precision)
    try:
        target = ptx_target(find_gpu(engine_device(spec.device)).compute)
    except BackendError:  # told among what is missing
        target = None
    return engine_plan(
        recipe, spec.precision, nodes, spec.frame_mask, target, requirements.missing_for_engine(spec.device)
    )


def source_path(out: Path) -> Path:
    """Where a dry run leaves the graph: beside the bundle `out`, under its name."""
    return out.with_name(f"{out.name.removesuffix(SUFFIX)}.{SOURCE}")


def check_source(path: Path, force: bool) -> None:
    """Raise BundleError for a path in a bundle, and for one that is taken: always by a folder, by a file without
    `force`."""
    if (path.absolute().parent / MANIFEST).is_file():
        raise BundleError(f"{path.parent} is a bundle, which holds its own files only. Choose another --out.")
    for one in (path, data_path(path)):
        if one.is_dir():
            raise BundleError(f"{one} is a folder, expected to write a file there. Choose another --out.")
        if one.exists() and not force:
            raise BundleError(f"{one} exists. Add --force to replace it, or choose another --out.")


def write_source(
    recipe: Recipe, path: Path, precision: str, frame_mask: bool, largest_file: int = LARGEST_FILE
) -> tuple[Path, ...]:
    """The graph alone, complete or not at all, and its data where it has some; the files written.

    Raises ExportError as `export_plugin_video`.
    """
    with building(path) as work:
        export_plugin_video(recipe, work / path.name, precision, frame_mask, largest_file=largest_file)
        data_path(path).unlink(missing_ok=True)  # of the graph that is replaced
        for made in reversed(graph_files(work / path.name)):
            made.replace(path.with_name(made.name))
    return graph_files(path)
