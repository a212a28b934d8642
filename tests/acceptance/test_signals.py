"""A command that is told to end leaves nothing behind, no file and no process, and says which signal it was."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129}


def start(name, *arguments, cwd):
    """A command in a session of its own, with all signals as they are by default."""
    tool = Path(sys.executable).with_name(name)
    return subprocess.Popen(
        [tool, *arguments],
        cwd=cwd,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: [signal.signal(getattr(signal, one), signal.SIG_DFL) for one in CODES],
    )


def wait_for(process, is_there):
    """Until something is there, for as long as the process runs."""
    while not is_there():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)


def end(process, name):
    os.kill(process.pid, getattr(signal, name))
    _, said = process.communicate(timeout=300)
    assert process.returncode == CODES[name], said
    assert "Traceback" not in said
    for _ in range(500):
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.02)  # multiprocessing's own tracker ends a little later
    pytest.fail("a process of its session is left")


@pytest.fixture
def folder(mini, tmp_path):
    shutil.copy(mini, tmp_path / "mini.pth")
    return tmp_path


@pytest.mark.parametrize("name", CODES)
def test_an_export_leaves_nothing(folder, name):
    process = start("tempme-export", "mini.pth", cwd=folder)
    wait_for(process, lambda: list(folder.glob(".*.partial/*")))
    end(process, name)
    assert [path.name for path in folder.iterdir()] == ["mini.pth"]


def test_an_existing_bundle_stays_as_it_was(folder, mini_bundle):
    shutil.copytree(mini_bundle, folder / "mini.tempme")
    before = sorted(path for path in folder.rglob("*"))
    process = start("tempme-export", "mini.pth", "--force", cwd=folder)
    wait_for(process, lambda: list(folder.glob(".*.partial/*")))
    end(process, "SIGTERM")
    assert sorted(path for path in folder.rglob("*")) == before


def test_the_processes_that_render_end_too(folder):
    options = ("--data", "synthetic", "--init", "mini.pth", "--out", "run", "--workers", "2")
    process = start("tempme-train", *options, cwd=folder)
    wait_for(process, lambda: list(folder.glob("run/.*.partial/*/*.mp4")))
    end(process, "SIGTERM")
    assert [path.name for path in folder.rglob("*") if path.name not in ("mini.pth", "run")] == []


def test_an_ignored_signal_stays_ignored(mini_bundle, tmp_path):
    """As nohup starts a program."""
    tool = Path(sys.executable).with_name("tempme-export")
    process = subprocess.Popen(
        [tool, "verify", mini_bundle],
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    for _ in range(20):
        process.send_signal(signal.SIGHUP)
        time.sleep(0.05)
    assert process.wait(timeout=300) == 0
