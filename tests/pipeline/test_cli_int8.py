"""`tempme-export --precision int8`: what it is refused with, and what stands in the bundle."""

import json

import numpy as np
import pytest
import torch

import tempme_export
from tempme_export.artifacts.bundle import open_bundle, verify_files
from tempme_export.artifacts.registry import TEXT_ONNX, VIDEO_ONNX
from tempme_export.parity.selftest import draw_clip
from tempme_export.quantization.products import products
from tempme_export.retrieval import load
from tempme_export.runtime.ort import OrtRunner
from tempme_export.runtime.processor import videos_at_once

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def run(tempme_export, small_checkpoint, small_profile, tmp_path):
    """Export the small model to `tmp_path/out`; returns exit code, stdout and stderr."""

    def export(*arguments, checkpoint=small_checkpoint):
        return tempme_export(checkpoint, "--profile", small_profile, "--out", tmp_path / "out", *arguments)

    return export


@pytest.fixture(scope="session")
def diverged(small_checkpoint, tmp_path_factory):
    """The small checkpoint with weights that are numbers and activations that overflow."""
    state = torch.load(small_checkpoint, weights_only=True)
    (name,) = [name for name in state if name.endswith("visual.transformer.resblocks.1.ln_2.weight")]
    state[name] *= 1e25
    path = tmp_path_factory.mktemp("diverged") / "diverged.pth"
    torch.save(state, path)
    return path


@pytest.fixture(scope="session")
def clips(tmp_path_factory):
    """Writes .npz files of so many clips, of so many frames."""
    folder = tmp_path_factory.mktemp("clips")

    def save(count, frames=4):
        path = folder / f"{count}-{frames}.npz"
        np.savez(path, clips=np.stack([draw_clip("moving", frames, 48, 70 + i) for i in range(count)]))
        return path

    return save


def assert_refused(result, tmp_path, code, *words):
    """One line of error on stderr with these words, and nothing left behind."""
    found, out, err = result
    assert found == code, err
    assert out == "" and "Traceback" not in err
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    for word in words:
        assert word in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
class TestUsage:
    """Exit 2."""

    def test_without_calibration(self, run, tmp_path, dry):
        assert_refused(run("--precision", "int8", *dry), tmp_path, 2, "give --calibrate with a folder", "at least 8")

    @pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
    def test_calibration_without_int8(self, run, tmp_path, clips, dry, precision):
        result = run("--precision", precision, "--calibrate", clips(2), *dry)
        assert_refused(result, tmp_path, 2, f"precision {precision}", "Calibration is for --precision int8")

    @pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
    def test_ranges_without_int8(self, run, tmp_path, dry, precision):
        result = run("--precision", precision, "--ranges", "minmax", *dry)
        assert_refused(result, tmp_path, 2, "--ranges minmax", f"precision {precision}", "for --precision int8")

    def test_unknown_ranges(self, run, tmp_path, clips, dry):
        result = run("--precision", "int8", "--calibrate", clips(2), "--ranges", "widest", *dry)
        assert_refused(result, tmp_path, 2, "--ranges: found 'widest', expected one of minmax, percentile, entropy")

    @pytest.mark.parametrize("flags", [["--pt2"], ["--device", "cuda"], ["--device", "cuda:1"]])
    def test_not_on_a_cpu(self, run, tmp_path, clips, dry, flags):
        result = run("--precision", "int8", "--calibrate", clips(2), *flags, *dry)
        assert_refused(result, tmp_path, 2, "int8 is for ONNX on CPUs", " ".join(flags), "fp16 or bf16")


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
class TestInput:
    """Exit 3."""

    def test_no_readable_clip(self, run, tmp_path, tmp_path_factory, dry):
        pytest.importorskip("av")
        folder = tmp_path_factory.mktemp("broken")
        (folder / "a.mp4").write_bytes(b"no video")
        result = run("--precision", "int8", "--calibrate", folder, *dry)
        assert_refused(result, tmp_path, 3, "found 0 calibration clips", "a.mp4")

    def test_another_frame_count(self, run, tmp_path, clips, dry):
        result = run("--precision", "int8", "--calibrate", clips(2, frames=3), *dry)
        assert_refused(result, tmp_path, 3, "[2, 3, 48, 48, 3]", "clips of 4 frames")

    def test_no_such_folder(self, run, tmp_path, dry):
        result = run("--precision", "int8", "--calibrate", "no/such/folder", *dry)
        assert_refused(result, tmp_path, 3, "no/such/folder", "expected a folder of videos")


