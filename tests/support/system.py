"""Commands, processes, disks and what is installed, as the system shows them to a user."""

import itertools
import os
import subprocess
import sys
import tempfile
import textwrap
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run_command(monkeypatch, capsys):
    """`run_command(main, *arguments)`: a command in this process as a user calls it; its exit code, stdout, stderr."""

    def run(main, *arguments):
        monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = capsys.readouterr()
        return caught.value.code or 0, out, err

    return run


@contextmanager
def _before_calls(function, act):
    number = itertools.count(1)

    def watch(frame, event, argument):
        if event == "c_call" and argument is function:
            act(next(number))

    sys.setprofile(watch)
    try:
        yield
    finally:
        sys.setprofile(None)


@pytest.fixture(scope="session")
def before_calls():
    """`with before_calls(function, act)`: `act(n)` before the nth call of a built-in function such as os.link, which
    then does what it does. The interpreter tells of it; nothing is replaced."""
    return _before_calls


@contextmanager
def _largest_file(size):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="session")
def largest_file():
    """`with largest_file(size)`: the system refuses whatever would make a file larger, as a full disk does."""
    return _largest_file


@pytest.fixture
def run_python(tmp_path):
    """`run_python(code, packages, distributions, bare)`: stdout of a process of its own, which must end well.

    packages       name -> source of a package that is found before all others
    distributions  names of what is installed beside
    bare           without anything else that is installed here, this package apart
    """
    folder = tmp_path / "stand-ins"

    def run(code, packages=None, distributions=(), bare=False):
        for name, source in (packages or {}).items():
            (folder / name).mkdir(parents=True, exist_ok=True)
            (folder / name / "__init__.py").write_text(source)
        for k, name in enumerate(distributions):
            (folder / f"installed{k}.dist-info").mkdir(parents=True, exist_ok=True)
            (folder / f"installed{k}.dist-info" / "METADATA").write_text("" if name is None else f"Name: {name}\n")
        paths = [str(folder), *([str(ROOT)] if bare else [])]
        done = subprocess.run(
            [sys.executable, *(["-S"] if bare else []), "-c", textwrap.dedent(code)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="session")
def not_installed():
    """`not_installed(name)`: source of a package that answers as one that is not there."""
    return lambda name: f"raise ModuleNotFoundError(\"No module named '{name}'\", name='{name}')\n"


@pytest.fixture
def other_file_system(tmp_path):
    """A folder on another file system than `tmp_path`, gone after the test."""
    if not os.path.isdir("/dev/shm") or os.stat("/dev/shm").st_dev == os.stat(tmp_path).st_dev:
        pytest.skip("needs a second file system in /dev/shm")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)
