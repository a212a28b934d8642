"""The last lines of a command are the next ones to copy."""

import shlex
import sys
from pathlib import Path

import pytest

from tempme_export.cli import console, evaluate_console
from tempme_export.cli.terminal import show_again


def printed(capsys):
    """The words of every line, as a shell reads them; nothing went to stdout."""
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == "" and all(line.startswith("next       ") and len(line) <= 100 for line in lines)
    return [shlex.split(line)[1:] for line in lines]


def test_what_a_bundle_is_for(capsys):
    console.show_uses(Path("out/ckpt.tempme"))
    python, *others = printed(capsys)
    assert python[:2] == ["python", "-ic"] and "load" in python[2]
    assert others == [
        ["tempme-export", "verify", "out/ckpt.tempme"],
        ["tempme-bench", "out/ckpt.tempme"],
        ["tempme-eval", "out/ckpt.tempme", "--data", "msrvtt:DIR"],
    ]


def test_what_was_just_done_is_left_out(capsys):
    console.show_uses(Path("ckpt.tempme"), verified=True)
    assert [words[0] for words in printed(capsys)] == ["python", "tempme-bench", "tempme-eval"]


@pytest.mark.parametrize(
    "name", ["ckpt.tempme", "it's.tempme", 'a "b".tempme', "a\\b.tempme", "é.tempme", "\U0001f600"]
)
def test_python_opens_that_very_folder(capsys, name):
    console.show_uses(Path(name))
    code, opened = printed(capsys)[0][2], []
    imported, loaded = code.split("; ")
    assert imported == "import tempme_export"
    package = type("package", (), {"load": opened.append})
    exec(loaded, {"tempme_export": package})
    assert opened == [name]


def test_after_an_evaluation(capsys):
    evaluate_console.show_uses("ckpt.tempme")
    evaluate_console.show_export("a b.pth", {"--profile": "mini-8f", "--activation": None})
    assert printed(capsys) == [
        ["tempme-export", "verify", "ckpt.tempme"],
        ["tempme-bench", "ckpt.tempme"],
        ["tempme-export", "a b.pth", "--profile", "mini-8f"],
    ]


def test_a_repository_is_served(capsys):
    console.show_server(Path("models"))
    assert printed(capsys) == [["tritonserver", "--model-repository", "models"]]


def test_this_very_command_again(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tempme-export", "a b.pth", "--dry-run", "--out", "x"])
    show_again("tempme-export", without="--dry-run")
    show_again("tempme-train", "--resume")
    assert printed(capsys) == [
        ["tempme-export", "a b.pth", "--out", "x"],
        ["tempme-train", "a b.pth", "--dry-run", "--out", "x", "--resume"],
    ]
