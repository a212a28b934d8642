"""Errors speak with one voice: `<object>: found <x>, expected <y>. <What to do>.`"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("tempme_export", "bench")
OURS = re.compile(
    r"(Usage|Input|Profile|Checkpoint|Video|Bundle|Release|Backend|Precision|Parity|Export|Unstable)Error"
)
# Found and expected belong to one sentence, a choice is named as one, and advice is a sentence of its own.
JARRING = re.compile(
    r"; expected\b| is not one of |; (run|check|copy|choose|correct|convert|remove|delete|re-encode)\b"
)
END = re.compile(r"[.?}]$|\b(Run|once|with): .*$")  # a sentence, a value that may be one, or a command to copy


def template(node: ast.expr) -> str:
    """A message with `{}` for each value that is put into it; empty for what is no literal."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in parts)
        case ast.BinOp(left=left, right=right):
            return template(left) + template(right)
    return ""


def messages(source: str) -> Iterator[tuple[int, str]]:
    """Line and template of every message that an error of this package is raised with."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Raise(exc=ast.Call(func=ast.Name(id=name), args=[message, *_])) if OURS.fullmatch(name):
                if text := template(message):
                    yield node.lineno, text


def jarring(source: str) -> list[tuple[int, str]]:
    return [(line, text) for line, text in messages(source) if JARRING.search(text) or not END.search(text)]


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_message(folder: str) -> None:
    files = sorted((ROOT / folder).rglob("*.py"))
    read = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in files}
    assert sum(1 for source in read.values() for _ in messages(source)) > 50
    assert {path: found for path, source in read.items() if (found := jarring(source))} == {}


@pytest.mark.parametrize(
    ("message", "fine"),
    [
        ('f"{path}: found no rows, expected at least 1. Write the file again."', True),
        ('f"{path}: found no rows; expected at least 1"', False),
        ('f"{path}: found no rows, expected at least 1"', False),
        ('f"backend {name} is not one of {known}."', False),
        ('"found no PyAV, which reads videos. Run: pip install x"', True),
        ('"found no PyAV, which reads videos; run: pip install x"', False),
        ('f"{path} is damaged: {error}"', True),
        ('f"no such thing: {a}, " "expected " + f"{b}. Look again."', True),
    ],
)
def test_it_hears_what_it_should(message: str, fine: bool) -> None:
    assert (jarring(f"raise InputError({message})") == []) == fine