def test_a_checkpoint_that_diverged(run, clips, diverged, tmp_path):
    code, _, err = run("--precision", "int8", "--calibrate", clips(2), checkpoint=diverged)
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 3 and "Traceback" not in err and list(tmp_path.iterdir()) == []
    assert "diverged.pth, video tower: found an input of blocks.1.mlp.c_fc that is not finite" in line


def test_a_dry_run_says_what_scales_would_come_from(run, clips, tmp_path):
    code, out, err = run("--precision", "int8", "--calibrate", clips(3), "--dry-run", "--json")
    assert code == 0, err
    assert json.loads(out)["calibration"]["clips"] == 3 and "found 3 calibration clips" in err
    assert list(tmp_path.iterdir()) == []


def test_help(run):
    code, out, _ = run("--help")
    assert code == 0
    for word in ("int8", "--calibrate", "VIDEOS|DATA", "--ranges", "minmax|percentile|entropy"):
        assert word in " ".join(out.split())


def check_parts(bundle):
    """As many videos in one run as memory says, and no embedding changes by it."""
    tokens = bundle.schedule.frames * bundle.schedule.tokens_per_frame
    with load(bundle) as model:
        assert [model._runner(name).max_batch for name in ("video", "text")] == [videos_at_once(tokens), 256]
    videos = np.stack([model.preprocess(draw_clip("moving", 4, 48, 90 + i)) for i in range(5)])
    found = []
    for at_once in (1, 2, 5):
        with OrtRunner(bundle.path / VIDEO_ONNX.file, max_batch=at_once) as runner:
            found.append(runner.infer({"frames": videos})["video_embedding"])
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])
    assert len(np.unique(found[0], axis=0)) == 5


def test_few_clips_are_warned_of_and_exported(run, clips, tmp_path, small_bundle, small_recipe):
    code, out, err = run("--precision", "int8", "--calibrate", clips(3), "--ranges", "percentile", "--json")
    assert code == 0, err
    assert "warning: found 3 calibration clips, expected at least 8" in err
    for word in (
        "calibration",
        "3 clips, 64 texts (random tokens)",
        "int8       video: ",
        "int8       text: ",
        "processor",
    ):
        assert word in err
    bundle = open_bundle(tmp_path / "out")
    verify_files(bundle)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert json.loads(out)["manifest"] == bundle.manifest
    assert bundle.manifest["precision"] == "int8"
    said = bundle.manifest["quantization"]
    assert said["method"] == "percentile"
    assert said["calibration"]["clips"] == 3 and said["calibration"]["source"] == str(clips(3))
    assert len(said["calibration"]["warnings"]) == 1 and said["calibration"]["skipped"] == {}
    from tempme_export.encoder.model import TextEncoder

    tried = {one["product"] for one in said["text"]["sensitivities"]}
    assert tried == {*products(TextEncoder(small_recipe)), "embedding"}
    assert said["video"]["ranges"]["conv1.linear"] == [0.0, 1.0]
    assert {report["status"] for report in bundle.manifest["parity"]} == {"passed"}
    for name in (VIDEO_ONNX.file, TEXT_ONNX.file):
        assert (bundle.path / name).stat().st_size < 0.45 * (small_bundle / name).stat().st_size
    reports = tempme_export.verify(bundle.path)
    assert {report.status for report in reports} == {"passed"}
    check_parts(bundle)


def test_other_precisions_are_run_as_they_come(small_bundle):
    with tempme_export.load(small_bundle) as model:
        assert model._runner("video").max_batch is None


def test_other_precisions_say_that_nothing_is_quantised(small_bundle):
    assert open_bundle(small_bundle).manifest["quantization"] is None
