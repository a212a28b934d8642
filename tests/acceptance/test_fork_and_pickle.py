"""A model that has been used goes to workers: by fork, by pickle, as a copy."""

import copy
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest

import tempme_export

TEXTS = ["a red ball rolls", "a green box", "a blue square falls"]
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

# A server that loads before it forks: {work} in the child, which then ends as a program does, with all its clean-up.
FORKED = """
import faulthandler, os, signal, sys
import numpy as np
import tempme_export

faulthandler.register(signal.SIGUSR1)
model = tempme_export.load(sys.argv[1], threads=3)
frames = np.random.default_rng(1).integers(0, 256, (model.profile.frames, 70, 90, 3), dtype=np.uint8)
texts = ["a red ball rolls", "a green box"]

def answers():
    return np.concatenate([model.encode_video([frames]), model.encode_text(texts)])

expected = answers()
pid = os.fork()
if pid == 0:
    {work}
    sys.exit(7)
status = os.waitpid(pid, 0)[1]
assert os.WIFEXITED(status) and os.WEXITSTATUS(status) == 7, status
assert np.array_equal(answers(), expected), "the parent goes on"
print("done")
"""


def run(bundle, work):
    """Run the program. Where it hangs, it and its child say where all their threads are."""
    program = FORKED.format(work=work)
    started = subprocess.Popen(
        [sys.executable, "-c", program, str(bundle)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        printed, errors = started.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        os.killpg(started.pid, signal.SIGUSR1)
        time.sleep(2)
        os.killpg(started.pid, signal.SIGKILL)
        printed, errors = started.communicate()
    assert (started.returncode, printed.strip()) == (0, "done"), errors


@needs_fork
@pytest.mark.parametrize(
    "work",
    [
        "pass",
        "assert np.array_equal(answers(), expected)",
        "model.close()",
        "del model",
        "tempme_export.load(sys.argv[1]).encode_text(texts)",
    ],
    ids=["idle", "encodes", "closes", "drops", "loads"],
)
def test_a_child_that_was_forked(mini_bundle, work):
    run(mini_bundle, work)


@needs_fork
def test_a_child_of_multiprocessing(mini_bundle):
    program = """
import multiprocessing, sys
import numpy as np
import tempme_export

if __name__ == "__main__":
    model = tempme_export.load(sys.argv[1])
    texts = ["a red ball rolls", "a green box"]
    expected = model.encode_text(texts)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        for found in pool.map(model.encode_text, [texts] * 4):
            np.testing.assert_array_equal(found, expected)
    print("done")
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(mini_bundle)], capture_output=True, text=True, timeout=300, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, "done"), done.stderr


@pytest.fixture
def used(mini_bundle):
    with tempme_export.load(mini_bundle, threads=2) as model:
        model.encode_text(TEXTS)
        yield model


@pytest.mark.parametrize(
    "again",
    [lambda model: pickle.loads(pickle.dumps(model)), copy.copy, copy.deepcopy],
    ids=["pickle", "copy", "deepcopy"],
)
def test_a_used_model_is_copied(used, again):
    expected = used.encode_text(TEXTS)
    frames = np.full((used.profile.frames, 65, 65, 3), 90, np.uint8)
    found = again(used)
    assert (found.backend, found.device, found.threads) == (used.backend, used.device, 2)
    np.testing.assert_array_equal(found.encode_text(TEXTS), expected)
    np.testing.assert_array_equal(found.encode_video(frames), used.encode_video(frames))
    found.close()
    np.testing.assert_array_equal(used.encode_text(TEXTS), expected, err_msg="closed with its copy")


def test_workers_that_are_spawned(used):
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        for found in pool.map(used.encode_text, [TEXTS] * 2):
            np.testing.assert_array_equal(found, used.encode_text(TEXTS))
