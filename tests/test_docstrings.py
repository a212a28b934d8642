"""A docstring begins with the thing that it describes, never with a question word."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("tempme_export", "kernels", "bench")
QUESTION = re.compile(r"(What|Whether|Where|How|Which|When|Who)\b")


def questions(source: str) -> Iterator[tuple[int, str]]:
    """Line and first line of each docstring that begins with a question word."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text and QUESTION.match(text):
                yield node.body[0].lineno, text.splitlines()[0]


@pytest.mark.parametrize("folder", FOLDERS)
def test_docstrings_state(folder: str) -> None:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert len(files) > 10
    found = [
        f"{path.relative_to(ROOT)}:{line}: {first}"
        for path in files
        for line, first in questions(path.read_text(encoding="utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ('"""What it is."""', [1]),
        ('"""Length of a run.\n\nWhat it is.\n"""', []),
        ('def f():\n    r"""Whether it is."""', [2]),
        ('async def f():\n    """\n    When it is.\n    """', [2]),
        ('class A:\n    def f(self):\n        """How it is."""', [3]),
        ('class A:\n    """Where."""\n    class B:\n        """Which."""', [2, 4]),
        ('def f():\n    """Whoever asks."""', []),
        ('def f():\n    x = "What is it?"', []),
    ],
)
def test_beginnings(source: str, lines: list[int]) -> None:
    assert sorted(line for line, _ in questions(source)) == lines
