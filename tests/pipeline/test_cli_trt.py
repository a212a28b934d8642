"""`tempme-export --trt`, `rebuild` and `triton-repo`: what is refused and when, what a dry run leaves, and what a
bundle with an engine holds. The builder is a stand-in; its engine is run by ONNX Runtime from the graph beside it."""

import json
import os
import re
import subprocess
import sys
from functools import partial

import numpy as np
import onnx
import pytest
import torch

import tempme_export
from tempme_export.artifacts.bundle import MANIFEST, open_bundle, verify_files
from tempme_export.artifacts.registry import PLUGIN_ONNX, TEXT_ONNX, VIDEO_ONNX
from tempme_export.cli import export as cli
from tempme_export.errors import BackendError, BundleError, ExportError, ParityError, UsageError
from tempme_export.exporters.plugin_nodes import plugin_nodes
from tempme_export.exporters.plugin_onnx import export_plugin_video
from tempme_export.exporters.trt.engine import engine_nodes
from tempme_export.media.preprocess import preprocess_for
from tempme_export.pipeline import export as pipeline
from tempme_export.pipeline.drafts import check_draft, draft_path
from tempme_export.pipeline.spec import ExportSpec
from tempme_export.runtime.engine_facts import ENGINE, KEY, SOURCE, EngineFacts
from tempme_export.runtime.ort import OrtRunner

pytestmark = pytest.mark.usefixtures("one_thread")

FACTS = EngineFacts(
    tensorrt="11.4.0.106",
    gpu="NVIDIA H100 80GB HBM3",
    capability="sm_90",
    driver="580.65.06",
    precision="fp32",
    batch=(1, 3, 8),
    inputs={"frames": ("float32", (None, 4, 3, 48, 48))},
    outputs={"video_embedding": ("float32", (None, 32))},
    target="sm_90",
    plugins={"MatchKeys": 3, "MergeNorm": 2},
    engine_plugins=5,
    layers={"fp32": 6, "none": 2},
    products={"fp32": 4},
    attentions=3,
    seconds=61.0,
)
MISSING = ("TensorRT is not installed (no module tensorrt). Run: pip install tensorrt",)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def command(run_command):
    """Run `tempme-export` in this process; returns exit code, stdout and stderr."""
    return partial(run_command, cli.main)


@pytest.fixture(scope="session")
def small_source(small_recipe, tmp_path_factory):
    """The small model's graph for engines."""
    path = tmp_path_factory.mktemp("source") / SOURCE
    export_plugin_video(small_recipe, path)
    return path


@pytest.fixture
def export(command, small_checkpoint, small_profile, quick_export, builds, small_source, tmp_path):
    """Run it on the small model with graphs that were built before."""
    builds.copying(PLUGIN_ONNX, small_source.parent)

    def run(*arguments):
        return command(small_checkpoint, "--profile", small_profile, "--out", tmp_path / "out.tempme", *arguments)

    return run


@pytest.fixture
def builder(engines):
    """The stand-in for building and running engines."""
    return engines(FACTS, b"an engine", SOURCE)


@pytest.fixture
def lacking(builder):
    """A machine without TensorRT, whatever this one has."""
    builder.missing = MISSING


def refusal(result, code, *words):
    """This exit code and these words in one error on stderr, nothing on stdout."""
    found, out, err = result
    assert found == code, err
    assert out == "" and "Traceback" not in err and err.count("error: ") == 1
    for word in words:
        assert word in err


