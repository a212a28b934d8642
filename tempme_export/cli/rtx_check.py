"""`make trt-rtx-check`: TensorRT-RTX's parser and builder, NVIDIA's too, are given both video graphs, on a CPU."""

import dataclasses
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated

import typer

from tempme_export.cli.app import CommandLine
from tempme_export.cli.options import JsonOption
from tempme_export.cli.terminal import show_line, write_json
from tempme_export.exporters.trt.rtx.builder import OPSET, Built, build_graphs, carry, load_bindings

if TYPE_CHECKING:
    from tempme_export.encoder.recipe import Recipe
    from tempme_export.exporters.trt.rtx.plugins import RtxPlugins

FOLDER = Path("build/trt-rtx")
SEED = 0
NOTICE = (
    "TensorRT-RTX is another product than TensorRT. That it takes a graph makes it likely that TensorRT does, "
    "and proves nothing about TensorRT. Nothing is launched: that takes a GPU."
)


class GraphPrecision(StrEnum):
    """Precision of the graphs."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"


def _recipe(source: str, random: bool) -> "Recipe":
    from tempme_export.encoder.profile import load_profile
    from tempme_export.encoder.random_weights import draw_checkpoint
    from tempme_export.encoder.recipe import open_recipe, prepare

    if not random:
        return open_recipe(source)
    profile = load_profile(source)
    return prepare(draw_checkpoint(profile, SEED), profile)


def _show(one: Built) -> None:
    dtypes = ", ".join(f"{name} {count}" for name, count in one.dtypes.items())
    name = f"{one.file} with plugins" if one.plugins else one.file
    show_line("graph", f"{name}: {one.onnx_nodes} nodes, {one.plugin_nodes} for plugins, {one.functions} functions")
    show_line(
        "network", f"{one.network_layers} layers, {one.plugin_layers} plugins, parsed in {one.parse_seconds:.1f} s"
    )
    show_line("engine", f"{one.layers} layers, {one.fused} of {one.attentions} attentions fused, by type: {dtypes}")
    show_line("", f"{one.engine_bytes / 1e6:.1f} MB, built in {one.build_seconds:.1f} s")


def rtx_check(
    load: Callable[[Path], ModuleType] = load_bindings,
    plugins_of: Callable[[ModuleType, "Recipe", str], "RtxPlugins"] = carry,
) -> CommandLine:
    """The command. `load` brings the bindings of TensorRT-RTX from a folder, `plugins_of` our plugins for them."""
    line = CommandLine("trt-rtx-check")

    @line.default(3, 4, 6)
    def command(
        source: Annotated[
            str,
            typer.Argument(metavar="CKPT", show_default=False, help="A checkpoint, or with --random a profile."),
        ],
        random: Annotated[bool, typer.Option("--random", help="Random weights of the named profile.")] = False,
        precision: Annotated[
            GraphPrecision, typer.Option("--precision", help="Precision of the graphs.")
        ] = GraphPrecision.FP16,
        as_json: JsonOption = False,
    ) -> None:
        """Parse and build both video graphs, the second also with our plugins, by TensorRT-RTX on a CPU."""
        recipe = _recipe(source, random)
        rtx, profile = load(FOLDER), recipe.profile
        sizes = f"{profile.batch.min}:{profile.batch.opt}:{profile.batch.max}"
        show_line("check", f"{profile.name}, {precision.value}, batch {sizes}, TensorRT-RTX {rtx.__version__}")
        built = []
        for one in build_graphs(rtx, recipe, precision.value, plugins_of=plugins_of):
            _show(one)
            built.append(one)
        show_line("note", NOTICE)
        if as_json:
            write_json(
                {
                    "notice": NOTICE,
                    "profile": profile.name,
                    "checkpoint": recipe.checkpoint.source,
                    "precision": precision.value,
                    "opset": OPSET,
                    "batch": dataclasses.asdict(profile.batch),
                    "tensorrt_rtx": rtx.__version__,
                    "graphs": [dataclasses.asdict(one) for one in built],
                }
            )

    return line


main = rtx_check().main()

if __name__ == "__main__":
    main()
