"""The slim set, installed from the registry into a fresh environment: what using a bundle takes, and nothing more."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import numpy as np
import pytest

import tempme_export
from tempme_export.artifacts.bundle import write_manifest
from tempme_export.data.synthetic import write_world
from tempme_export.media.stored_tokenizer import TOKENIZER

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
COMMANDS = sorted(PYPROJECT["project"]["scripts"])
MINI = ROOT / "examples" / "mini.pth"
TEXTS = ["a red ball rolls to the left", "Ein blauer W\u00fcrfel &amp; it's 2 o'clock", "\u732b\u304c\u8d70\u308b"]
EXTRA = "which is not installed. Run: pip install 'tempme-export[export]'"


def output_of(*command, cwd):
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Of a copy of the tree, so that the build leaves nothing in the tree itself."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    for folder in PYPROJECT["tool"]["setuptools"]["package-dir"].values():
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, tree / name)
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-index", "--no-deps", "--no-build-isolation")
    output_of(*pip, "--wheel-dir", out, ".", cwd=tree)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def slim(wheel, tmp_path_factory):
    """Run a program of the slim environment outside the tree: slim("python", "-c", ...) -> CompletedProcess of text. A
    traceback fails the test, whatever the exit code."""
    folder, elsewhere = tmp_path_factory.mktemp("slim"), tmp_path_factory.mktemp("elsewhere")
    venv.create(folder, with_pip=True)
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    pip = (programs / "python", "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt")
    output_of(*pip, f"{wheel}[cpu,video]", cwd=elsewhere)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

    def run(name, *arguments):
        command = [str(part) for part in (programs / name, *arguments)]
        options = {"capture_output": True, "text": True, "timeout": 300}
        done = subprocess.run(command, cwd=elsewhere, env=environment, check=False, **options)
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return run


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """Exported by the ordinary environment."""
    return tempme_export.export(MINI, out=tmp_path_factory.mktemp("mini") / "mini.tempme", batch=(1, 2, 3)).path


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("worlds") / "world"
    write_world(folder, train_clips=1, test_clips=3, workers=1)
    return folder


def test_nothing_that_makes_bundles_is_there(slim):
    packages = ("torch", "torchvision", "timm", "onnx", "onnxscript", "open_clip", "safetensors")
    program = f"from importlib.util import find_spec\nprint([name for name in {packages} if find_spec(name)])"
    assert slim("python", "-c", program).stdout.strip() == "[]"


USE = """
import json, sys
import tempme_export
bundle, texts, videos = json.loads(sys.argv[1])
with tempme_export.load(bundle) as model:
    found = [model.encode_text(texts), model.encode_video(videos), model.similarity(texts, videos)]
verdicts = {report.artifact: report.status for report in tempme_export.verify(bundle)}
print(json.dumps([[one.tolist() for one in found], verdicts]))
"""


def test_a_bundle_in_use(slim, bundle, world):
    """The numbers are those of the ordinary environment."""
    videos = [str(path) for path in sorted((world / "test").glob("*.mp4"))]
    done = slim("python", "-c", USE, json.dumps([str(bundle), TEXTS, videos]))
    assert done.returncode == 0, done.stderr
    found, verdicts = json.loads(done.stdout)
    with tempme_export.load(bundle) as model:
        expected = [model.encode_text(TEXTS), model.encode_video(videos), model.similarity(TEXTS, videos)]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.array(one, np.float32), other, rtol=1e-5, atol=1e-6)
    assert verdicts == {"video.onnx": "passed", "text.onnx": "passed", TOKENIZER: "passed"}


@pytest.mark.parametrize("command", COMMANDS)
def test_help(slim, command):
    done = slim(command, "--help")
    assert done.returncode == 0 and command in done.stdout, done.stderr


def test_commands_that_use_a_bundle(slim, bundle, world, tmp_path):
    for words in (
        ("tempme-export", "verify", bundle),
        ("tempme-export", "triton-repo", bundle, tmp_path / "repository"),
        ("tempme-eval", bundle, "--data", f"synthetic:{world}", "--workers", "0"),
    ):
        done = slim(*words)
        assert done.returncode == 0, done.stderr


def test_the_doctor_tells_the_halves_apart(slim):
    done = slim("tempme-doctor", "--json", "--timeout", "120")
    assert done.returncode == 0, done.stderr
    works = {name: one["works"] for name, one in json.loads(done.stdout)["capabilities"].items()}
    assert works["core"] and works["cpu"] and works["video"] and not works["export"] and not works["pt2"]


@pytest.mark.parametrize(
    "words",
    [
        ("tempme-export", MINI),
        ("tempme-export", MINI, "--dry-run"),
        ("tempme-bench", "--frames", "2"),
    ],
    ids=lambda words: " ".join(map(str, (words[0], *words[2:]))),
)
def test_what_makes_bundles_says_what_it_needs(slim, words):
    done = slim(*words)
    assert done.returncode == 4 and EXTRA in " ".join(done.stderr.split()), done.stderr


def test_a_checkpoint_is_not_evaluated(slim, world):
    done = slim("tempme-eval", MINI, "--data", f"synthetic:{world}", "--workers", "0")
    assert done.returncode == 4 and EXTRA in " ".join(done.stderr.split()), done.stderr


def test_python_says_what_it_needs(slim, bundle):
    program = """
import sys, tempme_export
from tempme_export.errors import BackendError
for use in (lambda: tempme_export.export(sys.argv[1]), lambda: tempme_export.load(sys.argv[2], "tensorrt", "cuda")):
    try:
        use()
    except BackendError as error:
        print(error)
"""
    done = slim("python", "-c", program, MINI, bundle)
    assert done.stdout.count(EXTRA) >= 1 and len(done.stdout.splitlines()) == 2, done.stdout + done.stderr


def test_a_bundle_of_before_has_no_tokenizer(slim, bundle, tmp_path):
    """It stays readable; its texts take what made it."""
    old = tmp_path / "old.tempme"
    shutil.copytree(bundle, old)
    (old / TOKENIZER).unlink()
    manifest = json.loads((old / "manifest.json").read_text(encoding="utf-8"))
    write_manifest(old, {name: value for name, value in manifest.items() if name not in ("files", "sha256", "format")})
    program = """
import sys, tempme_export
from tempme_export.errors import BackendError
with tempme_export.load(sys.argv[1]) as model:
    try:
        model.encode_text(["a dog"])
    except BackendError as error:
        print(error)
"""
    assert EXTRA in slim("python", "-c", program, old).stdout
    assert slim("tempme-export", "verify", old).returncode == 0
    with tempme_export.load(old) as before, tempme_export.load(bundle) as after:
        np.testing.assert_array_equal(before.encode_text(TEXTS), after.encode_text(TEXTS))
