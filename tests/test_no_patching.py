"""Tests pass objects in: a stand-in that is registered, a handle that is a parameter, a failure that is real.

A patch names where code lies, so it breaks when a module moves, and goes on passing when its target is no longer used.
The environment is no such place: variables, the working folder, sys.argv and the standard streams may be set.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PATCHES = {"setattr", "setitem", "delattr", "delitem"}
ENVIRONMENT = {("sys", name) for name in ("argv", "stdin", "stdout", "stderr")}

# File -> the patches that it holds, and why none of the three ways above will do. No number here may grow.
_FRESH = "what torch does when memory is fresh, a file system full or a process killed cannot be asked for"
_REFERENCE = "the reference itself is spoilt, to see that a comparison with it turns red"
EXCEPTIONS = {
    "test_files.py": (2, _FRESH),
    "acceptance/test_caches.py": (2, "another release of PyAV is installed"),
    "acceptance/test_release.py": (2, "a release that is replaced between two steps of opening it"),
    "acceptance/test_threads.py": (2, "what a session of ONNX Runtime was opened with"),
    "encoder/test_ops.py": (1, "what a launcher was called with"),
    "exporters/test_onnx_merges.py": (1, _REFERENCE),
    "exporters/test_pt2.py": (3, "a compiler that crashes, and one that takes two minutes is not called"),
    "exporters/trt/test_plugin_launches.py": (1, "a batch that is many, at every count"),
    "kernels/triton/conftest.py": (3, "the interpreter takes as long for a small tile as for a large one"),
    "pipeline/test_retrieval.py": (2, "a backbone that open_clip does not list"),
    "support/memory.py": (2, "fresh memory holds NaN, so that an output that is not fully written shows"),
    "training/test_cli_train.py": (1, "of the documented world a few clips are rendered, not all"),
}


def patches(source: str) -> Iterator[int]:
    """The lines on which something of a `monkeypatch` or a `patch` is called that changes an attribute or an item."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id="monkeypatch" | "patch"), attr=attr), args=arguments
            ) if attr in PATCHES:
                named = [ast.unparse(one).strip("'\"") for one in arguments[:2]]
                if tuple(named) not in ENVIRONMENT:
                    yield node.lineno


def held() -> Iterator[tuple[str, Path]]:
    for path in sorted(HERE.rglob("*.py")):
        yield path.relative_to(HERE).as_posix(), path


def test_nothing_is_patched() -> None:
    found = {name: list(patches(path.read_text(encoding="utf-8"))) for name, path in held()}
    assert len(found) > 100
    allowed = {name: EXCEPTIONS.get(name, (0, ""))[0] for name in found}
    more = {name: lines for name, lines in found.items() if len(lines) > allowed[name]}
    assert not more, f"pass an object in, or make the failure real; lines that patch: {more}"
    fewer = {name: len(lines) for name, lines in found.items() if len(lines) < allowed[name]}
    assert not fewer, f"lower the entries to what is left: {fewer}"


def test_the_exceptions_are_there() -> None:
    assert EXCEPTIONS.keys() <= {name for name, _ in held()}
    assert all(reason for _, reason in EXCEPTIONS.values())


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ('monkeypatch.setattr(module, "name", None)', [1]),
        ('monkeypatch.setattr("tempme_export.files.publish", None)', [1]),
        ('patch.setitem(sys.modules, "torch", None)', [1]),
        ('monkeypatch.delattr(os, "link")', [1]),
        ('monkeypatch.setattr(sys, "argv", [])', []),
        ('monkeypatch.setenv("TMPDIR", "x")', []),
        ('setattr(module, "name", None)', []),
    ],
)
def test_a_patch_is_found(line: str, found: list[int]) -> None:
    assert list(patches(line)) == found
