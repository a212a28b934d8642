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


def test_nothing_is_patched() -> None:
    files = sorted(HERE.rglob("*.py"))
    assert len(files) > 100
    found = {path.relative_to(HERE).as_posix(): list(patches(path.read_text(encoding="utf-8"))) for path in files}
    patched = {name: lines for name, lines in found.items() if lines}
    assert not patched, f"pass an object in, or make the failure real; lines that patch: {patched}"


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
