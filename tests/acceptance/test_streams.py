"""A stream that is closed, full or without a reader: results that are lost are an error, words for people are not."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

COMMANDS = ("tempme-export", "tempme-bench", "tempme-train", "tempme-eval", "tempme-doctor")


def shell(line, **options):
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=300, check=False, **options)


def tool(name):
    return shlex.quote(str(Path(sys.executable).with_name(name)))


@pytest.mark.parametrize("name", COMMANDS)
def test_help_without_streams(name):
    """One after the other, and all of them."""
    for closed in ("2>&-", ">&-", "<&-", "<&- >&- 2>&-"):
        done = shell(f"{tool(name)} --help {closed}")
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
        assert ("Usage" in done.stdout) == (">&-" not in closed.replace("2>&-", ""))


def test_a_refusal_without_stderr_keeps_its_code():
    assert shell(f"{tool('tempme-export')} none.pth 2>&-").returncode == 3


def test_no_file_gets_the_number_of_a_closed_stream(mini, tmp_path):
    """Otherwise the checkpoint or the bundle would be what libraries print into."""
    done = shell(
        f"{tool('tempme-export')} {shlex.quote(str(mini))} --out b --batch-range 1:1:2 --json 2>&- <&-", cwd=tmp_path
    )
    assert done.returncode == 0
    found = json.loads(done.stdout)
    assert found["bundle"] == str(tmp_path / "b")
    assert shell(f"{tool('tempme-export')} verify b >&- 2>&-", cwd=tmp_path).returncode == 0


def test_a_document_to_a_closed_stdout_is_told(mini_bundle):
    done = shell(f"{tool('tempme-export')} verify {shlex.quote(str(mini_bundle))} --json >&-")
    assert done.returncode == 0 and "warning: stdout is closed" in done.stderr


def test_a_document_on_a_full_disk_is_an_error(mini_bundle):
    done = shell(f"{tool('tempme-export')} verify {shlex.quote(str(mini_bundle))} --json > /dev/full")
    assert done.returncode == 6 and "stdout could not be written (No space left on device)" in done.stderr
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


def test_readers_who_leave(mini_bundle):
    """stderr and stdout of a pipe whose other end is closed before anything is written."""
    read, write = os.pipe()
    os.close(read)
    tool_path = Path(sys.executable).with_name("tempme-export")
    command = [tool_path, "verify", mini_bundle, "--json"]
    done = subprocess.run(command, stdout=write, stderr=write, timeout=300, check=False)
    os.close(write)
    assert done.returncode == 0


def test_an_ascii_terminal(mini_bundle):
    environment = {
        **os.environ,
        "LC_ALL": "C",
        "PYTHONIOENCODING": "ascii",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
    }
    for line in (f"{tool('tempme-bench')} --help", f"{tool('tempme-bench')} complexity"):
        done = shell(line, env=environment)
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
        assert done.stdout.isascii() and done.stdout
