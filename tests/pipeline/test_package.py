"""`--pt2`: a bundle with a compiled package, from the command line to a process that knows only torch."""

import copy
import dataclasses
import json
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch

import tempme_export
from tempme_export.artifacts.bundle import open_bundle, verify_files
from tempme_export.artifacts.registry import PACKAGE, TEXT_ONNX, VIDEO_ONNX, find_backend
from tempme_export.bench.candidates import known_candidates, on_backends
from tempme_export.bench.cases import Case
from tempme_export.bench.core.protocol import Protocol
from tempme_export.bench.run import run
from tempme_export.bench.run_settings import RunSettings
from tempme_export.cli import export as export_cli
from tempme_export.errors import BackendError, BundleError, ExportError, ParityError, UsageError
from tempme_export.exporters import pt2
from tempme_export.files import file_sha256
from tempme_export.media.preprocess import preprocess_for
from tempme_export.parity.tolerance import TOLERANCES
from tempme_export.pipeline import export, verify
from tempme_export.runtime.pt2 import Here, Pt2Runner, check_package, read_package_facts

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def package(small_recipe, tmp_path_factory):
    """`video.pt2` of the small model, compiled once. Do not write there."""
    path = tmp_path_factory.mktemp("package") / PACKAGE.file
    pt2.export_video(small_recipe, path)
    return path


class Compiled:
    """An exporter that has compiled before: it takes the file, and keeps what was asked for."""

    def __init__(self, package):
        self.package, self.asked = package, []

    def __getattr__(self, name):
        return getattr(PACKAGE.exporter, name)

    def build(self, artifact, making):
        spec = making.spec
        self.asked.append((spec.precision, spec.device, spec.frame_mask))
        (making.folder / artifact.file).write_bytes(self.package.read_bytes())
        return read_package_facts(self.package).to_dict()


class Elsewhere:
    """A runtime on a machine that runs other code."""

    def __init__(self, backend):
        self.real = backend.runtime

    def __getattr__(self, name):
        return getattr(self.real, name)

    def check_fit(self, path, facts, device):
        check_package(read_package_facts(path), torch.device(device), path.name, Here(torch.__version__, "another"))


@pytest.fixture
def elsewhere(registering):
    """Until the test ends this is another machine, once it is called."""
    backend = find_backend("pt2")
    return lambda: registering(dataclasses.replace(backend, runner=Elsewhere(backend)))


@pytest.fixture
def with_package(quick_export, builds, package):
    """Within a test, exports take the compiled package too."""
    return builds.by(PACKAGE, Compiled(package)).asked


@pytest.fixture
def bundle(with_package, small_checkpoint, small_profile, tmp_path):
    """Path of an accepted bundle with a package."""
    out = tmp_path / "with.tempme"
    export.export(small_checkpoint, small_profile, out, pt2=True)
    return out


@pytest.fixture
def command(run_command):
    """Run tempme-export in this process; returns exit code, stdout and stderr."""
    return partial(run_command, export_cli.main)


@pytest.fixture(scope="module")
def limit(small_recipe, video_rounding):
    """How far embeddings of clips whose decisions are safe may lie apart, whatever compiled what made them."""
    return video_rounding(small_recipe.backbone).difference


@pytest.fixture(scope="module")
def frames(small_selftest):
    """uint8 [4, 48, 48, 3]: a moving clip."""
    return small_selftest.clips[0]


