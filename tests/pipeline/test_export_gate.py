"""`tempme-export --gate`: a real bundle of a real model, evaluated on rendered clips; what refusals leave."""

import dataclasses
import json
import re
import shutil
from functools import partial

import numpy as np
import pytest
import torch

from tempme_export.artifacts.backend import Folder
from tempme_export.artifacts.bundle import MANIFEST, open_bundle, verify_files, write_manifest
from tempme_export.artifacts.registry import TEXT_ONNX, VIDEO_ONNX
from tempme_export.cli import console
from tempme_export.data.annotations import open_data
from tempme_export.data.clip import Clip
from tempme_export.encoder.backbone import open_clip_backbone
from tempme_export.encoder.recipe import prepare
from tempme_export.encoder.reference import MergeLog, ReferenceVideo
from tempme_export.errors import BackendError, InputError, ParityError, PrecisionError, UsageError
from tempme_export.evaluation.gate import run_gate
from tempme_export.evaluation.gate_data import MIN_VIDEOS, open_gate
from tempme_export.evaluation.original import Original
from tempme_export.media.preprocess import preprocess_for
from tempme_export.media.video import read_frames
from tempme_export.parity.checks import cosine_distance
from tempme_export.parity.making import make_selftest
from tempme_export.parity.selftest import SAFE_GAP
from tempme_export.parity.tolerance import RetrievalTolerance
from tempme_export.pipeline import export as pipeline
from tempme_export.pipeline.spec import ExportSpec
from tempme_export.training.init import draw_clip

pytestmark = pytest.mark.usefixtures("one_thread")

CLIPS = 9
BATCH = (1, 4, 5)
T2V, V2T = "text-to-video", "video-to-text"


@pytest.fixture(scope="module")
def folder(gate_folder):
    return gate_folder


@pytest.fixture(scope="module")
def recipe(folder):
    return ExportSpec(folder / "mini.pth", "mini-8f", batch=BATCH).recipe()


@pytest.fixture(scope="module")
def told(gate_told):
    return gate_told


@pytest.fixture(scope="module")
def selftest(recipe):
    return make_selftest(recipe)


@pytest.fixture
def quick(gated, builds):
    """Exports copy the graphs of `gated`; all else is real."""
    for artifact in (VIDEO_ONNX, TEXT_ONNX):
        builds.copying(artifact, gated)


@pytest.fixture
def export(folder, quick, tmp_path):
    """Export the small model to `out` with the gate."""

    def run(**options):
        options = {"gate": folder / "data.csv", "batch": BATCH, **options}
        return pipeline.export(folder / "mini.pth", "mini-8f", tmp_path / "out", **options)

    return run


@pytest.fixture
def command(tempme_export, folder, quick, tmp_path):
    """Run `tempme-export` on the small model; returns exit code, stdout and stderr."""
    return partial(
        tempme_export, folder / "mini.pth", "--profile", "mini-8f", "--out", tmp_path / "out", "--batch-range", "1:4:5"
    )


@pytest.fixture
def spoiled_texts(runs, selftest):
    """Under the gate alone, text.onnx answers with the texts of its neighbours: parity asks for fewer at once."""
    texts = len(selftest.token_ids)

    def spoil(found):
        rows = found["text_embedding"]
        return {"text_embedding": np.roll(rows, 1, axis=0) if len(rows) > texts else rows}

    assert texts < 2 * CLIPS
    return runs("text-ort", answer=spoil)


