"""Compiling the video tower: what the package takes and gives, and every way in which it cannot be built."""

import dataclasses
import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch

from tempme_export.encoder.checkpoint import from_state_dict
from tempme_export.encoder.model import VideoEncoder
from tempme_export.encoder.profile import FROM_CHECKPOINT, BatchRange, Profile
from tempme_export.encoder.recipe import prepare
from tempme_export.encoder.reference import MergeLog, ReferenceVideo
from tempme_export.encoder.schedule import MergePolicy
from tempme_export.errors import BackendError, ExportError
from tempme_export.exporters import pt2
from tempme_export.parity.checks import cosine_distance
from tempme_export.runtime.pt2 import KEY, PackageFacts, Pt2Runner, read_package_facts


@pytest.fixture(scope="module")
def recipe(checkpoint_maker):
    """Two blocks, six frames joined by threes: an odd number of class tokens, two clips at the end."""
    settings = checkpoint_maker.settings("tiny", image=48, layers=2, merge_layer="1", merge_frame_num="3", max_frames=6)
    state = checkpoint_maker.make_state_dict(settings, seed=7)
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in state.items()}
    profile = Profile("small", FROM_CHECKPOINT, 6, 8, MergePolicy(1, (1,), (3,), 30, 10), BatchRange(1, 1, 4))
    return prepare(from_state_dict(tensors, source="small"), profile)


@pytest.fixture(scope="module")
def package(recipe, tmp_path_factory):
    """The tower in bfloat16 with a frame mask: both in the one package that is compiled here."""
    path = tmp_path_factory.mktemp("pt2") / "video.pt2"
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    pt2.export_video(recipe, path, "bf16", frame_mask=True)
    torch.set_num_threads(before)
    return path


FACTS = PackageFacts("2.11", "cpu", "x86_64", "AVX2", "fp16", 4, {"frames": ("float32", (None, 6, 3, 48, 48))})


class Compiling(pt2.Compiler):
    """Compiles by `work(package, configs)`; what it made is loaded for real, unless it is `taken` as it is."""

    def __init__(self, work, taken=False):
        self.work, self.taken = work, taken

    def compile(self, program, package, configs):
        self.work(package, configs)

    def load(self, package):
        return subprocess.CompletedProcess([], 0, "", "") if self.taken else super().load(package)


def write(path, work, taken=False):
    """A package of nothing, compiled by `work`."""
    pt2.write_package(None, FACTS, path, Compiling(work, taken))


