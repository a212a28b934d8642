"""The C++ example against stand-ins for TensorRT and CUDA: it builds, encodes, refuses; CMake says what is missing."""

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tempme_export.artifacts.bundle import Bundle
from tempme_export.errors import InputError, ParityError
from tempme_export.media.preprocess import Preprocess
from tempme_export.parity.selftest import SelfTest, save_selftest

EXAMPLE = Path(__file__).parents[2] / "examples" / "cpp"
STUB = Path(__file__).parent / "stub"
COMPILER = next((found for name in ("c++", "g++", "clang++") if (found := shutil.which(name))), None)
CMAKE = shutil.which("cmake")

# Odd sizes, all different, so that no two axes can be exchanged.
FRAMES, SIDE, WIDTH, LEAST, MOST = 3, 5, 7, 2, 6
VIDEO = FRAMES * 3 * SIDE * SIDE

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")


def run(*command, **environment):
    return subprocess.run(
        list(map(str, command)), env=os.environ | environment, capture_output=True, text=True, check=False, timeout=120
    )


@pytest.fixture(scope="module")
def stub(tmp_path_factory):
    """A folder as TensorRT and CUDA install themselves, with the stand-ins in it."""
    root = tmp_path_factory.mktemp("stub")
    shutil.copytree(STUB, root / "include")
    (root / "lib").mkdir()
    options = ("-std=c++17", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-I", STUB)
    done = run(COMPILER, *options, STUB / "library.cpp", "-o", root / "lib" / "libnvinfer.so")
    assert done.returncode == 0, done.stderr
    shutil.copy(root / "lib" / "libnvinfer.so", root / "lib" / "libcudart.so")
    return root


@pytest.fixture(scope="module")
def program(stub, tmp_path_factory):
    """`encode`, compiled with every warning an error."""
    path = tmp_path_factory.mktemp("program") / "encode"
    lib = stub / "lib"
    options = ("-std=c++17", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-I", stub / "include")
    done = run(COMPILER, *options, EXAMPLE / "encode.cpp", "-o", path, f"-L{lib}", "-lnvinfer", f"-Wl,-rpath,{lib}")
    assert done.returncode == 0, done.stderr
    return path


@pytest.fixture
def plan(tmp_path):
    path = tmp_path / "video.plan"
    path.write_text(f"stub {FRAMES} {SIDE} {WIDTH} {LEAST} {MOST}\n")
    return path


def embeddings_of(frames):
    """What the stand-in makes of frames."""
    first = frames.reshape(len(frames), -1)[:, :WIDTH].astype(np.float64)
    return (first / np.linalg.norm(first, axis=1, keepdims=True)).astype(np.float32)


def write_frames(path, batch, seed=0):
    frames = np.random.default_rng(seed).normal(size=(batch, VIDEO)).astype(np.float32)
    path.write_bytes(frames.tobytes())
    return frames


def test_is_short():
    assert len((EXAMPLE / "encode.cpp").read_text().splitlines()) < 150


@needs_compiler
@pytest.mark.parametrize("batch", [LEAST, MOST])
def test_encodes_a_file_of_frames(program, plan, tmp_path, batch):
    frames, source, target = write_frames(tmp_path / "f", batch), tmp_path / "f", tmp_path / "e"
    done = run(program, plan, batch, source, target)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    found = np.fromfile(target, np.float32).reshape(batch, WIDTH)
    # Both work in float64 and round to float32 at the end: where their last bits differ, to its two neighbours.
    np.testing.assert_allclose(found, embeddings_of(frames), rtol=np.finfo(np.float32).eps, atol=0)
    lines = done.stdout.splitlines()
    assert len(lines) == batch
    for row, line in enumerate(lines):
        numbers = re.fullmatch(rf"video {row}: length 1\.000000, starts((?: [+-]\d\.\d{{6}}){{4}})", line)
        assert numbers, line
        np.testing.assert_allclose([float(n) for n in numbers[1].split()], found[row, :4], rtol=0, atol=0.5000001e-6)


@needs_compiler
def test_made_up_frames_are_the_same_every_time_and_differ_between_videos(program, plan):
    first, second = (run(program, plan, 3).stdout for _ in range(2))
    assert first == second
    starts = [line.split("starts")[1] for line in first.splitlines()]
    assert len(set(starts)) == 3
    assert all(abs(float(number)) <= 1 for line in starts for number in line.split())


@needs_compiler
@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "usage: encode ENGINE"),
        (("PLAN", "2", "F", "E", "more"), 2, "usage: encode ENGINE"),
        (("PLAN",), 2, f"BATCH is 1, the engine takes {LEAST} to {MOST}"),
        (("PLAN", MOST + 1), 2, f"BATCH is {MOST + 1}, the engine takes {LEAST} to {MOST}"),
        (("PLAN", "two"), 2, "BATCH is 'two', expected a whole number"),
        (("PLAN", "-2"), 2, "BATCH is '-2', expected a whole number"),
        (("PLAN", ""), 2, "BATCH is '', expected a whole number"),
        (("PLAN", "99999999999999999999"), 2, "expected a whole number"),
        (("none.plan", "2"), 3, "none.plan cannot be read"),
        (("EMPTY", "2"), 3, "or is empty"),
        ((".", "2"), 3, ". cannot be read"),
        (("PLAN", "2", "none.bin"), 3, "none.bin cannot be read"),
        (("PLAN", "3", "FRAMES"), 3, f"FRAMES holds {2 * VIDEO} numbers, expected {3 * VIDEO}"),
        (("PLAN", "2", "FRAMES", "none/e.bin"), 3, "none/e.bin cannot be written"),
        (("FRAMES", "2"), 4, "does not load here"),
    ],
)
def test_refuses_and_says_why(program, plan, tmp_path, monkeypatch, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    write_frames(tmp_path / "frames.bin", 2)
    (tmp_path / "empty").touch()
    names = {"PLAN": plan, "FRAMES": "frames.bin", "EMPTY": "empty"}
    done = run(program, *(names.get(one, one) for one in arguments))
    assert done.returncode == code, done.stderr
    assert message in done.stderr


@needs_compiler
def test_a_broken_engine_shows_its_errors_and_how_to_build_it_anew(program, tmp_path):
    (tmp_path / "video.plan").write_text("of another GPU")
    done = run(program, tmp_path / "video.plan")
    assert done.returncode == 4
    assert "TensorRT: this is no engine" in done.stderr and "nobody wants" not in done.stderr
    assert "tempme-export rebuild BUNDLE" in done.stderr


@needs_compiler
def test_an_engine_with_a_frame_mask_is_refused(program, plan):
    plan.write_text(plan.read_text().strip() + " frame_mask")
    done = run(program, plan, 2)
    assert done.returncode == 3
    assert "has the tensors frames video_embedding frame_mask" in done.stderr


@needs_compiler
@pytest.mark.parametrize(
    ("variable", "message"), [("STUB_NO_GPU", "no CUDA-capable device"), ("STUB_NO_RUN", "the engine does not run")]
)
def test_a_gpu_that_does_not_play_along(program, plan, variable, message):
    done = run(program, plan, 2, **{variable: "1"})
    assert done.returncode == 4
    assert message in done.stderr


@needs_compiler
@pytest.mark.skipif(CMAKE is None, reason="needs CMake")
def test_cmake_finds_both_libraries_and_builds(stub, plan, tmp_path):
    build = tmp_path / "build"
    done = run(CMAKE, "-S", EXAMPLE, "-B", build, f"-DTENSORRT_ROOT={stub}", f"-DCUDA_ROOT={stub}")
    assert done.returncode == 0, done.stderr
    assert f"TensorRT: {stub}/lib/libnvinfer.so" in done.stdout
    done = run(CMAKE, "--build", build)
    assert done.returncode == 0, done.stderr
    assert run(build / "encode", plan, 2).returncode == 0


@needs_compiler
@pytest.mark.skipif(CMAKE is None, reason="needs CMake")
def test_cmake_names_everything_that_is_missing(tmp_path):
    nowhere = (f"-DCMAKE_FIND_ROOT_PATH={tmp_path}", "-DCMAKE_FIND_ROOT_PATH_MODE_INCLUDE=ONLY")
    nowhere += ("-DCMAKE_FIND_ROOT_PATH_MODE_LIBRARY=ONLY",)
    done = run(CMAKE, "-S", EXAMPLE, "-B", tmp_path / "build", *nowhere, TENSORRT_ROOT="", CUDA_HOME="")
    assert done.returncode != 0
    for missing in ("NvInfer.h", "libnvinfer.so", "cuda_runtime_api.h", "libcudart.so", "-DTENSORRT_ROOT="):
        assert missing in done.stderr


@pytest.fixture
def compare():
    spec = importlib.util.spec_from_file_location("compare", EXAMPLE / "compare.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def bundle(tmp_path):
    """No whole bundle: a self-test and how its clips become frames, with what the stand-in makes of them."""
    clips = np.random.default_rng(1).integers(0, 256, (4, FRAMES, SIDE, SIDE, 3), dtype=np.uint8)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    frames = np.stack([Preprocess(SIDE, mean, std)(clip) for clip in clips])
    selftest = SelfTest(
        clips=clips,
        token_ids=np.zeros((1, 2), np.int64),
        video_embedding=embeddings_of(frames),
        text_embedding=np.ones((1, 1), np.float32),
        assigns=(),
        gaps=np.zeros((4, 0), np.float32),
    )
    save_selftest(selftest, tmp_path / "selftest.npz")
    return Bundle(tmp_path, {"image": {"size": SIDE, "mean": list(mean), "std": list(std)}})


@needs_compiler
def test_the_self_tests_clips_come_back_equal(compare, bundle, program, plan, tmp_path):
    count = compare.write_frames(bundle, tmp_path / "f")
    assert run(program, plan, count, tmp_path / "f", tmp_path / "e").returncode == 0
    table = compare.cosines(bundle, tmp_path / "e")
    # Of two vectors whose numbers were each rounded once to float32.
    np.testing.assert_allclose(table.diagonal(), np.ones(4), rtol=0, atol=np.finfo(np.float32).eps)
    compare.check_own(table)


def test_rows_in_the_wrong_order_are_found(compare, bundle, tmp_path):
    expected = np.load(tmp_path / "selftest.npz")["video_embedding"]
    (tmp_path / "e").write_bytes(expected[[1, 0, 2, 3]].tobytes())
    with pytest.raises(ParityError, match=r"nearest to \[1, 0, 2, 3\]"):
        compare.check_own(compare.cosines(bundle, tmp_path / "e"))


def test_embeddings_of_another_length_or_count_are_refused(compare, bundle, tmp_path):
    expected = np.load(tmp_path / "selftest.npz")["video_embedding"]
    (tmp_path / "e").write_bytes((expected * np.float32(1.01)).tobytes())
    with pytest.raises(ParityError, match=r"lengths \[1\.01"):
        compare.cosines(bundle, tmp_path / "e")
    (tmp_path / "e").write_bytes(expected[:3].tobytes())
    with pytest.raises(InputError, match=f"holds {3 * WIDTH} numbers, expected 4 x {WIDTH}"):
        compare.cosines(bundle, tmp_path / "e")
    (tmp_path / "e").write_bytes(np.full_like(expected, np.nan).tobytes())
    with pytest.raises(ParityError, match="lengths"):
        compare.cosines(bundle, tmp_path / "e")


@pytest.mark.gpu
@pytest.mark.skipif(CMAKE is None, reason="needs CMake")
def test_a_real_engine_without_python(compare, tmp_path):
    """The trained model's engine, through the C++ program, beside the original path in Python."""
    from tempme_export.exporters.trt.requirements import missing_for_engine

    missing = missing_for_engine("cuda")
    if missing:
        pytest.skip("; ".join(missing))
    from tempme_export.pipeline.export import export

    built = run(CMAKE, "-S", EXAMPLE, "-B", tmp_path / "build")
    if built.returncode != 0:
        pytest.skip(built.stderr)
    assert run(CMAKE, "--build", tmp_path / "build").returncode == 0
    checkpoint = EXAMPLE.parent / "mini.pth"
    bundle = export(checkpoint, out=tmp_path / "mini.tempme", trt=True, precision="fp16")
    count = compare.write_frames(bundle, tmp_path / "f")
    done = run(tmp_path / "build" / "encode", bundle.path / "video.plan", count, tmp_path / "f", tmp_path / "e")
    assert done.returncode == 0, done.stderr
    table = compare.cosines(bundle, tmp_path / "e")
    compare.check_own(table)
    assert table.diagonal().min() > 0.99