class TestRefusals:
    def test_a_machine_without_tensorrt(self, export, lacking, tmp_path):
        refusal(export("--trt"), 4, "no engine can be built here", *MISSING, "Leave out --trt")
        assert list(tmp_path.iterdir()) == []

    def test_an_existing_bundle_is_left_alone(self, command, lacking, small_checkpoint, bundle_copy):
        before = contents(bundle_copy)
        refusal(command(small_checkpoint, "--trt", "--out", bundle_copy, "--force"), 4, *MISSING)
        refusal(command("rebuild", bundle_copy), 4, *MISSING, "The bundle keeps the engine that it has")
        assert contents(bundle_copy) == before and list(bundle_copy.parent.iterdir()) == [bundle_copy]

    def test_in_python_too(self, lacking, small_checkpoint, small_profile, tmp_path):
        with pytest.raises(BackendError, match="no engine can be built here"):
            pipeline.export(small_checkpoint, small_profile, tmp_path / "out", trt=True)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("more", [[], ["--dry-run"], ["--calibrate", "videos"]])
    def test_int8(self, export, lacking, more, tmp_path):
        refusal(export("--trt", "--precision", "int8", *more), 2, "int8 and --trt do not go together", "fp16")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("gib", ["0", "-1"])
    def test_a_workspace_of_nothing(self, export, lacking, gib):
        refusal(export("--trt", "--workspace", gib), 2, f"a workspace of {gib} GiB")

    @pytest.mark.parametrize("option", [["--workspace", "2"], ["--verbose"]])
    def test_options_of_a_builder_that_is_not_asked_for(self, export, option):
        refusal(export(*option), 2, "--workspace and --verbose are for the builder")

    @pytest.mark.parametrize("more", [["--force"], ["--precision", "fp16"], ["--out", "r"], ["--dry-run"]])
    def test_rebuild_takes_nothing_that_it_would_ignore(self, command, lacking, small_bundle, more):
        refusal(command("rebuild", small_bundle, *more), 2, f"tempme-export rebuild: found {more[0]}, expected")

    @pytest.mark.parametrize("more", [[], ["--dry-run"]])
    def test_a_profile_that_never_merges(self, command, builder, small_checkpoint, small_profile, more, tmp_path):
        text, still, out = small_profile.read_text(), tmp_path / "still.toml", tmp_path / "out"
        for name in ("image_r", "cross_percent", "intra_percent"):
            text = re.sub(rf"^{name} = .*$", f"{name} = 0", text, flags=re.MULTILINE)
        still.write_text(text)
        result = command(small_checkpoint, "--profile", still, "--trt", "--out", out, *more)
        refusal(result, 2, "profile small merges no tokens", "no plugin of ours")
        assert list(tmp_path.iterdir()) == [still] and builder.asked is None

    @pytest.mark.parametrize("arguments", [["CKPT", "--trt"], ["rebuild", "BUNDLE"]])
    def test_nothing_heavy_is_imported(self, small_checkpoint, small_bundle, arguments, tmp_path):
        """Whatever this machine has: it is told to lack something."""
        script = (
            "import sys\n"
            "from tempme_export.exporters.trt import requirements\n"
            "requirements.missing_for_engine = lambda device: ('a GPU',)\n"
            "from tempme_export.cli.export import main\n"
            "sys.argv = ['tempme-export', *sys.argv[1:]]\n"
            "try:\n"
            "    main()\n"
            "except SystemExit as end:\n"
            "    heavy = {'torch', 'onnx', 'onnxruntime', 'onnxscript', 'numpy', 'polars'} & sys.modules.keys()\n"
            "    sys.stdout.write(f'{end.code} {sorted(heavy)}')\n"
        )
        names = {"CKPT": str(small_checkpoint), "BUNDLE": str(small_bundle)}
        done = subprocess.run(
            [sys.executable, "-c", script, *(names.get(one, one) for one in arguments)],
            capture_output=True,
            text=True,
            timeout=120,
            env=os.environ,
            cwd=tmp_path,
        )
        assert done.stdout == "4 []" and "  - a GPU" in done.stderr, done.stderr


