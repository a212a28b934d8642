"""A command that a message prints runs as it stands, whatever the names in it hold."""

import json
import os
import re
import shutil
import subprocess

import pytest

from tempme_export.names import command

NAMES = ["plain.pth", "it's a checkpoint.pth", 'a "$HOME" `x`.pth', "-dash *.pth", "tab\there.pth", b"caf\xe9's.pth"]


def words(line):
    """What a shell makes of a command line, its words as bytes."""
    done = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True)
    return done.stdout.split(b"\0")[:-1]


@pytest.mark.parametrize("name", NAMES)
def test_the_words_come_back(name):
    name = os.fsdecode(name)
    line = command("tempme-export", name, "--trt")
    assert words(line) == [b"tempme-export", os.fsencode(name), b"--trt"]
    assert line.isprintable() and line.encode()


@pytest.mark.parametrize("name", ["it's a checkpoint.pth", os.fsdecode(b"caf\xe9's.pth")])
def test_what_an_evaluation_advises(run, mini, tmp_path, name):
    shutil.copy(mini, tmp_path / name)
    (tmp_path / "v.mp4").write_bytes(b"x")
    (tmp_path / "d.csv").write_text("video,caption\nv.mp4,a\n")
    done = run("tempme-eval", name, "--data", "d.csv", "--backend", "ort", cwd=tmp_path)
    assert done.returncode == 2
    line = re.search(r"(tempme-export .*) and give the bundle", done.stderr)[1]
    assert words(line) == [b"tempme-export", os.fsencode(name)]


def test_what_a_page_advises(run, tmp_path):
    done = run("tempme-bench", "report", "it's none", "--out", tmp_path / "page", cwd=tmp_path)
    assert done.returncode == 3
    assert words(done.stderr.split("Measure with: ")[1].strip()) == [b"tempme-bench", b"--out", b"it's none"]


def test_what_is_recorded(run, tmp_path):
    done = run("tempme-bench", "complexity", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["rows"]
