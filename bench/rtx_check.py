"""`make trt-rtx-check`: do a parser and a builder of NVIDIA's take the video graphs? TensorRT-RTX is asked, on a CPU.

TensorRT-RTX is another product than TensorRT: the same ONNX parser and interface over a builder of its own. What it
parses and fuses makes it likely that TensorRT does; it proves nothing about TensorRT, about plugins or about speed.
"""

import argparse
import dataclasses
import json
from collections.abc import Callable, Mapping
from importlib.metadata import distributions
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from tempme_export.bench.rtx_builder import build, load_bindings
from tempme_export.bench.tables.table import Column, fixed, tabled, texts, whole, words
from tempme_export.bench.tables.terminal import show
from tempme_export.cli.entry import entry
from tempme_export.files import scratch_folder, write_file
from tempme_export.parity.tolerance import PRECISIONS

if TYPE_CHECKING:
    from tempme_export.encoder.recipe import Recipe

FOLDER = Path("build/trt-rtx")
OPSET = 20
SEED = 0
NOTICE = (
    "TensorRT-RTX is another product than TensorRT. That it takes a graph makes it likely that TensorRT does, "
    "and proves nothing about TensorRT. Nothing is run: that takes a GPU."
)
_COUNTS = {
    "ONNX nodes": "onnx_nodes",
    "plugins": "plugin_nodes",
    "functions": "functions",
    "layers": "network_layers",
    "of plugins": "plugin_layers",
    "in engine": "layers",
}
_COLUMNS = (
    Column("file", "file", words),
    *(Column(head, name, whole) for head, name in _COUNTS.items()),
    Column("fused", lambda one: f"{one.fused} of {one.attentions}", texts),
    Column("engine MB", lambda one: one.engine_bytes / 1e6, fixed(1)),
    *(Column("parse s", "parse_seconds", fixed(1)), Column("build s", "build_seconds", fixed(1))),
)


def _recipe(source: str, random: bool) -> "Recipe":
    from tempme_export.encoder.checkpoint import load_checkpoint
    from tempme_export.encoder.profile import load_profile
    from tempme_export.encoder.random_weights import draw_checkpoint
    from tempme_export.encoder.recipe import prepare

    if random:
        profile = load_profile(source)
        return prepare(draw_checkpoint(profile, SEED), profile)
    return prepare(load_checkpoint(source))


def exporters(precision: str) -> Mapping[str, Callable[["Recipe", Path], None]]:
    """File name -> what writes it. Both graphs of the video tower, the one with nodes for plugins last."""
    from tempme_export.exporters.onnx import export_video
    from tempme_export.exporters.plugin_onnx import export_plugin_video

    return {
        "video.onnx": lambda recipe, path: export_video(recipe, path, precision, OPSET),
        "video.plugin.onnx": lambda recipe, path: export_plugin_video(recipe, path, precision, opset=OPSET),
    }


def versions(folder: Path) -> dict[str, str]:
    """Distribution -> version of everything pip installed into `folder`."""
    return {one.metadata["Name"]: one.version for one in distributions(path=[str(folder)])}


def check(recipe: "Recipe", folder: Path, precision: str, console: Console) -> dict[str, Any]:
    """Export, parse and build both graphs; the figures as one document.

    Raises BackendError without the libraries in `folder`, ExportError for a graph that is not taken.
    """
    rtx = load_bindings(folder)
    results = []
    batch = recipe.profile.batch
    with scratch_folder("trt-rtx-check") as work:
        for name, write in exporters(precision).items():
            path = work / name
            console.print(f"exporting, parsing and building {name}", soft_wrap=True)
            write(recipe, path)
            results.append(build(rtx, path, batch))
    title = (
        f"{recipe.profile.name}, {precision}, batch {batch.min}:{batch.opt}:{batch.max}, TensorRT-RTX "
        f"{rtx.__version__}\nplugins: nodes that are for one; of plugins: layers that are; fused: attentions"
    )
    show(console, tabled(title, _COLUMNS, results))
    for one in results:
        console.print(f"{one.file}: engine layers by type of number: {_listing(one.dtypes)}", soft_wrap=True)
    console.print(NOTICE, soft_wrap=True)
    return {
        "notice": NOTICE,
        "profile": recipe.profile.name,
        "checkpoint": recipe.checkpoint.source,
        "precision": precision,
        "opset": OPSET,
        "batch": dataclasses.asdict(batch),
        "tensorrt_rtx": rtx.__version__,
        "versions": versions(folder),
        "graphs": [dataclasses.asdict(one) for one in results],
    }


def _listing(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="trt-rtx-check", description="Parse and build the video graphs with TensorRT-RTX on a CPU. " + NOTICE
    )
    parser.add_argument("source", metavar="CHECKPOINT", help="a TempMe checkpoint, or with --random a profile")
    parser.add_argument("--random", action="store_true", help="random weights of the named profile")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp16", help="of the graphs; fp16 by default")
    parser.add_argument("--libraries", type=Path, default=FOLDER, metavar="DIR", help="where TensorRT-RTX is installed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    return parser


def _check_as_asked() -> None:
    given = _parser().parse_args()
    console = Console(stderr=True, markup=False, highlight=False, emoji=False)
    document = check(_recipe(given.source, given.random), given.libraries, given.precision, console)
    if given.json is not None:
        write_file(given.json, (json.dumps(document, indent=1) + "\n").encode())


main = entry(_check_as_asked)

if __name__ == "__main__":
    main()
