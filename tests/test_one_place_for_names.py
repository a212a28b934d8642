"""An artifact or a backend is named by its exporter, its runner and the registry, and nowhere else."""

import ast
from pathlib import Path

import pytest

from tempme_export.artifacts import registry

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("tempme_export", "bench")
HOME = ("tempme_export/exporters/", "tempme_export/runtime/", "tempme_export/artifacts/registry.py")

# What still names one, and why. The list shrinks: an entry that names nothing any more fails.
EXCEPTIONS = {
    "tempme_export/pipeline/export.py": "the facade's keyword `pt2`; an option of another artifact goes by `also`",
}
CONSTANTS = {"ENGINE", "SOURCE"}  # their files


def docstrings(tree: ast.AST) -> set[int]:
    """Of modules, classes and functions; a bare string is one too."""
    return {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}


def is_artifact(name: str) -> bool:
    return isinstance(getattr(registry, name, None), registry.Artifact)


def named(source: str) -> list[str]:
    """Files of artifacts, names of backends and modules of exporters and runners that code names."""
    tree = ast.parse(source)
    files, backends = {one.file for one in registry.ARTIFACTS}, {one.name for one in registry.BACKENDS}
    modules = {one.runner for one in registry.BACKENDS}
    modules |= {module for one in registry.ARTIFACTS for module in (one.builder, one.needs)}
    skipped, found = docstrings(tree), []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            found += [name for name in files if name in node.value]
            found += [name for name in backends if name == node.value]
        if isinstance(node, ast.ImportFrom):
            found += [one.name for one in node.names if one.name in CONSTANTS or is_artifact(one.name)]
            imported = {node.module, *(f"{node.module}.{one.name}" for one in node.names)}
            found += [name for name in modules if name in imported]
    return sorted(set(found))


def found() -> dict[str, list[str]]:
    files = (path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py")))
    all_named = {str(path.relative_to(ROOT)): named(path.read_text(encoding="utf-8")) for path in files}
    return {file: names for file, names in all_named.items() if names and not file.startswith(HOME)}


def test_nothing_else_names_one() -> None:
    assert {file: names for file, names in found().items() if file not in EXCEPTIONS} == {}


def test_no_exception_is_left_over() -> None:
    assert EXCEPTIONS.keys() - found().keys() == set()


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("x = 'ort'", ["ort"]),
        ("x = f'{a}/video.onnx is gone'", ["video.onnx"]),
        ("from tempme_export.artifacts.registry import PLAN", ["PLAN"]),
        ("from tempme_export.runtime.engine_facts import KEY, SOURCE", ["SOURCE"]),
        ("from tempme_export.runtime import openvino", ["tempme_export.runtime.openvino"]),
        ("def f():\n    from tempme_export.runtime.pt2 import Pt2Runner", ["tempme_export.runtime.pt2"]),
        ('"""Of video.onnx."""\nx = "a report"', []),
    ],
)
def test_what_counts(source: str, names: list[str]) -> None:
    assert named(source) == names