class TestPackage:
    def test_one_file_and_nothing_beside_it(self, package):
        assert [path.name for path in package.parent.iterdir()] == ["video.pt2"]

    def test_facts(self, package, recipe):
        facts = read_package_facts(package)
        assert facts.inputs == {"frames": ("float32", (None, 6, 3, 48, 48)), "frame_mask": ("bool", (None, 6))}
        assert (facts.device, facts.precision, facts.max_batch) == ("cpu", "bf16", 4)
        assert facts.torch == torch.__version__
        assert facts.capability == torch.backends.cpu.get_cpu_capability()

    def test_no_thread_count_is_compiled_in(self, package):
        """It was compiled under one thread: loops must be parallel all the same, and name no number."""
        with zipfile.ZipFile(package) as archive:
            source = b"".join(archive.read(name) for name in archive.namelist() if name.endswith(".cpp"))
        assert b"#pragma omp parallel" in source
        assert b"num_threads(" not in source

    def test_mask_and_batches_agree_with_float32(self, package, recipe, decided, rounding):
        """Batch 1 although tracing takes ones for constants, and 5 videos in two parts. A turned decision would cost
        more than rounding: the encoder in float32 takes those of the package, which is in bfloat16."""
        generator = torch.Generator().manual_seed(3)
        frames = torch.randn(5, 6, 3, 48, 48, generator=generator)
        mask = torch.ones(5, 6, dtype=torch.bool)
        mask[1, 2:], mask[3, ::2], mask[4] = False, False, False
        limit = rounding(torch.bfloat16, recipe.backbone.layers).distance
        with Pt2Runner(package) as runner:
            for rows in (slice(0, 1), slice(1, 2), slice(0, 4), slice(0, 5)):
                found = runner.infer({"frames": frames[rows].numpy(), "frame_mask": mask[rows].numpy()})
                embedding = found["video_embedding"]
                assigns = [torch.from_numpy(found[merge.assign_name]) for merge in recipe.schedule.merges]
                with torch.inference_mode():
                    encoder = decided(VideoEncoder(recipe), assigns)
                    expected, unmasked = (encoder(frames[rows], which).numpy() for which in (mask[rows], None))
                assert embedding.dtype == np.float32 and embedding.shape == expected.shape
                assert cosine_distance(expected, embedding) <= limit
        assert cosine_distance(expected[1:2], unmasked[1:2]) > 10 * limit, "the mask matters"
        assert not found["video_embedding"][4].any(), "no frame that counts gives zeros"

    def test_decisions_have_a_row_per_clip(self, package, recipe):
        with Pt2Runner(package) as runner:
            frames = np.random.default_rng(3).standard_normal((5, 6, 3, 48, 48), np.float32)
            found = runner.infer({"frames": frames, "frame_mask": np.ones((5, 6), np.bool_)})
        assert list(found) == ["video_embedding", *(merge.assign_name for merge in recipe.schedule.merges)]
        for merge in recipe.schedule.merges:
            assign = found[merge.assign_name]
            assert assign.dtype == np.int32 and len(assign) % 5 == 0 and (assign >= 0).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestCuda:
    """The kernels are compiled in: a process that never saw this package computes what the reference does."""

    @pytest.mark.parametrize(("precision", "within"), [("fp32", 1e-6), ("bf16", 5e-3)])
    def test_runs_without_this_package(self, recipe, tmp_path, precision, within):
        path = tmp_path / "video.pt2"
        pt2.export_video(recipe, path, precision, "cuda")
        frames = torch.randn(4, 6, 3, 48, 48, generator=torch.Generator().manual_seed(3))
        expected = torch.nn.functional.normalize(ReferenceVideo(recipe).video_feature(frames), dim=-1).numpy()
        script = (
            "import sys, torch, torch._inductor\n"
            "model = torch._inductor.aoti_load_package(sys.argv[1])\n"
            "frames = torch.load(sys.argv[2]).cuda()\n"
            "found = [model(frames[:batch].clone())['video_embedding'].cpu() for batch in (1, 2, 3, 4)]\n"
            "torch.save(found, sys.argv[3])\n"
            "assert 'tempme_export' not in sys.modules\n"
        )
        torch.save(frames, tmp_path / "frames.pt")
        arguments = [str(path), str(tmp_path / "frames.pt"), str(tmp_path / "found.pt")]
        done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        for batch, found in enumerate(torch.load(tmp_path / "found.pt"), start=1):
            assert cosine_distance(expected[:batch], found.numpy()) <= within

    def test_decisions_are_the_references(self, recipe, tmp_path):
        pt2.export_video(recipe, tmp_path / "video.pt2", device="cuda", frame_mask=True)
        frames = torch.randn(4, 6, 3, 48, 48, generator=torch.Generator().manual_seed(3))
        log = MergeLog()
        ReferenceVideo(recipe).frame_features(frames, log)
        with Pt2Runner(tmp_path / "video.pt2") as runner:
            found = runner.infer({"frames": frames.numpy(), "frame_mask": np.ones((4, 6), np.bool_)})
        for merge, step in zip(recipe.schedule.merges, log.steps, strict=True):
            np.testing.assert_array_equal(found[merge.assign_name], step.assign.numpy())