class TestExport:
    def test_accepted_and_accounted_for(self, bundle, package, with_package):
        opened = open_bundle(bundle)
        verify_files(opened)
        manifest = opened.manifest
        assert with_package == [("fp32", "cpu", False)]
        assert manifest["files"][PACKAGE.file]["sha256"] == file_sha256(package)
        facts = manifest["pt2"]
        assert (facts["torch"], facts["device"], facts["precision"]) == (torch.__version__, "cpu", "fp32")
        assert facts["max_batch"] == 8
        reports = {report["artifact"]: report for report in manifest["parity"]}
        assert list(reports) == [VIDEO_ONNX.file, TEXT_ONNX.file, PACKAGE.file]
        assert reports[PACKAGE.file]["backend"] == "AOTInductor, cpu" and reports[PACKAGE.file]["status"] == "passed"
        assert [check["name"].split(":")[0] for check in reports[PACKAGE.file]["checks"]] == [
            "decisions changed",
            "video, batch 6",
            "unit length, video",
            "video, batch 1",
            "video, batch 3",
            "video, batch 8",
        ]

    def test_without_the_flag_there_is_none(self, small_bundle):
        assert open_bundle(small_bundle).manifest["pt2"] is None
        assert not (small_bundle / PACKAGE.file).exists()

    def test_command(self, command, with_package, small_checkpoint, small_profile, tmp_path):
        code, out, err = command(
            small_checkpoint, "--profile", small_profile, "--out", tmp_path / "out", "--pt2", "--json"
        )
        assert code == 0
        assert json.loads(out)["manifest"]["pt2"]["precision"] == "fp32"
        assert (
            f"wrote      {PACKAGE.file}" in err
            and f"parity     {PACKAGE.file} on " in err
            and "PASS" in err
            and "FAIL" not in err
        )

    def test_dry_run_names_the_file(self, command, small_checkpoint, small_profile, tmp_path):
        arguments = (small_checkpoint, "--profile", small_profile, "--out", tmp_path / "out", "--dry-run", "--json")
        _, out, err = command(*arguments, "--pt2")
        assert json.loads(out)["files"] == ["selftest.npz", VIDEO_ONNX.file, TEXT_ONNX.file, PACKAGE.file]
        assert PACKAGE.file in err
        _, out, err = command(*arguments)
        assert json.loads(out)["files"] == ["selftest.npz", VIDEO_ONNX.file, TEXT_ONNX.file] and PACKAGE.file not in err
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("dry", [[], ["--dry-run"]])
    def test_no_compiler(self, command, builds, small_checkpoint, small_profile, tmp_path, dry):
        from torch._inductor import config

        builds.failing(VIDEO_ONNX, AssertionError("worked before it looked"))
        arguments = (small_checkpoint, "--profile", small_profile, "--out", tmp_path / "out", "--pt2", *dry)
        with config.patch({"cpp.cxx": (None, "no-such-compiler")}):
            code, out, err = command(*arguments)
        assert (code, out) == (4, "")
        assert "error: a .pt2 package needs a C++ compiler" in err and "Traceback" not in err
        assert list(tmp_path.iterdir()) == []

    def test_build_failure(self, command, quick_export, builds, small_checkpoint, small_profile, tmp_path):
        builds.failing(PACKAGE, ExportError("video.pt2 could not be compiled by torch\nlast line"))
        code, _, err = command(small_checkpoint, "--profile", small_profile, "--out", tmp_path / "out", "--pt2")
        assert code == 6 and "could not be compiled by torch\nlast line" in err
        assert list(tmp_path.iterdir()) == []