class TestPasses:
    def test_manifest(self, gated, folder, recipe, video_rounding, text_rounding):
        bundle = open_bundle(gated)
        verify_files(bundle)
        found = bundle.manifest["gate"]
        assert (found["data"], found["videos"], found["captions"], found["skipped"]) == ("data.csv", 9, 18, {})
        assert found["sha256"] == open_gate(folder / "data.csv", None, bundle.profile).sha256
        (comparison,), (report,) = found["comparisons"], found["reports"]
        assert found["original"] == comparison["metrics"], "float32 loses nothing here"
        assert found["original"][T2V]["queries"] == found["original"][V2T]["candidates"] == 18
        assert found["original"][V2T]["queries"] == found["original"][T2V]["candidates"] == 9
        assert (report["artifact"], report["status"]) == ("gate video.onnx", "passed")
        assert len(report["checks"]) == 13 and all(check["passed"] for check in report["checks"])
        assert comparison["artifact"] == VIDEO_ONNX.file
        assert comparison["decisions"]["videos"] == 0 and comparison["drift"]["videos"] == 9
        differences = (one(recipe.backbone).difference for one in (video_rounding, text_rounding))
        assert 0 < comparison["drift"]["largest"] <= max(differences) ** 2 / 2
        assert bundle.manifest["tolerances"]["retrieval"] == dataclasses.asdict(RetrievalTolerance(0.1, 0.999, 0.999))

    def test_facts_in_order_and_every_clip_counted(self, gated, told):
        assert told.kinds == ["Recipe", "SelfTest", *["Written"] * 3, "Parity", "GateData", "Gate", "Bundle"]
        assert told.amounts("gate: videos through both paths") == [(i, 9) for i in range(10)]
        assert told.amounts("gate: captions through both paths") == [(0, 18), (18, 18)]

    def test_nothing_lies_beside_it(self, gated):
        assert list(gated.parent.iterdir()) == [gated]

    def test_data_already_read(self, export, folder):
        data = open_data(folder / "data.csv", "test")
        bundle = export(gate=data.select(range(8)))
        assert bundle.manifest["gate"]["videos"] == 8 and bundle.manifest["gate"]["captions"] == 16

    def test_a_bundle_of_before(self, gated, tmp_path):
        """Its manifest has no gate; it opens and verifies."""
        folder = shutil.copytree(gated, tmp_path / "old.tempme")
        manifest = json.loads((folder / MANIFEST).read_text())
        rest = {key: manifest[key] for key in manifest if key not in ("gate", "format", "files", "sha256")}
        write_manifest(folder, rest)
        verify_files(open_bundle(folder))

    def test_the_command_shows_both_paths(self, command, folder, tmp_path):
        code, out, err = command("--gate", folder / "data.csv", "--json")
        assert code == 0, err
        for words in (
            "gate       data.csv   9 videos, 18 captions",
            "started    gate: videos through both paths, 9 videos",
            "finished   gate: captions through both paths",
            "top-10 overlap 1.0000, rank correlation 1.0",
            "smallest centred cosine: video 1.0",
            "no decision changed in 9 videos",
            "numeric drift in the texts and 9 of 9 videos; 1 - cosine ",
            "text-to-video: R@1 lost, points",
        ):
            assert words in err, words
        rows = [line.split() for line in err.splitlines() if line.startswith((T2V, V2T))]
        assert [row[:2] for row in rows] == [
            [direction, label] for direction in (T2V, V2T) for label in ("R@1", "R@5", "R@10", "R-Sum", "MdR", "MnR")
        ]
        assert all(row[2] == row[3] and row[4] == "+0.00" for row in rows)
        assert "FAIL" not in err
        manifest = json.loads(out)["manifest"]
        assert manifest["gate"]["original"][T2V]["r1"] == pytest.approx(float(rows[0][2]), abs=0.005)


