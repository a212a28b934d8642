"""`tempme-export --expose-merges`: a bundle whose video.onnx also says what it merged is as good as any other."""

import csv
import dataclasses
import json
from functools import partial

import numpy as np
import pytest
import torch

import tempme_export
from tempme_export.artifacts.bundle import MANIFEST, Bundle, open_bundle, verify_files, write_manifest
from tempme_export.artifacts.registry import TEXT_ONNX, VIDEO_ONNX
from tempme_export.cli import console
from tempme_export.encoder.backbone import open_clip_backbone
from tempme_export.encoder.profile import load_profile
from tempme_export.errors import UsageError
from tempme_export.media.preprocess import preprocess_for
from tempme_export.media.render import render_clip
from tempme_export.media.stored_tokenizer import TOKENIZER
from tempme_export.media.video import read_frames
from tempme_export.pipeline.spec import ExportSpec
from tempme_export.runtime.ort import OrtRunner
from tempme_export.training.init import draw_clip

pytestmark = pytest.mark.usefixtures("one_thread")

CLIPS = 8  # the least that a gate takes
UNMERGED = "mini-8f-none"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Eight clips with a caption each in `data.csv`, and the checkpoint `mini.pth`. Do not write there."""
    folder = tmp_path_factory.mktemp("source")
    with (folder / "data.csv").open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["video", "caption"])
        for i in range(CLIPS):
            render_clip(folder / f"{i}.mp4", seconds=1, fps=8, size=(64, 48), seed=i)
            rows.writerow([f"{i}.mp4", f"shapes number {i}"])
    state = draw_clip(open_clip_backbone("tempme-mini"), seed=3).tensors
    torch.save({f"clip.{name}": tensor for name, tensor in state.items()}, folder / "mini.pth")
    return folder


@pytest.fixture(scope="module")
def recipe(folder):
    return ExportSpec(folder / "mini.pth", "mini-8f", batch=(1, 2, 3)).recipe()


@pytest.fixture(scope="module")
def with_merges(one_thread, folder, tmp_path_factory):
    """Path of a bundle that was built with its merges as outputs, verified and gated for real. Do not write there."""
    out = tmp_path_factory.mktemp("with_merges") / "mini.tempme"
    tempme_export.export(
        folder / "mini.pth", "mini-8f", out, batch=(1, 2, 3), expose_merges=True, gate=f"{folder / 'data.csv'}"
    )
    return out


@pytest.fixture
def command(tempme_export, folder, tmp_path):
    """Run `tempme-export` on the small model; returns exit code, stdout and stderr."""
    return partial(tempme_export, folder / "mini.pth", "--out", tmp_path / "out")


class TestBundle:
    def test_manifest(self, with_merges):
        bundle = open_bundle(with_merges)
        verify_files(bundle)
        assert bundle.manifest["trace"] is True

    def test_a_manifest_without_the_word_is_read(self, with_merges, tmp_path):
        """Bundles of earlier versions do not say."""
        rest = {key: value for key, value in open_bundle(with_merges).manifest.items() if key != "trace"}
        write_manifest(tmp_path, {key: rest[key] for key in rest.keys() - {"format", "files", "sha256"}})
        assert open_bundle(tmp_path).manifest.get("trace") is None

    def test_its_outputs(self, with_merges, recipe):
        names = [merge.assign_name for merge in recipe.schedule.merges]
        assert len(names) == 6, "a merge in each of four blocks, and in two of them before attention too"
        with OrtRunner(with_merges / VIDEO_ONNX.file) as runner:
            found = runner.infer({"frames": np.zeros((2, 8, 3, 64, 64), np.float32)})
        assert list(found) == ["video_embedding", *names]
        assert {found[name].dtype for name in names} == {np.dtype(np.int32)}

    def test_parity_looked_at_everything(self, with_merges):
        reports = open_bundle(with_merges).manifest["parity"]
        statuses = [(report["artifact"], report["status"]) for report in reports]
        assert statuses == [(name, "passed") for name in (VIDEO_ONNX.file, TEXT_ONNX.file, TOKENIZER)]
        named = {check["name"] for check in reports[0]["checks"]}
        assert {"decisions changed", "merged tokens, relative RMS"} <= named
        assert [report["status"] for report in open_bundle(with_merges).manifest["gate"]["reports"]] == ["passed"]

    def test_it_verifies(self, with_merges):
        assert [report.status for report in tempme_export.verify(with_merges)] == ["passed"] * 3

    def test_it_encodes_as_the_original_path(self, with_merges, folder, recipe, safe_embedding, video_rounding):
        videos = [str(folder / f"{i}.mp4") for i in range(3)]
        frames = np.stack([preprocess_for(recipe)(read_frames(video, 8)) for video in videos])
        expected = safe_embedding(recipe, frames)
        with tempme_export.load(with_merges) as model:
            found = model.encode_video(videos)
        np.testing.assert_allclose(found, expected, rtol=0, atol=video_rounding(recipe.backbone).difference)


class TestWords:
    def test_the_bundle_is_shown_with_it(self, with_merges, capsys):
        console.show_bundle(open_bundle(with_merges))
        assert "video.onnx also returns 6 merges, assign_00 to assign_05" in capsys.readouterr().err

    @pytest.mark.parametrize("change", [{"trace": False}, {}])
    def test_and_without_it_where_there_is_none(self, with_merges, change, capsys):
        bundle = open_bundle(with_merges)
        manifest = {key: value for key, value in bundle.manifest.items() if key != "trace"} | change
        console.show_bundle(Bundle(bundle.path, manifest))
        err = capsys.readouterr().err
        assert VIDEO_ONNX.file in err and "merges     " not in err

    @pytest.mark.parametrize("arguments", [(), ("--expose-merges",)])
    def test_the_option_reaches_the_exporters(self, command, builds, arguments):
        specs = builds.seeing(VIDEO_ONNX)
        assert command(*arguments)[0] == 2
        (spec,) = specs
        assert spec.expose_merges is bool(arguments)

    def test_json(self, command, with_merges, builds):
        for artifact in (VIDEO_ONNX, TEXT_ONNX):
            builds.copying(artifact, with_merges)
        code, out, _ = command("--profile", "mini-8f", "--batch-range", "1:2:3", "--expose-merges", "--json")
        assert code == 0 and json.loads(out)["manifest"]["trace"] is True

    def test_dry_run(self, command, tmp_path):
        assert command("--profile", "mini-8f", "--expose-merges", "--dry-run")[0] == 0
        assert not (tmp_path / "out").exists()


class TestRefused:
    @pytest.mark.parametrize("mode", [(), ("--dry-run",)])
    def test_a_model_that_merges_nothing(self, command, tmp_path, mode):
        code, _, err = command("--profile", UNMERGED, "--expose-merges", *mode)
        assert code == 2
        assert "profile mini-8f-none merges no tokens" in err and "Leave out --expose-merges" in err
        assert not (tmp_path / "out").exists()

    def test_only_with_merge_outputs(self, folder):
        assert ExportSpec(folder / "mini.pth", UNMERGED).recipe().schedule.merges == ()

    def test_in_python(self, folder, tmp_path):
        profile = dataclasses.replace(load_profile(UNMERGED), name="other")
        with pytest.raises(UsageError, match="profile other merges no tokens"):
            tempme_export.export(folder / "mini.pth", profile, tmp_path / "out", expose_merges=True)
        assert not (tmp_path / "out").exists()


def test_the_default_is_without(small_bundle):
    assert json.loads((small_bundle / MANIFEST).read_text())["trace"] is False
    with OrtRunner(small_bundle / VIDEO_ONNX.file) as runner:
        found = runner.infer({"frames": np.zeros((1, 4, 3, 48, 48), np.float32)})
    assert list(found) == ["video_embedding"]
