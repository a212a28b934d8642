"""The engine as an artifact of a bundle: what `builder` needs to know, taken from the request."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tempme_export.artifacts.artifact import Artifact, Making, Spec
from tempme_export.encoder.recipe import Recipe
from tempme_export.errors import BackendError, UsageError
from tempme_export.exporters.common import tower_bytes
from tempme_export.exporters.plugin_nodes import PluginNode, plugin_nodes
from tempme_export.exporters.trt import builder, requirements
from tempme_export.exporters.trt.plugin_builds import ptx_target
from tempme_export.exporters.trt.preview import EnginePreview, preview_engine
from tempme_export.exporters.trt.requirements import Missing
from tempme_export.progress import Progress
from tempme_export.runtime.engine_facts import SOURCE, EngineFacts
from tempme_export.runtime.nvidia import engine_device, find_gpu

Make = Callable[[Path, Path, builder.EngineSettings, Sequence[PluginNode], Progress], EngineFacts]
"""What builds: `builder.build` on this machine."""


def engine_nodes(recipe: Recipe) -> tuple[PluginNode, ...]:
    """Nodes that an engine's plugins are to take. Raises UsageError where there are none."""
    nodes = plugin_nodes(recipe)
    if not nodes:
        raise UsageError(
            f"profile {recipe.profile.name} merges no tokens, so an engine of it would hold no plugin of ours. Leave "
            "out --trt and build its video.onnx with TensorRT itself, or choose a --profile that merges."
        )
    return nodes


def check(spec: Spec) -> None:
    """No more than its requirements."""


def check_recipe(recipe: Recipe, spec: Spec) -> None:
    """Raises UsageError as `engine_nodes`."""
    engine_nodes(recipe)


def files(artifact: Artifact, recipe: Recipe, spec: Spec) -> list[str]:
    """The engine."""
    return [artifact.file]


def size(artifact: Artifact, recipe: Recipe, spec: Spec) -> int:
    """Its weights."""
    return tower_bytes(recipe, "video", spec.precision)


def scratch(artifact: Artifact, recipe: Recipe, spec: Spec) -> int:
    """A copy of the engine, and the builder's timings."""
    return builder.needed_bytes(tower_bytes(recipe, "video", spec.precision))


def preview(recipe: Recipe, spec: Spec, missing: Missing = requirements.missing_for_engine) -> EnginePreview:
    """The preview of the engine, and what this machine lacks for it. Raises UsageError as building it would."""
    nodes = engine_nodes(recipe)
    requirements.check_options(spec.precision)
    try:
        target = ptx_target(find_gpu(engine_device(spec.device)).compute)
    except BackendError:  # told among what is missing
        target = None
    return preview_engine(recipe, spec.precision, nodes, spec.frame_mask, target, missing(spec.device))


def build(artifact: Artifact, making: Making, make: Make = builder.build) -> dict[str, Any]:
    """From the graph with plugins; tells the progress its EngineFacts. Raises as `builder.build`."""
    recipe, spec = making.recipe, making.spec
    settings = builder.EngineSettings(
        batch=recipe.profile.batch,
        precision=spec.precision,
        device=engine_device(spec.device),
        timing_cache=builder.timing_cache_path(making.out),
        workspace_gib=spec.workspace_gib,
        verbose=spec.verbose,
    )
    source, engine = making.folder / SOURCE, making.folder / artifact.file
    facts = make(source, engine, settings, engine_nodes(recipe), making.progress)
    making.progress.tell(facts)
    return facts.to_dict()
