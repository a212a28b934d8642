"""`--ort-ops`: a bundle with the library of our operators, built, judged, gated, loaded, served and spoilt."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import tempme_export
from tempme_export.artifacts import registry
from tempme_export.artifacts.backend import Setting
from tempme_export.artifacts.bundle import folder_of, open_bundle, write_manifest
from tempme_export.bench import candidates
from tempme_export.bench.cases import open_case
from tempme_export.cli.export import main
from tempme_export.encoder.recipe import open_recipe
from tempme_export.errors import BackendError, BundleError
from tempme_export.files import file_sha256
from tempme_export.kernels.native.build import find_compiler
from tempme_export.serving.repository import write_repository

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler is installed"),
]

EXAMPLES = Path(__file__).parents[2] / "examples" / "onnxruntime"
LIBRARY, GRAPH = registry.ORT_LIBRARY.file, registry.PLUGIN_ONNX.file


@pytest.fixture(scope="module")
def bundle(gate_folder, gated, tmp_path_factory):
    """A bundle with the library, accepted and gated for real; its other graphs were exported before."""
    out = tmp_path_factory.mktemp("ops") / "mini.tempme"
    return tempme_export.export(
        gate_folder / "mini.pth",
        "mini-8f",
        out,
        batch=(1, 2, 3),
        also=["ort-ops"],
        gate=gate_folder / "data.csv",
    )


@pytest.fixture
def copy(bundle, tmp_path):
    """A copy of it to spoil."""
    return shutil.copytree(bundle.path, tmp_path / "copy.tempme")


def test_it_is_written_judged_and_gated(bundle):
    manifest = bundle.manifest
    assert {LIBRARY, GRAPH} <= manifest["files"].keys()
    facts = manifest["ort-ops"]
    assert facts["sha256"] == manifest["files"][LIBRARY]["sha256"] and facts["graph"] == GRAPH
    assert facts["compiler"] and facts["machine"] and manifest["trt"] is None
    judged = {one["artifact"]: one for one in manifest["parity"]}
    assert judged[LIBRARY]["status"] == judged[GRAPH]["status"] == "passed"
    assert judged[LIBRARY]["backend"] == "ONNX Runtime, cpu, our operators"
    names = [check["name"] for check in judged[LIBRARY]["checks"]]
    assert any("decision" in name for name in names)
    assert {int(size) for name in names for size in re.findall(r"batch (\d+)", name)} >= {1, 2, 3}
    gate = [one for one in manifest["gate"]["reports"] if one["artifact"] == f"gate {LIBRARY}"]
    assert [one["status"] for one in gate] == ["passed"]


def test_the_graph_is_that_of_trt(bundle):
    """One file for both: every node of ours has its body."""
    proto = onnx.load(bundle.path / GRAPH)
    ours = {node.op_type for node in proto.graph.node if node.domain == "tempme"}
    assert ours and ours == {function.name for function in proto.functions}


@pytest.mark.parametrize("kind", ["moving", "frozen", "black"])
def test_it_decides_and_embeds_as_the_portable_graph(bundle, gate_folder, kind, mini_rounding, safe_embedding):
    rng = np.random.default_rng(0)
    size, frames = bundle.manifest["image"]["size"], bundle.profile.frames
    clips = rng.standard_normal((3, frames, 3, size, size)).astype(np.float32)
    if kind == "frozen":
        clips[:] = clips[:, :1]
    if kind == "black":
        clips[:] = -1.5
    if kind == "moving":  # the others tie, which every order of additions keeps
        safe_embedding(open_recipe(gate_folder / "mini.pth", "mini-8f"), clips)
    names = tuple(merge.assign_name for merge in bundle.schedule.merges)
    folder, found = folder_of(bundle), {}
    for backend in registry.BACKENDS:
        if backend.name in ("ort", "ort-ops"):
            with backend.open(folder, Setting("cpu", 2, extra_outputs=names)) as runner:
                found[backend.name] = runner.infer({"frames": clips})
    ours, portable = found["ort-ops"], found["ort"]
    assert len(names) >= 3
    for name in names:
        np.testing.assert_array_equal(ours[name], portable[name])
    np.testing.assert_allclose(
        ours["video_embedding"], portable["video_embedding"], rtol=0, atol=mini_rounding["video"].difference
    )


def test_a_clip_is_embedded_alike_in_any_batch(bundle, mini_rounding):
    clips = np.random.default_rng(1).integers(0, 256, (3, bundle.profile.frames, 40, 50, 3), np.uint8)
    with tempme_export.load(bundle, backend="ort-ops", threads=2) as model:
        whole = model.encode_video(list(clips))
        np.testing.assert_allclose(
            model.encode_video(clips[1]), whole[1], rtol=0, atol=mini_rounding["video"].difference
        )
        assert model.encode_text(["a toy"]).shape[0] == 1


def test_bench_and_serving_know_it(bundle, tmp_path):
    case = open_case(str(bundle.path), None, None)
    entry = candidates.known_candidates()["ort-ops"].open(case, "cpu", tmp_path)
    assert entry.embed(np.zeros((1, 8, 3, 64, 64), np.float32)).shape[0] == 1
    write_repository(bundle, tmp_path / "models")
    model = tmp_path / "models" / "video_ops"
    assert {path.name for path in (model / "1").iterdir()} == {"model.onnx", LIBRARY}
    config = (model / "config.pbtxt").read_text()
    assert f'op_library_filename: [ "video_ops/1/{LIBRARY}" ]' in config and "KIND_CPU" in config
    assert (tmp_path / "models" / "video_ops/1" / LIBRARY).is_file()
    assert "`video_ops` was compiled for" in (tmp_path / "models" / "README.md").read_text()


class TestExamples:
    def test_python(self, bundle):
        """With ONNX Runtime and numpy alone: it imports nothing else."""
        script = EXAMPLES / "encode.py"
        assert set(re.findall(r"^(?:import|from) (\w+)", script.read_text(), re.MULTILINE)) == {
            "sys",
            "numpy",
            "onnxruntime",
        }
        done = subprocess.run([sys.executable, script, bundle.path], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        np.testing.assert_allclose(
            [float(word) for word in done.stdout.split()], of_zeros(bundle)[:4], rtol=0, atol=1e-6
        )

    def test_cpp(self, bundle, tmp_path):
        headers = os.environ.get("ONNXRUNTIME_INCLUDE")
        if headers is None:
            pytest.skip("ONNX Runtime's wheel has no C++ headers; name their folder in ONNXRUNTIME_INCLUDE")
        (library,) = Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*")
        (tmp_path / "libonnxruntime.so.1").symlink_to(library)
        program = tmp_path / "encode"
        command = [find_compiler(), "-std=c++17", EXAMPLES / "encode.cpp", "-I", headers, library, "-o", program]
        subprocess.run([*command, f"-Wl,-rpath,{tmp_path}"], check=True)
        done = subprocess.run([program, bundle.path], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        np.testing.assert_allclose(
            [float(word) for word in done.stdout.split()], of_zeros(bundle)[:4], rtol=0, atol=1e-5
        )


def of_zeros(bundle):
    """Embedding of a video of zeros, by this package."""
    size, frames = bundle.manifest["image"]["size"], bundle.profile.frames
    (backend,) = (one for one in registry.BACKENDS if one.name == "ort-ops")
    with backend.open(folder_of(bundle), Setting("cpu", 1)) as runner:
        return runner.infer({"frames": np.zeros((1, frames, 3, size, size), np.float32)})["video_embedding"][0]


class TestSpoilt:
    def test_a_library_with_another_hash(self, copy):
        (copy / LIBRARY).write_bytes((copy / LIBRARY).read_bytes() + b"\0")
        with pytest.raises(BundleError, match=rf"{LIBRARY}"):
            tempme_export.load(copy, backend="ort-ops")
        with pytest.raises(BundleError, match=rf"{LIBRARY} was changed"):
            tempme_export.verify(copy)

    def test_a_hash_that_only_the_manifest_knows(self, copy):
        """Of the same length: nothing of it is run."""
        content = bytearray((copy / LIBRARY).read_bytes())
        content[len(content) // 2] ^= 1
        (copy / LIBRARY).write_bytes(content)
        with pytest.raises(BundleError, match=r"found the hash \w{12}, expected \w{12}"):
            tempme_export.load(copy, backend="ort-ops")

    def test_one_for_another_architecture(self, copy):
        rewrite(copy, machine="riscv64")
        with pytest.raises(BackendError, match="compiled for riscv64, and this is"):
            tempme_export.load(copy, backend="ort-ops")

    def test_one_that_does_not_load(self, copy):
        """As one that was linked to another C library."""
        (copy / LIBRARY).write_bytes(b"\x7fELF but of another kind")
        rewrite(copy, sha256=file_sha256(copy / LIBRARY))
        with pytest.raises(BackendError, match=rf"{LIBRARY} does not load into ONNX Runtime"):
            tempme_export.load(copy, backend="ort-ops")

    def test_a_manifest_without_its_hash(self, copy):
        rewrite(copy, sha256=None)
        with pytest.raises(BundleError, match=r"ort-ops is .*expected a table with the text sha256"):
            open_bundle(copy)


def rewrite(folder, **facts):
    """The manifest with other facts of the library, over the files as they are."""
    manifest = json.loads((folder / "manifest.json").read_text())
    kept = {key: value for key, value in manifest.items() if key not in ("format", "files", "sha256")}
    write_manifest(folder, {**kept, "ort-ops": {**manifest["ort-ops"], **facts}})


@pytest.fixture
def command(run_command, small_checkpoint, small_profile, tmp_path):
    """`command(*options)`: tempme-export of the small checkpoint with --ort-ops."""
    given = (small_checkpoint, "--profile", small_profile, "--out", tmp_path / "out.tempme", "--ort-ops")
    return lambda *options: run_command(main, *given, *options)


class TestRefused:
    def test_no_compiler(self, command, tmp_path, monkeypatch):
        monkeypatch.setenv("CXX", "no-such-compiler")
        code, _, err = command()
        assert code == 4 and "C++ compiler: found CXX=no-such-compiler" in err and "sudo apt install g++" in err
        assert list(tmp_path.iterdir()) == []

    def test_a_compiler_that_fails(self, command, tmp_path, monkeypatch):
        failing = tmp_path / "bin" / "failing"
        failing.parent.mkdir()
        failing.write_text("#!/bin/sh\necho this is no C++ >&2\nexit 1\n")
        failing.chmod(0o755)
        monkeypatch.setenv("CXX", str(failing))
        code, _, err = command()
        assert code == 6 and "could not be compiled by" in err and "this is no C++" in err
        assert [path.name for path in tmp_path.iterdir()] == ["bin"]

    @pytest.mark.parametrize("precision", ["bf16"])
    def test_a_precision_that_does_not_run_there(self, command, tmp_path, precision):
        code, _, err = command("--precision", precision)
        assert code == 2 and "have no kernels there" in err and list(tmp_path.iterdir()) == []

    def test_a_dry_run_writes_nothing(self, command, tmp_path):
        code, out, _ = command("--dry-run", "--json")
        assert code == 0 and {LIBRARY, GRAPH} <= set(json.loads(out)["files"]) and list(tmp_path.iterdir()) == []