class TestDryRun:
    def test_the_plan_and_the_graph(self, export, lacking, small_recipe, tmp_path):
        code, out, err = export("--trt", "--dry-run", "--batch-range", "1:2:4")
        path = tmp_path / "out.video.plugin.onnx"
        assert (code, out) == (0, "")
        assert [one.name for one in tmp_path.iterdir()] == [path.name]
        ours = [node.op_type for node in onnx.load(path).graph.node if node.domain == "tempme"]
        assert ours == [node.op_type for node in plugin_nodes(small_recipe)]
        for words in (
            "strongly typed, fp32, batch 1:2:4",
            "frames   [1, 4, 3, 48, 48], [2, 4, 3, 48, 48], [4, 4, 3, 48, 48]",
            f"plugins    {len(ours)} nodes: ",
            "sm_90",
            f"missing    {MISSING[0]}",
            f"dry run: wrote {path} and nothing else",
            f"{SOURCE}, {ENGINE}",
        ):
            assert " ".join(words.split()) in " ".join(err.split())

    def test_json(self, export, lacking, tmp_path):
        code, out, _ = export("--trt", "--dry-run", "--json", "--frame-mask", "--precision", "fp16")
        document = json.loads(out)
        assert code == 0 and document["written"] == str(tmp_path / "out.video.plugin.onnx")
        engine = document["engine"]
        assert engine["precision"] == "fp16" and engine["batch"] == [1, 3, 8] and engine["missing"] == list(MISSING)
        assert engine["profile"]["frame_mask"] == [[1, 4], [3, 4], [8, 4]]
        assert sum(engine["plugins"].values()) > 0 and "sm_90" in engine["targets"]
        assert {SOURCE, ENGINE} < set(document["files"])

    def test_a_graph_that_is_there(self, export, lacking, tmp_path):
        path = tmp_path / "out.video.plugin.onnx"
        path.write_bytes(b"something else")
        refusal(export("--trt", "--dry-run"), 3, f"{path} exists. Add --force")
        assert path.read_bytes() == b"something else"
        assert export("--trt", "--dry-run", "--force")[0] == 0
        assert onnx.load(path).graph.node

    def test_an_existing_bundle_is_left_alone(self, command, lacking, small_checkpoint, small_profile, bundle_copy):
        before = contents(bundle_copy)
        arguments = (small_checkpoint, "--profile", small_profile, "--trt", "--dry-run", "--out")
        refusal(command(*arguments, bundle_copy), 3, "exists. Add --force")
        assert command(*arguments, bundle_copy, "--force")[0] == 0
        assert contents(bundle_copy) == before
        assert sorted(path.name for path in bundle_copy.parent.iterdir()) == ["copy.tempme", "copy.video.plugin.onnx"]
        refusal(command(*arguments, bundle_copy / "inner.tempme"), 3, "is a bundle, which holds its own files only")
        assert contents(bundle_copy) == before

    def test_where_it_is_written(self, tmp_path):
        assert draft_path(PLUGIN_ONNX, tmp_path / "a.tempme") == tmp_path / "a.video.plugin.onnx"
        assert draft_path(PLUGIN_ONNX, tmp_path / "a.b") == tmp_path / "a.b.video.plugin.onnx"
        (tmp_path / "folder").mkdir()
        with pytest.raises(BundleError, match="is a folder"):
            check_draft(tmp_path / "folder", force=True)

    def test_without_trt_there_is_no_engine_in_it(self, export, tmp_path):
        code, out, err = export("--dry-run", "--json")
        document = json.loads(out)
        assert code == 0 and "engine" not in document and ENGINE not in document["files"] and "plugins" not in err
        assert list(tmp_path.iterdir()) == []