class TestRefusals:
    def test_no_compiler(self, recipe, tmp_path):
        from torch._inductor import config

        refused = pytest.raises(BackendError, match=r"no-such-compiler does not run here.*CXX")
        with config.patch({"cpp.cxx": (None, "no-such-compiler")}), refused as caught:
            pt2.export_video(recipe, tmp_path / "video.pt2")
        assert caught.value.exit_code == 4
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
    @pytest.mark.parametrize("device", ["cuda", "cuda:1", "tpu"])
    def test_no_device(self, recipe, tmp_path, device):
        with pytest.raises(BackendError, match=device.split(":")[0]) as caught:
            pt2.export_video(recipe, tmp_path / "video.pt2", device=device)
        assert caught.value.exit_code == 4
        assert list(tmp_path.iterdir()) == []

    def test_another_suffix(self, recipe, tmp_path):
        with pytest.raises(ExportError, match=r"must end in \.pt2"):
            pt2.export_video(recipe, tmp_path / "video.bin")

    def test_the_compilers_last_lines_are_shown(self, tmp_path):
        from torch._inductor.exc import CppCompileError, InductorError

        def fail(package, configs):
            cause = CppCompileError(["g++"], "\n".join([f"line {k}" for k in range(50)] + ["error: no space"]))
            cause.__cause__ = subprocess.CalledProcessError(1, "g++")
            raise InductorError(cause, None)

        with pytest.raises(ExportError, match=r"video\.pt2 could not be compiled by torch") as caught:
            write(tmp_path / "video.pt2", fail)
        assert caught.value.exit_code == 6
        assert str(caught.value).endswith("line 49\nerror: no space")
        assert "line 40" not in str(caught.value)
        assert list(tmp_path.iterdir()) == []

    def test_triton_is_missing(self, tmp_path):
        from torch._inductor.exc import TritonMissing

        def fail(package, configs):
            raise RuntimeError("lowering") from TritonMissing(None)

        with pytest.raises(BackendError, match="working triton installation") as caught:
            write(tmp_path / "video.pt2", fail)
        assert caught.value.exit_code == 4

    def test_half_a_package_is_not_left(self, tmp_path):
        def fail(package, configs):
            package.write_bytes(b"half")
            raise OSError("No space left on device")

        (tmp_path / "video.pt2").write_text("an older one")
        with pytest.raises(ExportError, match=r"OSError.*\nNo space left on device"):
            write(tmp_path / "video.pt2", fail)
        assert [path.name for path in tmp_path.iterdir()] == ["video.pt2"]
        assert (tmp_path / "video.pt2").read_text() == "an older one"

    def test_an_operator_that_needs_python_is_refused(self, tmp_path):
        """What the compiler writes of an operator it could not look into."""

        def compile_opaque(package, configs):
            with zipfile.ZipFile(package, "w") as archive:
                archive.writestr("data/wrapper.json", '{"nodes": [{"node": {"target": "tempme::match_tokens"}}]}')
                archive.writestr("data/wrapper_metadata.json", '{"AOTI_DEVICE_KEY": "cpu"}')

        with pytest.raises(ExportError, match="calls back into the operators"):
            write(tmp_path / "video.pt2", compile_opaque, taken=True)
        assert list(tmp_path.iterdir()) == []

    def test_what_does_not_load_is_refused(self, tmp_path):
        def compile_nothing(package, configs):
            with zipfile.ZipFile(package, "w") as archive:
                archive.writestr("data/wrapper_metadata.json", "{}")

        with pytest.raises(
            ExportError, match=r"video\.pt2 was compiled, and a process that loaded it ended by exit code 1"
        ):
            write(tmp_path / "video.pt2", compile_nothing)
        assert list(tmp_path.iterdir()) == []

    def test_a_crash_in_loading_is_refused_and_named(self, tmp_path):
        with pytest.raises(ExportError, match=r"ended by signal 11\. It said nothing\."):
            pt2._check_loads(tmp_path / "video.pt2", subprocess.CompletedProcess([], -11, "", ""))

    def test_what_torch_said_before_the_crash(self, tmp_path):
        said = "[E shim_common.cpp:1] Exception in aoti_torch: host memory\nframe #0: one\nframe #33: _start + 0x21\n"
        crashed = subprocess.CompletedProcess([], -11, "", said)
        with pytest.raises(ExportError, match=r"ended by signal 11\. .*Exception in aoti_torch: host memory This"):
            pt2._check_loads(tmp_path / "video.pt2", crashed)

    def test_settings_that_reach_the_compiler(self, tmp_path):
        seen = {}

        def keep(package, configs):
            seen.update(configs)
            with zipfile.ZipFile(package, "w") as archive:
                archive.writestr("data/wrapper_metadata.json", "{}")

        write(tmp_path / "video.pt2", keep, taken=True)
        assert (tmp_path / "video.pt2").is_file() and seen["cpp.dynamic_threads"] is True
        assert seen["aot_inductor.metadata"].keys() == {KEY}


def run_with_compiler(script, compiler):
    """CXX is read when torch is imported, and what a compiler can do is remembered: this takes a process."""
    environment = {**os.environ, "CXX": str(compiler)}
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, env=environment)


def test_environment_names_the_compiler(tmp_path):
    script = "from tempme_export.exporters.pt2 import check_builder; check_builder('cpu')"
    done = run_with_compiler(script, tmp_path / "no-compiler")
    assert "BackendError" in done.stderr and "no-compiler does not run here" in done.stderr


def test_a_compiler_that_fails(tmp_path):
    """Not a model's graph, which takes longer; the compiler answers questions and compiles nothing."""
    compiler = tmp_path / "compiler"
    compiler.write_text('#!/bin/sh\ncase " $* " in *" -o "*) echo no space; exit 1;; esac\nexec g++ "$@"\n')
    compiler.chmod(0o755)
    script = (
        "import pathlib, sys, types, torch\n"
        "from tempme_export.exporters import pt2\n"
        "program = torch.export.export(torch.nn.Softmax(0), (torch.ones(3, 4),))\n"
        "facts = types.SimpleNamespace(to_metadata=dict)\n"
        "try:\n"
        f"    pt2.write_package(program, facts, pathlib.Path({str(tmp_path)!r}) / 'video.pt2')\n"
        "except pt2.ExportError as error:\n"
        "    sys.stdout.write(str(error))\n"
    )
    done = run_with_compiler(script, compiler)
    assert "video.pt2 could not be compiled" in done.stdout, done.stderr
    assert done.stdout.splitlines()[-1] == "no space"
    assert [path.name for path in tmp_path.iterdir()] == ["compiler"]


def test_a_range_of_one_video_is_static(recipe):
    one = dataclasses.replace(recipe, profile=dataclasses.replace(recipe.profile, batch=BatchRange(1, 1, 1)))
    (frames,), shapes = pt2._example(one, "cpu", frame_mask=False)
    assert shapes is None and len(frames) == 1
    inputs, shapes = pt2._example(recipe, "cpu", frame_mask=True)
    assert len(shapes) == 2 and {len(tensor) for tensor in inputs} == {2}