class TestParity:
    @pytest.mark.parametrize(
        ("output", "check"), [("video_embedding", "1 - cosine"), ("assign_02", "decisions changed")]
    )
    def test_a_wrong_package_is_refused(
        self, with_package, runs, small_checkpoint, small_profile, tmp_path, output, check
    ):
        """Wrong in the embedding alone, and in one decision alone."""
        runs("pt2", answer=lambda found: {**found, output: np.roll(found[output], 1, axis=-1)})
        with pytest.raises(ParityError, match=rf"parity failed\. video\.pt2: .*{check}"):
            export.export(small_checkpoint, small_profile, tmp_path / "out", pt2=True)
        assert [path.name for path in tmp_path.iterdir()] == ["out.failed"]

    def test_a_package_that_does_not_load_is_no_acceptance(
        self, with_package, elsewhere, small_checkpoint, small_profile, tmp_path
    ):
        elsewhere()
        with pytest.raises(BackendError, match="Export the bundle again on this machine"):
            export.export(small_checkpoint, small_profile, tmp_path / "out", pt2=True)
        assert list(tmp_path.iterdir()) == []

    def test_verify(self, bundle):
        reports = verify.verify(bundle)
        assert [(report.artifact, report.status) for report in reports] == [
            (VIDEO_ONNX.file, "passed"),
            (TEXT_ONNX.file, "passed"),
            (PACKAGE.file, "passed"),
        ]

    def test_verify_elsewhere_says_that_it_was_not_run(self, bundle, command, elsewhere):
        elsewhere()
        code, _, err = command("verify", bundle)
        said = " ".join(err.split())  # lines are folded by the length of the processor's name
        assert code == 0 and "NOT RUN" in said and "and this is" in said and "nothing is proven" in said

    def test_verify_notices_a_changed_byte(self, bundle):
        content = bytearray((bundle / PACKAGE.file).read_bytes())
        content[len(content) // 2] ^= 1
        (bundle / PACKAGE.file).write_bytes(content)
        with pytest.raises(BundleError, match=r"video\.pt2 was changed"):
            verify.verify(bundle)


class TestUse:
    def test_load(self, bundle, frames, limit):
        with tempme_export.load(bundle) as plain, tempme_export.load(bundle, backend="pt2") as model:
            assert model.device == "cpu"
            for videos in (frames, [frames] * 5, []):
                expected, found = plain.encode_video(videos), model.encode_video(videos)
                assert found.dtype == np.float32 and found.shape == expected.shape
                np.testing.assert_allclose(found, expected, rtol=0, atol=limit)
            assert isinstance(model._runner("video"), Pt2Runner)

    def test_every_thread_gets_its_own_embeddings(self, bundle, frames, small_recipe, safe_embedding, limit):
        """But for rounding: a new thread computes with as many OpenMP threads as the machine has cores."""
        videos = [np.roll(frames, i, axis=2) for i in range(8)]
        safe_embedding(small_recipe, np.stack([preprocess_for(small_recipe)(video) for video in videos]))
        with tempme_export.load(bundle, backend="pt2") as model:
            expected = np.stack([model.encode_video(video) for video in videos])
            apart = np.abs(expected[:, None] - expected).max(axis=-1) + np.eye(8)
            assert apart.min() > 1e-3, "a mix-up would show"
            with ThreadPoolExecutor(8) as pool:
                for _ in range(3):
                    found = np.stack(list(pool.map(model.encode_video, videos)))
                    np.testing.assert_allclose(found, expected, rtol=0, atol=limit)

    def test_pickled_and_copied(self, bundle, frames):
        with tempme_export.load(bundle, backend="pt2") as model:
            expected = model.encode_video(frames)
            for again in (pickle.loads(pickle.dumps(model)), copy.copy(model)):
                np.testing.assert_array_equal(again.encode_video(frames), expected)  # the same code, in the same thread

    def test_threads_are_the_whole_process_s(self, bundle):
        with pytest.raises(UsageError, match=r"torch\.set_num_threads"):
            tempme_export.load(bundle, backend="pt2", threads=2)

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
    def test_a_child_is_refused(self, bundle):
        """torch's threads do not come along, and a call would wait for them; both processes end as they should."""
        program = f"""
import os, sys
import numpy as np
import torch
import tempme_export
from tempme_export.errors import BackendError
torch.set_num_threads(4)
frames = np.zeros((4, 50, 50, 3), np.uint8)
model = tempme_export.load({str(bundle)!r}, backend="pt2")
model.encode_video([frames] * 8)
pid = os.fork()
if pid == 0:
    for use in (lambda: model.encode_video(frames), lambda: tempme_export.load({str(bundle)!r}, backend="pt2")):
        try:
            use()
        except BackendError as error:
            assert "spawn" in str(error)
        else:
            sys.exit(3)
    tempme_export.load({str(bundle)!r}).encode_video(frames)
    sys.exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
model.encode_video(frames)
"""
        subprocess.run([sys.executable, "-c", program], timeout=120, check=True)

    def test_a_folder_that_code_cannot_be_unpacked_in(self, bundle, tmp_path, monkeypatch):
        monkeypatch.setenv("TMPDIR", str(tmp_path / "missing"))
        with pytest.raises(BackendError, match=r"unpacks its code into .*missing.*Set TMPDIR") as caught:
            tempme_export.load(bundle, backend="pt2")
        assert caught.value.exit_code == 4

    def test_a_folder_that_no_code_may_run_in(self, tmp_path):
        """Mounted so, where this process may mount."""
        mount = f"mount -t tmpfs -o noexec none {tmp_path}"
        if subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True).returncode:
            pytest.skip("needs to mount a file system")
        code = (
            "from tempme_export.errors import BackendError\n"
            "from tempme_export.runtime.pt2 import check_unpacking\n"
            "try:\n"
            "    check_unpacking('video.pt2')\n"
            "except BackendError as error:\n"
            "    print(error)\n"
        )
        command = ["unshare", "-m", "sh", "-c", f'{mount} && exec "$0" -c "$1"', sys.executable, code]
        environment = {**os.environ, "TMPDIR": str(tmp_path)}
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
        assert f"unpacks its code into {tmp_path}, which is mounted noexec" in done.stdout, done.stderr

    def test_a_bundle_without_one(self, small_bundle):
        with pytest.raises(BackendError, match=r"has no video\.pt2\. Export it with --pt2") as caught:
            tempme_export.load(small_bundle, backend="pt2")
        assert caught.value.exit_code == 4

    @pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
    def test_a_device_that_is_not_there(self, bundle):
        with pytest.raises(BackendError, match="CUDA"):
            tempme_export.load(bundle, backend="pt2", device="cuda")

    def test_batches_above_the_largest_run_in_parts(self, package, small_recipe, small_selftest, limit):
        rows = np.arange(19) % len(small_selftest.clips)
        pixels = np.stack([preprocess_for(small_recipe)(clip) for clip in small_selftest.clips])[rows]
        with Pt2Runner(package) as runner:
            found = runner.infer({"frames": pixels})
        expected = small_selftest.video_embedding[rows]
        np.testing.assert_allclose(found["video_embedding"], expected, rtol=0, atol=limit)
        first = small_recipe.schedule.merges[0].assign_name
        expected = small_selftest.assigns[0].reshape(len(small_selftest.clips), 4, -1)[rows]
        np.testing.assert_array_equal(found[first], expected.reshape(19 * 4, -1))

    def test_a_process_that_knows_only_torch(self, package, small_recipe, small_selftest, limit, tmp_path):
        pixels = np.stack([preprocess_for(small_recipe)(clip) for clip in small_selftest.clips])
        np.save(tmp_path / "frames.npy", pixels)
        script = (
            "import sys, numpy, torch, torch._inductor\n"
            "model = torch._inductor.aoti_load_package(sys.argv[1])\n"
            "found = model(torch.from_numpy(numpy.load(sys.argv[2])))\n"
            "numpy.save(sys.argv[3], found['video_embedding'].numpy())\n"
            "assert 'tempme_export' not in sys.modules\n"
        )
        arguments = [str(path) for path in (package, tmp_path / "frames.npy", tmp_path / "found.npy")]
        environment = {**os.environ, "TMPDIR": str(tmp_path)}  # torch unpacks there and may leave it at the end
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=300, env=environment
        )
        assert done.returncode == 0, done.stderr
        found = np.load(tmp_path / "found.npy")
        np.testing.assert_allclose(found, small_selftest.video_embedding, rtol=0, atol=limit)


