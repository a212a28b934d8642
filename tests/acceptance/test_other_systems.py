"""What only Unix has is not needed where a user of Windows goes: each is hidden, as it is there."""

import subprocess
import sys

import pytest

# ctypes.CDLL(None) is a TypeError on Windows.
HIDE = """
import ctypes, os, signal, sys

for name in ("fcntl", "resource", "termios", "pwd", "grp", "posix_ipc"):
    sys.modules[name] = None
for module, names in (
    (signal, ("pthread_sigmask", "pthread_kill", "sigwait", "SIGHUP", "SIGALRM", "setitimer", "alarm")),
    (os, ("fork", "posix_fallocate", "sched_getaffinity", "sched_setaffinity", "sysconf", "statvfs",
          "getuid", "geteuid", "getpgid", "getsid", "killpg", "setsid", "getloadavg", "mkfifo", "O_DIRECTORY", "fchmod",
          "pread", "pwrite", "openpty", "forkpty", "ST_NOEXEC")),
):
    for name in names:
        if hasattr(module, name):
            delattr(module, name)


class Library(ctypes.CDLL):
    def __init__(self, name, *args, **kwargs):
        if name is None:
            raise TypeError("LoadLibrary() argument 1 must be str, not None")
        super().__init__(name, *args, **kwargs)


ctypes.CDLL = Library
"""


def run(program, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", HIDE + program, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def command(name, *arguments):
    """An installed command; raises where it exits by anything but 0."""
    run(
        f"""
from importlib.metadata import entry_points
(found,) = entry_points(group="console_scripts", name="{name}")
try:
    found.load()()
except SystemExit as end:
    assert not end.code, end
""",
        *arguments,
    )


def test_a_model_in_use(mini_bundle):
    found = run(
        """
import numpy as np, tempme_export
model = tempme_export.load(sys.argv[1])
print(model.encode_video(np.zeros((model.profile.frames, 65, 65, 3), np.uint8)).shape, model.encode_text(["a"]).shape)
""",
        mini_bundle,
    )
    assert found.strip() == "(128,) (1, 128)"


@pytest.mark.parametrize("name", [f"tempme-{name}" for name in ("export", "eval", "train", "bench", "doctor")])
def test_every_command_starts(name):
    command(name, "--help")


def test_every_module_is_imported():
    """All but what is for a GPU alone, which needs triton or TensorRT."""
    run(
        """
import importlib, pkgutil, tempme_export
for found in pkgutil.walk_packages(tempme_export.__path__, "tempme_export."):
    if ".jit" not in found.name and not found.name.endswith("__main__"):
        importlib.import_module(found.name)
"""
    )


def test_an_evaluation_with_worker_processes(mini_bundle, world):
    command("tempme-eval", mini_bundle, "--data", world / "test.csv", "--workers", "2")