class TestBuild:
    def test_a_bundle_with_an_engine(self, export, builder, small_recipe, tmp_path):
        code, out, err = export("--trt", "--workspace", "2", "--verbose", "--json")
        assert code == 0, err
        bundle = open_bundle(tmp_path / "out.tempme")
        verify_files(bundle)
        assert {SOURCE, ENGINE, VIDEO_ONNX.file, TEXT_ONNX.file} < set(bundle.manifest["files"])
        assert EngineFacts.from_dict(json.loads(out)["manifest"][KEY]) == FACTS
        reports = {report["artifact"]: report for report in bundle.manifest["parity"]}
        assert list(reports) == [VIDEO_ONNX.file, TEXT_ONNX.file, SOURCE, ENGINE]
        assert all(report["status"] == "passed" for report in reports.values())
        names = [check["name"] for check in reports[ENGINE]["checks"]]
        assert all(any(f"batch {n}:" in name for name in names) for n in (1, 3, 8))
        names = [check["name"] for check in reports[SOURCE]["checks"]]
        assert "decisions changed" in names and "merged tokens, relative RMS" in names

        asked = builder.asked
        assert (asked.device, asked.workspace_gib, asked.verbose, asked.precision) == ("cuda", 2.0, True, "fp32")
        assert asked.nodes == plugin_nodes(small_recipe) == engine_nodes(small_recipe)
        assert asked.timing_cache == tmp_path / "out.tempme.timing" and asked.source.name == SOURCE
        assert builder.runtime.opened[-1][-1] == "cuda"

        for words in (
            "started    building the engine",
            "finished   building the engine",
            "TensorRT   info: a line of the log",
            "NVIDIA H100 80GB HBM3 (sm_90), driver 580.65.06, batch 1:3:8   built in 61 s",
            "matrix products: fp32 4   layers: fp32 75%, none 25%",
            "5 layers: MatchKeys 3, MergeNorm 2",
            "attention  3 fused",
        ):
            assert " ".join(words.split()) in " ".join(err.split())

    def test_verification_here_and_elsewhere(self, export, command, builder, tmp_path):
        assert export("--trt")[0] == 0
        code, out, _ = command("verify", tmp_path / "out.tempme", "--json")
        assert code == 0 and {one["artifact"]: one["status"] for one in json.loads(out)["parity"]}[ENGINE] == "passed"
        builder.runtime.error = BackendError("the GPU failed while the engine ran")
        refusal(command("verify", tmp_path / "out.tempme"), 4, "the GPU failed while the engine ran")
        builder.runtime.misfit = BackendError("video.plan was built for another GPU")
        code, _, err = command("verify", tmp_path / "out.tempme")
        assert code == 0 and "NOT RUN" in err and "another GPU" in err and "nothing is proven" in err

    @pytest.mark.parametrize(
        ("error", "code"), [(ExportError("the engine is not in fp16"), 6), (BackendError("no driver"), 4)]
    )
    def test_a_build_that_fails_leaves_nothing(self, export, builder, error, code, tmp_path):
        builder.error = error
        refusal(export("--trt"), code, str(error))
        assert list(tmp_path.iterdir()) == []

    def test_an_engine_that_cannot_be_run_where_it_was_built(self, export, builder, tmp_path):
        builder.runtime.error = BackendError("no memory")
        refusal(export("--trt"), 4, "no memory")
        assert list(tmp_path.iterdir()) == []

    def test_an_engine_that_computes_something_else(self, export, builder, tmp_path):
        class Turned(OrtRunner):
            def _infer(self, inputs):
                return {name: -value for name, value in super()._infer(inputs).items()}

        builder.runtime.runner = Turned
        code, _, err = export("--trt")
        assert code == ParityError.exit_code and f"{ENGINE}: video, batch 1: 1 - cosine is 2" in err
        assert [path.name for path in tmp_path.iterdir()] == ["out.tempme.failed"]

    def test_room_for_it_is_asked_for(self, small_recipe):
        without, engine = (ExportSpec("", options=frozenset(asked)).size(small_recipe) for asked in ((), ("trt",)))
        weights = 4 * sum(t.numel() for n, t in small_recipe.checkpoint.tensors.items() if n.startswith("visual."))
        assert engine - without >= 2 * weights
        assert ExportSpec("", options=frozenset({"trt"})).scratch(small_recipe) >= 3 * weights
        assert ExportSpec("").scratch(small_recipe) == 0


class TestRebuild:
    def test_a_bundle_whose_engine_is_renewed(self, export, command, builder, tmp_path):
        assert export("--trt")[0] == 0
        code, out, err = command("rebuild", tmp_path / "out.tempme", "--workspace", "1", "--json")
        assert code == 0 and "has a new engine" in " ".join(err.split())
        assert err.splitlines()[-1].startswith(f"next       tempme-eval {tmp_path / 'out.tempme'} ")
        assert json.loads(out)["manifest"][KEY] == json.loads(json.dumps(FACTS.to_dict()))
        assert builder.asked.workspace_gib == 1.0 and builder.asked.device == "cuda"

    @pytest.mark.parametrize("workspace", ["0", "-1", "inf", "nan"])
    def test_a_workspace_that_is_none(self, command, builder, small_bundle, workspace):
        refusal(command("rebuild", small_bundle, "--workspace", workspace), 2, "expected more than 0")

    def test_a_bundle_without_the_graph(self, command, builder, small_bundle):
        refusal(command("rebuild", small_bundle), 3, f"has no {SOURCE}")

    def test_no_bundle(self, command, builder, tmp_path):
        refusal(command("rebuild", tmp_path), 3, f"has no {MANIFEST}")


