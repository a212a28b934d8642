"""How many threads of a processor a model takes is the caller's choice."""

import os
import re
import subprocess
import sys

import pytest

import tempme_export
from tempme_export.errors import UsageError

COUNT = """
import os, sys
import numpy as np
import tempme_export

def used(threads):
    before = len(os.listdir("/proc/self/task"))
    with tempme_export.load(sys.argv[1], threads=threads) as model:
        model.encode_video(np.zeros((model.profile.frames, 65, 65, 3), np.uint8))
        return len(os.listdir("/proc/self/task")) - before

used(1)
print(used(1), used(3), used(5))
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="this system does not list threads")
def test_as_many_as_were_asked_for(mini_bundle):
    """The caller's own is one of them, in each of the two towers."""
    done = subprocess.run(
        [sys.executable, "-c", COUNT, str(mini_bundle)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.stdout.split() == ["0", "4", "8"], done.stderr


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2", True])
def test_what_is_no_number_of_threads(mini_bundle, threads):
    with pytest.raises(UsageError, match="threads"):
        tempme_export.load(mini_bundle, threads=threads)


def counts(folder):
    """{model: threads} of the configurations, by the name that the server's ONNX Runtime backend has for them."""
    setting = re.compile(r'parameters \{\s*key: "intra_op_thread_count"\s*value \{\s*string_value: "(\d+)"\s*\}\s*\}')
    return {path.parent.name: setting.findall(path.read_text()) for path in folder.glob("*/config.pbtxt")}


def test_of_a_server(run, mini_bundle, tmp_path):
    done = run("tempme-export", "triton-repo", mini_bundle, tmp_path / "three", "--threads", "3")
    assert done.returncode == 0, done.stderr
    assert counts(tmp_path / "three") == {"video": ["3"], "text": ["3"]}
    assert run("tempme-export", "triton-repo", mini_bundle, tmp_path / "free").returncode == 0
    assert counts(tmp_path / "free") == {"video": [], "text": []}


@pytest.mark.parametrize(
    "command", [("triton-repo", "BUNDLE", "models", "--threads", "0"), ("BUNDLE", "--threads", "2")]
)
def test_what_makes_no_sense(run, mini_bundle, tmp_path, command):
    done = run("tempme-export", *(mini_bundle if word == "BUNDLE" else word for word in command), cwd=tmp_path)
    assert done.returncode == 2 and "--threads" in done.stderr
    assert not list(tmp_path.iterdir())
