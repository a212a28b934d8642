"""A fact that a work tells is a fact that its command can show."""

import ast
import importlib
import inspect
import types
import typing
from collections.abc import Callable
from pathlib import Path

import pytest

from tempme_export.cli import console, train_console

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = {"tempme-export": console.SHOWS, "tempme-train": train_console.SHOWS}


def type_of(node, function, names):
    """What an expression within a function is, by what is written about it: a class, a parameter, a return type."""
    match node:
        case ast.Name(id=name) if name in names:
            return names[name]
        case ast.Name(id=name):
            given = [one for one in (*function.args.args, *function.args.kwonlyargs) if one.arg == name]
            if given:
                return eval(ast.unparse(given[0].annotation), names)
            assigned = (one for one in ast.walk(function) if isinstance(one, ast.Assign))
            return type_of(next(one.value for one in assigned if ast.unparse(one.targets[0]) == name), function, names)
        case ast.Attribute(value=owner, attr=name):
            return getattr(type_of(owner, function, names), name)
        case ast.Call(func=called):
            found = type_of(called, function, names)
            if inspect.isclass(found):
                return found
            if typing.get_origin(found) is Callable:
                return typing.get_args(found)[-1]
            returned = found.__annotations__["return"]
            return eval(returned, found.__globals__) if isinstance(returned, str) else returned
    raise AssertionError(f"what is {ast.unparse(node)}?")


def classes(found):
    """The classes of a union, None left out."""
    each = typing.get_args(found) if isinstance(found, types.UnionType) else (found,)
    return {one.__name__ for one in each if one is not types.NoneType}


def told():
    """(command that listens, class, file and line) of every fact."""
    for path in sorted((ROOT / "tempme_export").rglob("*.py")):
        tree, innermost = ast.parse(path.read_text(encoding="utf-8")), {}
        for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
            innermost |= {node: function for node in ast.walk(function)}
        where = path.relative_to(ROOT)
        command = "tempme-train" if "training" in where.parts else "tempme-export"
        for node, function in innermost.items():
            match node:
                case ast.Call(func=ast.Attribute(attr="tell"), args=[fact]):
                    names = vars(importlib.import_module(".".join(where.with_suffix("").parts)))
                    for name in classes(type_of(fact, function, names)):
                        yield command, name, f"{where}:{node.lineno}"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_fact_can_be_shown_and_every_entry_is_told(command):
    found = {name: where for listening, name, where in told() if listening == command}
    assert {name: where for name, where in found.items() if name not in COMMANDS[command]} == {}
    assert COMMANDS[command].keys() - found.keys() == set()


def test_unions_and_return_types_are_seen_through():
    source = "def work(data: int | None, *, more: str):\n    found = float.fromhex(more)\n    x(data, more, found)"
    function = ast.parse(source).body[0]
    names = {"float": types.SimpleNamespace(fromhex=_parsed)}
    data, more, found = function.body[1].value.args
    assert classes(type_of(data, function, {})) == {"int"} and type_of(more, function, {}) is str
    assert type_of(found, function, names) is bytes


def _parsed(text) -> bytes:
    return text.encode()
