"""Preview of the engine that `--trt` would build, as data: from a recipe alone, without TensorRT and without a GPU."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from tempme_export.encoder.recipe import Recipe
from tempme_export.kernels.aot import TARGETS, UNIVERSAL
from tempme_export.runtime.tensorrt_package import SUPPORTED

Shapes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


class Node(Protocol):
    """A node of domain tempme."""

    @property
    def op_type(self) -> str:
        """Its operator, whose plugin is `tempme::<op_type>`."""


@dataclass(frozen=True)
class EnginePreview:
    """The preview of one engine.

    tensorrt   versions that can build it
    precision  of the strongly typed graph
    batch      videos per call: smallest, usual and largest
    profile    input -> its shapes at those
    plugins    nodes that plugins take, by operator
    targets    GPU architectures that PTX of their own is made for; `universal` serves every other later GPU
    target     which of them the GPU at hand takes; None without one
    missing    what this machine lacks to build it, each with what to do; empty where it can
    """

    tensorrt: str
    precision: str
    batch: tuple[int, int, int]
    profile: dict[str, Shapes]
    plugins: dict[str, int]
    targets: tuple[str, ...]
    universal: str
    target: str | None
    missing: tuple[str, ...]

    @property
    def name(self) -> str:
        """Its place in a JSON document."""
        return "engine"

    def lines(self) -> list[tuple[str, str]]:
        """Label and text of each line for people."""
        batch = ":".join(map(str, self.batch))
        counts = ", ".join(f"{name} {count}" for name, count in self.plugins.items()) or "none"
        chosen = f"{self.target} for this GPU, of " if self.target else ""
        return [
            ("engine", f"TensorRT {self.tensorrt}   strongly typed, {self.precision}, batch {batch}"),
            *(("input", f"{name}   {', '.join(str(list(one)) for one in at)}") for name, at in self.profile.items()),
            ("plugins", f"{sum(self.plugins.values())} nodes: {counts}"),
            ("PTX", f"{chosen}{', '.join(self.targets)}; {self.universal} for any other later GPU"),
            *(("missing", one) for one in self.missing),
        ]

    def to_dict(self) -> dict[str, Any]:
        """Values for `--json`."""
        return asdict(self)


def preview_engine(
    recipe: Recipe,
    precision: str,
    nodes: Iterable[Node],
    frame_mask: bool = False,
    target: str | None = None,
    missing: Iterable[str] = (),
) -> EnginePreview:
    """The preview of a recipe's engine.

    nodes    what `plugin_nodes` describes
    target   of the GPU at hand
    missing  what `missing_for_engine` found
    """
    sizes, backbone, frames = recipe.profile.batch, recipe.backbone, recipe.profile.frames
    shapes: dict[str, tuple[int, ...]] = {"frames": (frames, 3, backbone.image_size, backbone.image_size)}
    if frame_mask:
        shapes["frame_mask"] = (frames,)
    return EnginePreview(
        tensorrt=SUPPORTED,
        precision=precision,
        batch=(sizes.min, sizes.opt, sizes.max),
        profile={
            name: ((sizes.min, *shape), (sizes.opt, *shape), (sizes.max, *shape)) for name, shape in shapes.items()
        },
        plugins=dict(sorted(Counter(node.op_type for node in nodes).items())),
        targets=tuple(name for name in TARGETS if name.startswith("sm_")),
        universal=UNIVERSAL,
        target=target,
        missing=tuple(missing),
    )
