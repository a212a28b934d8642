"""Modules and signatures keep a size that a reader takes in at once."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("tempme_export", "kernels")
MOST_LINES, FEWEST_LINES, MOST_PARAMETERS = 350, 40, 8

# What may take more parameters, and why.
FACADES = {
    "tempme_export/pipeline/export.py: export": "the facade over ExportSpec, in keywords",
}
OPERATOR = "an operator takes tensors and whole numbers, and each of its forms has its signature"
OPERATORS = {
    "tempme_export/encoder/ops.py: merge_norm": OPERATOR,
    "tempme_export/exporters/plugin_onnx.py: _merge_norm": OPERATOR,
    "kernels/dense_block.py: merge_norm": OPERATOR,
    "kernels/merge.py: merge_norm": OPERATOR,
    "kernels/merge.py: _merge": OPERATOR,
}
COMMANDS = "tempme_export/cli/"  # the parameters of a command are its options
# What may be shorter, and why it is a module of its own; __init__ and __main__ need no reason.
SMALL = {
    "tempme_export/artifacts/graph_files.py": "names on disk that exporters, bundles and servers share, without onnx",
    "tempme_export/data/clip.py": "the value that decoding, tables and caches pass on; it imports none of them",
    "tempme_export/encoder/checkpoint/files.py": "tells formats apart; each format has its own module",
    "tempme_export/exporters/common.py": "shared by the exporters of ONNX, plugins, PT2 and engines",
    "tempme_export/media/video_transport.py": "bytes of one container; all else sees FFmpeg's packets",
    "tempme_export/pipeline/verify.py": "verifies a bundle without what exports one",
    "tempme_export/quantization/embedding.py": "the token embedding is rounded by a rule of its own",
    "tempme_export/quantization/invariance.py": "rewrites a finished ONNX graph; its neighbours change towers in torch",
    "tempme_export/quantization/pixels.py": "the patch embedding is quantised by a rule of its own",
    "tempme_export/runtime/malloc.py": "one call of glibc, shared by two runtimes and the bench",
    "tempme_export/runtime/processor.py": "facts of the processor, asked without importing a runtime",
    "tempme_export/training/files.py": "the format that other code reads; a run's own state is another",
    "tempme_export/training/loss.py": "one formula of the paper, on tensors alone",
    "tempme_export/training/schedule.py": "the learning rate in plain numbers, without torch",
}
JIT = "kernels/jit/"  # what Triton compiles takes pointers, strides and tiles, and no structure


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Number of those it declares, `self` and `cls` aside."""
    declared = function.args
    named = [*declared.posonlyargs, *declared.args, *declared.kwonlyargs]
    return sum(one.arg not in ("self", "cls") for one in named) + bool(declared.vararg) + bool(declared.kwarg)


def is_command(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """True where typer makes options of its parameters."""
    calls = [one.func for one in function.decorator_list if isinstance(one, ast.Call)]
    return any(isinstance(one, ast.Attribute) and one.attr in ("command", "default", "callback") for one in calls)


def too_many(file: str, source: str) -> Iterator[str]:
    """`file: function` of each that takes more than it may."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and parameters(node) > MOST_PARAMETERS:
            excused = file.startswith(JIT) or (file.startswith(COMMANDS) and is_command(node))
            if not excused:
                yield f"{file}: {node.name}"


def sources() -> dict[str, str]:
    """Path -> text of every module."""
    files = (path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py")))
    return {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in files}


def test_no_function_takes_more_parameters() -> None:
    found = {one for file, source in sources().items() for one in too_many(file, source)}
    assert found == {*FACADES, *OPERATORS}


def test_no_module_is_longer() -> None:
    lengths = {file: len(source.splitlines()) for file, source in sources().items()}
    assert len(lengths) > 100
    assert {file: n for file, n in lengths.items() if n > MOST_LINES} == {}


def test_no_module_is_shorter_without_a_reason() -> None:
    short = {file for file, source in sources().items() if len(source.splitlines()) < FEWEST_LINES}
    assert {file for file in short if not file.endswith(("__init__.py", "__main__.py"))} == set(SMALL)


NINE = "a, b, c, d, e, f, g, h, i"


@pytest.mark.parametrize(
    ("file", "source", "found"),
    [
        ("tempme_export/files.py", f"def f({NINE}): ...", ["f"]),
        ("tempme_export/files.py", f"class A:\n    async def f(self, {NINE}): ...", ["f"]),
        ("tempme_export/files.py", f"class A:\n    def f(self, {NINE[:-3]}): ...", []),
        ("tempme_export/files.py", f"def f({NINE[:-3]}, **more): ...", ["f"]),
        ("tempme_export/files.py", f"@app.command()\ndef f({NINE}): ...", ["f"]),
        ("tempme_export/cli/x.py", f"@app.command()\ndef f({NINE}): ...", []),
        ("tempme_export/cli/x.py", f"def f(*, {NINE}): ...", ["f"]),
        ("kernels/jit/x.py", f"def f({NINE}): ...", []),
    ],
)
def test_what_counts(file: str, source: str, found: list[str]) -> None:
    assert list(too_many(file, source)) == [f"{file}: {name}" for name in found]