class TestRefuses:
    def test_the_build_is_kept_aside(self, command, folder, spoiled_texts, tmp_path):
        code, out, err = command("--gate", folder / "data.csv", "--json")
        assert (code, out) == (5, "")
        assert "FAIL" in err and "Traceback" not in err
        (line,) = [line for line in err.splitlines() if line.startswith("error: parity failed. gate video.onnx: ")]
        assert "top-10 overlap is " in line and f"kept as {tmp_path / 'out.failed'}" in line
        assert [path.name for path in tmp_path.iterdir()] == ["out.failed"]
        failed = open_bundle(tmp_path / "out.failed")
        verify_files(failed)
        assert [report["status"] for report in failed.manifest["parity"]] == ["passed"] * 3
        assert failed.manifest["gate"]["reports"][0]["status"] == "failed"
        assert "text: 1 - cosine" in [
            check["name"] for check in failed.manifest["gate"]["reports"][0]["checks"] if not check["passed"]
        ]

    def test_an_accepted_bundle_stays_where_it_is(self, export, request, tmp_path, recording):
        heard = recording()
        bundle = export(gate=None, progress=heard)
        assert bundle.manifest["gate"] is None and not {"Gate", "GateData"} & set(heard.kinds)
        before = (tmp_path / "out" / MANIFEST).read_bytes()
        request.getfixturevalue("spoiled_texts")
        with pytest.raises(ParityError, match=r"gate video\.onnx: text-to-video: top-10 overlap is "):
            export(force=True)
        assert (tmp_path / "out" / MANIFEST).read_bytes() == before
        assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.failed"]

    def test_parity_comes_first(self, export, runs, tmp_path, recording):
        """What computes something else is not tried on videos."""
        runs("ort", answer=lambda found: {**found, "video_embedding": -found["video_embedding"]})
        told = recording()
        with pytest.raises(ParityError, match=r"video\.onnx: video, batch"):
            export(progress=told)
        assert "Parity" in told.kinds and not {"Gate", "GateData"} & set(told.kinds)
        assert open_bundle(tmp_path / "out.failed").manifest["gate"] is None

    def test_weights_of_another_model(self, gated, folder):
        other = draw_clip(open_clip_backbone("tempme-mini"), seed=4)
        recipe = prepare(other, "mini-8f")
        found = run_gate(recipe, Folder(gated, "fp32"), open_gate(folder / "data.csv", None, recipe.profile))
        failed = {check.name for check in found.reports[0].checks if not check.passed}
        assert {f"{T2V}: rank agreement", f"{V2T}: rank agreement", "text: 1 - cosine"} <= failed
        assert found.comparisons[0].decisions.videos == 9

    def test_changed_decisions_are_counted(self, gated, folder, recipe):
        """The original's attention in one block is nudged: the graph decides as the original does without that."""
        name = "visual.transformer.resblocks.1.attn.in_proj_weight"
        tensors = dict(recipe.checkpoint.tensors)
        noise = torch.randn(tensors[name].shape, generator=torch.Generator().manual_seed(0))
        tensors[name] = tensors[name] + 1e-2 * noise
        nudged = dataclasses.replace(recipe, checkpoint=dataclasses.replace(recipe.checkpoint, tensors=tensors))
        data = open_data(folder / "data.csv", "test")
        preprocess, logs = preprocess_for(recipe), (MergeLog(), MergeLog())
        frames = torch.from_numpy(np.stack([preprocess(read_frames(path, 8)) for path in data.paths]))
        for one, log in zip((recipe, nudged), logs, strict=True):
            ReferenceVideo(one).video_feature(frames, log=log)
        gaps = [step.gap.reshape(CLIPS, -1).amin(dim=1) for log in logs for step in log.steps]
        smallest = torch.stack(gaps).amin(dim=0)
        kept = smallest.argsort(descending=True)[:MIN_VIDEOS].sort().values  # the ninth hangs on a processor's rounding
        assert smallest[kept].min() > SAFE_GAP / 2
        asked = open_gate(data.select(kept.tolist()), None, recipe.profile)
        (comparison,) = run_gate(nudged, Folder(gated, "bf16"), asked).comparisons
        steps = list(zip(*(log.steps for log in logs), strict=True))
        differs = torch.cat([(a.assign != b.assign).reshape(CLIPS, -1)[kept] for a, b in steps], dim=1)
        assert 0 < differs.any(dim=1).sum() < len(kept)
        assert comparison.decisions.videos == differs.any(dim=1).sum()
        assert comparison.drift.videos == len(kept) - comparison.decisions.videos
        assert comparison.changed_tokens == pytest.approx(differs.float().mean().item(), rel=1e-6)
        assert 0 < comparison.largest_gap < 1e-2
        assert comparison.centred_cosine["text"] == pytest.approx(1, abs=1e-9)


class TestNotRun:
    @pytest.fixture
    def without_kernels(self, runs):
        """Parity opens the graph twice; it cannot be opened after that."""

        def refuse(opened):
            if len(opened) > 2:
                raise PrecisionError(f"no kernel for {opened[-1]}")

        return runs("ort", before=refuse)

    def test_float32_is_an_error(self, export, without_kernels, tmp_path):
        with pytest.raises(BackendError, match=r"no kernel for video\.onnx"):
            export()
        assert list(tmp_path.iterdir()) == []

    def test_low_precision_is_said(self, command, without_kernels, folder):
        """The graphs are float32's, so parity runs; the gate does not."""
        code, out, err = command("--gate", folder / "data.csv", "--precision", "bf16", "--json")
        assert code == 0, err
        assert "NOT RUN" in err and "no kernel for video.onnx" in err
        assert re.search(r" done .* nothing is proven", " ".join(err.split()))
        found = json.loads(out)["manifest"]["gate"]
        assert (found["original"], found["comparisons"], found["videos"]) == (None, [], 0)