class TestRepository:
    def test_of_a_bundle(self, command, small_bundle, tmp_path):
        before = contents(small_bundle)
        code, out, err = command("triton-repo", small_bundle, tmp_path / "models", "--json")
        document = json.loads(out)
        assert code == 0 and "models video, text" in " ".join(err.split()) and f"{tmp_path / 'models'} serves" in err
        assert err.splitlines()[-1] == f"next       tritonserver --model-repository {tmp_path / 'models'}"
        assert document["bundle"] == str(small_bundle)
        assert all(os.path.isfile(path) for path in document["repository"])
        assert (tmp_path / "models" / "video" / "config.pbtxt").is_file()
        assert contents(small_bundle) == before

    def test_with_an_engine(self, export, command, builder, tmp_path):
        assert export("--trt")[0] == 0
        code, _, err = command("triton-repo", tmp_path / "out.tempme", tmp_path / "models")
        assert code == 0 and "models video, text, video_trt" in " ".join(err.split())
        assert (tmp_path / "models" / "video_trt" / "1" / "model.plan").read_bytes() == b"an engine"

    def test_a_folder_that_is_in_use(self, command, small_bundle, tmp_path):
        models = tmp_path / "models"
        models.mkdir()
        (models / "notes.txt").write_text("a thesis")
        refusal(command("triton-repo", small_bundle, models), 6, "is not empty")
        refusal(command("triton-repo", small_bundle, models, "--force"), 6, "also holds notes.txt")
        refusal(command("triton-repo", small_bundle, small_bundle / "models"), 3, "lies in the bundle")
        assert [path.name for path in models.iterdir()] == ["notes.txt"]

    @pytest.mark.parametrize("more", [["--precision", "fp16"], ["--trt"], ["--dry-run"], ["--out", "x"]])
    def test_nothing_is_built_from_a_bundle(self, command, lacking, small_bundle, more, tmp_path):
        result = command("triton-repo", small_bundle, tmp_path / "models", *more)
        refusal(result, 2, f"tempme-export triton-repo: found {more[0]}, expected")
        assert list(tmp_path.iterdir()) == []

    def test_force_replaces_its_own(self, command, small_bundle, tmp_path):
        arguments = ("triton-repo", small_bundle, tmp_path / "models")
        assert command(*arguments)[0] == 0
        refusal(command(*arguments), 6, "is not empty")
        assert command(*arguments, "--force")[0] == 0


class TestLoad:
    def test_videos_by_the_engine_and_texts_by_onnx_runtime(
        self, export, builder, small_recipe, safe_embedding, video_rounding, tmp_path
    ):
        assert export("--trt")[0] == 0
        builder.runtime.here = True
        builder.runtime.opened.clear()
        videos = np.random.default_rng(0).integers(0, 256, (4, 4, 48, 48, 3), np.uint8)
        with tempme_export.load(tmp_path / "out.tempme") as plain:
            expected = plain.encode_video(list(videos))
        safe_embedding(small_recipe, np.stack([preprocess_for(small_recipe)(video) for video in videos]))
        limit = video_rounding(small_recipe.backbone).difference
        with tempme_export.load(tmp_path / "out.tempme", backend="tensorrt") as model:
            np.testing.assert_allclose(model.encode_video(list(videos)), expected, rtol=0, atol=limit)
        ((file, facts, device),) = builder.runtime.opened
        assert (file, EngineFacts.from_dict(facts), device) == (ENGINE, FACTS, "cuda")

    def test_a_bundle_without_an_engine(self, small_bundle):
        with pytest.raises(BackendError, match=rf"has no {ENGINE}. Export it with --trt"):
            tempme_export.load(small_bundle, backend="tensorrt")

    @pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
    def test_a_machine_without_a_gpu(self, export, builder, tmp_path):
        assert export("--trt")[0] == 0
        with pytest.raises(BackendError, match="CUDA"):
            tempme_export.load(tmp_path / "out.tempme", backend="tensorrt")


def test_what_never_merges_has_no_engine(small_recipe):
    import dataclasses

    blocks = tuple(dataclasses.replace(block, r_cross=0, r_intra=0) for block in small_recipe.schedule.blocks)
    still = dataclasses.replace(small_recipe, schedule=dataclasses.replace(small_recipe.schedule, blocks=blocks))
    with pytest.raises(UsageError, match="merges no tokens"):
        engine_nodes(still)
