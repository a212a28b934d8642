"""The library of operators under the oldest supported ONNX Runtime, installed from the registry, and under this one."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from tempme_export.exporters.plugin_onnx import export_plugin_video
from tempme_export.kernels.native.build import build, find_compiler

ROOT = Path(__file__).parents[2]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
(OLDEST,) = (re.fullmatch(r"onnxruntime>=([\d.]+)", one)[1] for one in EXTRAS["cpu"])
RUN = """
import sys
import numpy as np
import onnxruntime
graph, library, frames, out = sys.argv[1:]
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 2
options.register_custom_ops_library(library)
session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
found = session.run(["video_embedding"], {"frames": np.load(frames)})
np.savez(out, version=onnxruntime.__version__, embedding=found[0])
"""


@pytest.fixture(scope="module")
def oldest(tmp_path_factory):
    """Folder with that version alone, beside what it needs of this environment."""
    folder = tmp_path_factory.mktemp("oldest")
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder))
    done = subprocess.run([*pip, f"onnxruntime=={OLDEST}.*"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"onnxruntime {OLDEST} is not to be had: {done.stderr.strip().splitlines()[-1]}")
    return folder


@pytest.fixture(scope="module")
def files(tiny_recipe, safe_embedding, tmp_path_factory):
    """A graph, the library and frames of two videos, one of them frozen."""
    folder = tmp_path_factory.mktemp("range")
    compiler = find_compiler()
    if compiler is None:
        pytest.skip("no C++ compiler is installed")
    build(compiler, folder / "library.so", folder)
    export_plugin_video(tiny_recipe, folder / "video.plugin.onnx")
    frames = np.random.default_rng(0).standard_normal((2, 12, 3, 64, 64)).astype(np.float32)
    safe_embedding(tiny_recipe, frames[:1])
    frames[1] = frames[1, :1]
    np.save(folder / "frames.npy", frames)
    return folder


def test_both_ends_of_the_range_embed_alike(oldest, files, tiny_recipe, video_rounding):
    found = []
    for path in (str(oldest), None):
        variables = {"PYTHONPATH": path} if path else {}
        out = files / f"{len(found)}.npz"
        given = (files / "video.plugin.onnx", files / "library.so", files / "frames.npy", out)
        done = subprocess.run(
            [sys.executable, "-c", RUN, *map(str, given)],
            env={**os.environ, **variables, "ORT_DISABLE_TELEMETRY": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        found.append(np.load(out))
    assert str(found[0]["version"]).startswith(f"{OLDEST}.") and found[0]["version"] != found[1]["version"]
    limit = video_rounding(tiny_recipe.backbone).difference
    np.testing.assert_allclose(found[0]["embedding"], found[1]["embedding"], rtol=0, atol=limit)