class TestBench:
    @staticmethod
    def quiet(_):
        pass

    def candidates(self, case, names, folder, known=None):
        return on_backends(case, names, "cpu", folder, self.quiet, known)

    def test_measured_beside_the_original(self, bundle, small_recipe, tmp_path):
        candidates, _ = self.candidates(Case(small_recipe, bundle), ("pt2",), tmp_path)
        protocol = Protocol(seconds=0.05, samples=5, budget=0.2, resamples=20)
        request = RunSettings(batches=(1, 3), device="cpu", protocol=protocol, command="tempme-bench")
        done = run(candidates, request, stage=self.quiet, progress=self.quiet)
        assert [(row.backend, row.batch) for row in done.rows] == [
            ("original", 1),
            ("pt2", 1),
            ("original", 3),
            ("pt2", 3),
        ]
        row = done.rows[1]
        assert row.artifact_sha256 == file_sha256(bundle / PACKAGE.file)
        assert row.precision == "fp32" and row.build_s is None
        assert row.parity and row.one_minus_cosine <= TOLERANCES["fp32"].cosine_distance

    def test_none_in_the_bundle_is_one_line(self, small_bundle, small_recipe, tmp_path):
        few = {name: known_candidates()[name] for name in ("original", "pt2")}
        _, missing = self.candidates(Case(small_recipe, small_bundle), None, tmp_path, few)
        assert f"{small_bundle} has no video.pt2" in missing["pt2"]
        with pytest.raises(BackendError, match=r"there is no video\.pt2.*tempme-export CKPT --pt2"):
            self.candidates(Case(small_recipe), ("pt2",), tmp_path)
