"""What the tests of behaviour share: a command as a user runs it, a trained bundle, a world of clips.

Nothing here knows a module of the package: these tests hold whatever becomes of the code inside.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import tempme_export

MINI = Path(__file__).parents[2] / "examples" / "mini.pth"


@pytest.fixture(scope="session")
def run():
    """Run an installed command: `run("tempme-export", "ckpt.pth", "--force")` -> CompletedProcess of text.

    Keywords are those of `subprocess.run`; `env` adds to the environment. A traceback fails the test, whatever the
    exit code.
    """

    def run_command(name, *arguments, env=(), may_crash=False, **options):
        tool = Path(sys.executable).with_name(name)
        command = [os.fspath(part) for part in (tool, *arguments)]
        environment = {**os.environ, **dict(env)}
        options = {"capture_output": True, "text": True, "errors": "surrogateescape", "timeout": 300} | options
        done = subprocess.run(command, env=environment, check=False, **options)
        assert may_crash or "Traceback" not in (done.stderr or ""), done.stderr
        return done

    return run_command


@pytest.fixture(scope="session")
def mini():
    """The small trained checkpoint."""
    return MINI


@pytest.fixture(scope="session")
def mini_bundle(tmp_path_factory):
    """`mini` as a bundle. Shared: copy it before changing it."""
    return tempme_export.export(MINI, out=tmp_path_factory.mktemp("mini") / "mini.tempme", batch=(1, 2, 3)).path


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A folder of seven rendered clips, `test/00000.mp4` and on, and `test.csv` that describes them."""
    from tempme_export.data.synthetic import write_world

    folder = tmp_path_factory.mktemp("worlds") / "world"
    write_world(folder, train_clips=1, test_clips=7, workers=1)
    return folder
