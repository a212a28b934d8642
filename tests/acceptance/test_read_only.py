"""A machine that is read-only, with no folder for temporary files: what only reads works, what writes is refused."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

READ_ONLY = """
mount --make-rprivate / || exit 77
for place in $(awk '{print $2}' /proc/mounts | sort -r); do
    case $place in /proc*|/sys*|/dev*|/) ;; *) mount -o remount,ro,bind "$place" 2>/dev/null;; esac
done
mount -o remount,ro,bind / || exit 77
mount -t tmpfs -o ro tmpfs /dev/shm
exec "$@"
"""


@pytest.fixture
def read_only(mini_bundle):
    """Run a command where nothing can be written, in the folder of the bundle; skips where that cannot be arranged."""

    def run(name, *arguments):
        tool = Path(sys.executable).with_name(name)
        command = ["unshare", "-m", "bash", "-c", READ_ONLY, "bash", tool, *arguments]
        # torch keeps its folder for caches there once it has found one, as in this process.
        environment = {name: value for name, value in os.environ.items() if name != "TORCHINDUCTOR_CACHE_DIR"}
        try:
            done = subprocess.run(
                command,
                cwd=mini_bundle.parent,
                env=environment,
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
            )
        except FileNotFoundError:
            pytest.skip("a read-only machine is made with unshare, which is not here")
        if done.returncode == 77 or done.stderr.startswith("unshare:"):
            pytest.skip(f"no mounts of one's own here: {done.stderr.strip()}")
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return run


@pytest.mark.parametrize(
    "command",
    [
        ("tempme-export", "verify", "mini.tempme"),
        ("tempme-doctor",),
    ],
)
def test_what_only_reads_works(read_only, command):
    done = read_only(*command)
    assert done.returncode == 0, done.stderr


def test_an_evaluation_works(read_only, world):
    done = read_only("tempme-eval", "mini.tempme", "--data", world / "test.csv", "--workers", "1")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("tempme-export", "MINI", "--out", "new.tempme"), "cannot be written to. Choose another --out."),
        (("tempme-export", "triton-repo", "mini.tempme", "models"), "Read-only file system"),
        (("tempme-bench", "mini.tempme", "--backends", "ort", "--budget", "1"), "TMPDIR"),
    ],
)
def test_what_writes_is_refused(read_only, mini, command, said):
    done = read_only(*[mini if word == "MINI" else word for word in command])
    assert done.returncode == 6 and said in done.stderr