class TestBadRequests:
    """Found before anything is built."""

    @pytest.fixture(autouse=True)
    def nothing_is_built(self, quick, builds):
        builds.failing(VIDEO_ONNX, AssertionError("worked"))

    @pytest.fixture
    def refused(self, command, tmp_path):
        def check(code, *arguments):
            found, out, err = command(*arguments)
            assert (found, out) == (code, ""), err
            assert "Traceback" not in err and not (tmp_path / "out").exists()
            return err

        return check

    @pytest.mark.parametrize("more", [[], ["--dry-run"]])
    def test_data(self, refused, folder, tmp_path, more):
        assert "data.tsv" in refused(3, "--gate", folder / "data.tsv", *more)
        assert "no/such" in refused(3, "--gate", "msrvtt:no/such", *more)
        assert "found 0 videos" in refused(3, "--gate", folder / "data.csv", "--gate-videos", tmp_path, *more)
        assert "no such folder" in refused(3, "--gate", folder / "data.csv", "--gate-videos", "no/such", *more)
        assert "Give --gate DATA" in refused(2, "--gate-videos", folder, *more)
        assert list(tmp_path.iterdir()) == []

    def test_too_few_videos(self, export, folder):
        with pytest.raises(InputError, match="found 7 videos"):
            export(gate=open_data(folder / "data.csv", "test").select(range(7)))

    def test_videos_without_a_gate(self, export, folder):
        with pytest.raises(UsageError, match="Give --gate DATA"):
            export(gate=None, gate_videos=folder)

    def test_a_profile_without_a_tokenizer(self, small_checkpoint, small_profile, folder, tmp_path):
        with pytest.raises(InputError, match="names no open_clip backbone"):
            pipeline.export(small_checkpoint, small_profile, tmp_path / "out", gate=folder / "data.csv")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("more", [["--gate", "data.csv"], ["--gate-videos", "clips"]])
    def test_verify_has_no_gate(self, tempme_export, gated, more):
        code, _, err = tempme_export("verify", gated, *more)
        assert code == 2 and f"tempme-export verify: found {more[0]}, expected" in err

    def test_dry_run(self, command, folder, tmp_path):
        code, out, err = command("--gate", folder / "data.csv", "--dry-run", "--json")
        assert code == 0 and "gate       data.csv   9 videos, 18 captions" in err
        found = json.loads(out)["gate"]
        assert (found["data"], found["videos"], found["captions"], found["missing"]) == ("data.csv", 9, 18, [])
        assert list(tmp_path.iterdir()) == []
        assert "gate" not in json.loads(command("--dry-run", "--json")[1])


def test_a_video_that_cannot_be_read_is_said(folder, gated, recipe, tmp_path, capsys):
    data = open_data(folder / "data.csv", "test")
    torn = tmp_path / "torn.mp4"
    torn.write_bytes(data.paths[4].read_bytes()[:200])
    data = dataclasses.replace(data, clips=(*data.clips[:4], Clip(torn), *data.clips[5:]))
    found = run_gate(recipe, Folder(gated, "fp32"), open_gate(data, None, recipe.profile))
    assert list(found.skipped) == ["clips/4.mp4"] and "torn.mp4" in found.skipped["clips/4.mp4"]
    assert (found.videos, found.captions, found.reports[0].status) == (8, 16, "passed")
    console.show_gate(found)
    err = capsys.readouterr().err
    assert "skipped    clips/4.mp4: " in err and "1 videos could not be read" in err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_original_path_on_a_gpu_is_float32(recipe, selftest):
    """On clips in which no decision hangs on a near tie."""
    frames = np.stack([preprocess_for(recipe)(clip) for clip in selftest.clips[~selftest.fragile]])
    before = torch.backends.cudnn.allow_tf32
    here, there = (Original(recipe, device) for device in ("cpu", "cuda"))
    limit = pipeline.TOLERANCES["fp32"].cosine_distance
    assert cosine_distance(here.video(frames)[0], there.video(frames)[0]) <= limit
    assert cosine_distance(here.text(selftest.token_ids), there.text(selftest.token_ids)) <= limit
    assert torch.backends.cudnn.allow_tf32 == before
