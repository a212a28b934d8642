"""Nothing is reported to anybody, and nothing is imported before it is used."""

import importlib.util
import os
import subprocess
import sys

import pytest

# Every program here ends itself when Python looks up or calls a host.
NO_NETWORK = """
import sys

def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        sys.stderr.write(f"{event} {arguments}\\n")
        import os
        os._exit(99)

sys.addaudithook(refuse)
"""
USE = """
import numpy as np
import tempme_export

model = tempme_export.load(sys.argv[1])
model.encode_video(np.zeros((model.profile.frames, 65, 65, 3), np.uint8))
"""


@pytest.fixture
def run(tmp_path, mini_bundle):
    """Run a program with an empty home folder, and no variable that says it is a test machine's; returns stdout."""

    def run_program(program):
        home = tmp_path / "home"
        home.mkdir()
        kept = {k: v for k, v in os.environ.items() if k not in ("CI", "TF_BUILD", "JENKINS_URL", "XDG_CACHE_HOME")}
        kept.pop("ORT_DISABLE_TELEMETRY", None)
        done = subprocess.run(
            [sys.executable, "-c", NO_NETWORK + program, str(mini_bundle)],
            env=kept | {"HOME": str(home), "USERPROFILE": str(home), "MPLCONFIGDIR": str(tmp_path / "matplotlib")},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert not list(home.rglob("*")), "written to the home folder"
        return done.stdout

    return run_program


def test_a_model_in_use(run):
    run(USE + "model.encode_text(['a red ball'])\nmodel.similarity(['a red ball'], np.zeros((1, 128), np.float32))")


def test_onnx_runtime_starts_no_thread_of_its_own(run):
    """Its reports are sent by one, which waits for a host and holds up the end of the process."""
    if not os.path.isdir("/proc/self/task"):
        pytest.skip("this system does not list threads")
    count = "len(os.listdir('/proc/self/task'))"
    out = run(f"import os, numpy, tempme_export\nbefore = {count}\nimport onnxruntime\nprint({count} - before)")
    assert out.strip() == "0"


def test_a_bundle_that_is_verified(run):
    run("import tempme_export\ntempme_export.verify(sys.argv[1])")


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="OpenVINO is not installed")
def test_openvino(run):
    run(
        "import time\nfrom pathlib import Path\nfrom tempme_export.runtime.openvino import OpenVinoRunner\n"
        "OpenVinoRunner(Path(sys.argv[1]) / 'text.onnx')\n"
        "assert not [name for name in sys.modules if name.startswith('openvino_telemetry')]\ntime.sleep(0.5)"
    )


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="OpenVINO is not installed")
def test_the_doctor(run):
    """It asks every runtime how it is."""
    run(
        "import subprocess\nfrom pathlib import Path\nsubprocess.run([Path(sys.executable).with_name('tempme-doctor')])"
    )


HEAVY = ("torch", "openvino", "tensorrt", "onnx", "open_clip", "av", "triton")


def test_imports_wait_for_their_use(run):
    loaded = f"print([name for name in {(*HEAVY, 'onnxruntime')!r} if name in sys.modules])"
    first, then = run(f"import tempme_export\n{loaded}\n{USE}\n{loaded}").splitlines()
    assert first == "[]"
    assert then == "['onnxruntime']"
