"""Counts of an exported graph and of the kernels' launches that no processor moves, and the table that holds them."""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

from tempme_export.bench.counting.graph import count_graph
from tempme_export.bench.counting.shapes import shape_frames
from tempme_export.bench.kernels.calls import fused_calls, launches_of, merging_calls, moved_bytes
from tempme_export.encoder.model import VideoEncoder
from tempme_export.encoder.recipe import Recipe
from tempme_export.errors import BackendError, ParityError
from tempme_export.files import scratch_folder

_PEAK = "mem_in_use_peak"
_INPUTS = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
TABLE = Path(__file__).with_name("budgets.toml")


@dataclass(frozen=True)
class Budget:
    """A count as it has to be, and what it stands for."""

    count: int
    reason: str


def read_table(path: Path = TABLE) -> dict[str, Budget]:
    """`OF.WHAT` -> budget."""
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    return {
        f"{of}.{what}": Budget(entry["count"], entry["reason"])
        for of, entries in table.items()
        for what, entry in entries.items()
    }


def count_file(name: str, path: Path) -> dict[str, int]:
    """Nodes of an exported graph, in all and of the kinds that cost without computing."""
    model = onnx.load(path, load_external_data=False).graph
    return {
        f"{name}.nodes": len(model.node),
        f"{name}.casts": sum(node.op_type == "Cast" for node in model.node),
        f"{name}.strided_slices": _strided_slices(model),
        f"{name}.plugins": sum(node.domain not in ("", "ai.onnx") for node in model.node),
    }


def count_kernels(recipe: Recipe) -> dict[str, int]:
    """Launches between the matrix products of one video in float32, and the bytes that the merging ones move: every
    input and output once."""
    calls = fused_calls(VideoEncoder(recipe).to("meta"), shape_frames(recipe))
    merging = [call for call in merging_calls(calls) if call.sign > 0]
    moved = sum(moved_bytes(call.inputs, call.run(*call.inputs)) for call in merging)
    return {"kernels.launches": len(launches_of(calls)), "kernels.bytes": moved}


def count_products(name: str, path: Path, recipe: Recipe) -> dict[str, int]:
    """Multiply-accumulates of a video in the graph's products."""
    return {f"{name}.products": count_graph(path).parts(recipe.backbone.width).products}


def count_arena(name: str, path: Path, threads: int = 1) -> dict[str, int]:
    """The most bytes that ONNX Runtime's arena holds at once for the values of a graph that encodes one row.

    Its profile says it of every node. Rewrites for the kind of processor are left out, and weights,
    which it may pack for one: found the same under Sandy Bridge's, Haswell's and AVX-512's instructions, on one thread
    and on two. Raises BackendError for a version whose profile does not say it.
    """
    with scratch_folder("tempme-arena") as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.enable_mem_pattern = threads, False
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.enable_profiling, options.profile_file_prefix = True, str(folder / "profile")
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        session.run(None, {one.name: np.zeros([1, *one.shape[1:]], _INPUTS[one.type]) for one in session.get_inputs()})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    nodes = [event["args"] for event in events if _PEAK in event.get("args", {})]
    if not nodes:
        raise BackendError(
            f"onnxruntime {onnxruntime.__version__} does not say in its profile what its arena holds. Install the "
            "version of constraints.txt."
        )
    weights = int(nodes[0]["mem_bytes_in_use"]) - int(nodes[0]["mem_in_use_delta"])
    return {f"{name}.arena_bytes": max(int(node[_PEAK]) for node in nodes) - weights}


def _strided_slices(model: onnx.GraphProto) -> int:
    """Slices that take every n-th element: those cost a copy, while a step of one does not have to."""
    steps = {one.name: numpy_helper.to_array(one) for one in model.initializer}
    steps |= {
        node.output[0]: numpy_helper.to_array(node.attribute[0].t)
        for node in model.node
        if node.op_type == "Constant" and node.attribute[0].HasField("t")
    }
    slices = [node for node in model.node if node.op_type == "Slice" and len(node.input) > 4]
    return sum(bool((abs(steps[node.input[4]]) != 1).any()) for node in slices if node.input[4] in steps)


def check_budgets(found: Mapping[str, int], table: Mapping[str, Budget]) -> None:
    """Raise ParityError for a count that is not the table's, or that one of both lacks."""
    wrong = [
        f"{name}: found {found.get(name, 'none')}, expected {table[name].count if name in table else 'none'}"
        for name in sorted(found.keys() | table.keys())
        if name not in found or name not in table or found[name] != table[name].count
    ]
    if wrong:
        raise ParityError(f"budgets: {'; '.join(wrong)}. If that is meant, change {TABLE.name} and say why there.")
