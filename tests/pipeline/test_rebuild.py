"""`rebuild`: a bundle gets a new engine whole or keeps what it had. The builder is a stand-in; its engine is run by
ONNX Runtime from the bundle's own graph, so that the verification is real."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from tempme_export.artifacts.backend import Folder
from tempme_export.artifacts.bundle import MANIFEST, open_bundle, verify_files, write_manifest
from tempme_export.artifacts.registry import VIDEO_ONNX, find_backend
from tempme_export.encoder.profile import BatchRange
from tempme_export.errors import BackendError, BundleError, ExportError, ParityError, UsageError
from tempme_export.exporters.plugin_nodes import plugin_nodes
from tempme_export.exporters.trt.builder import EngineSettings
from tempme_export.media.preprocess import preprocess_for
from tempme_export.parity.selftest import load_selftest
from tempme_export.parity.tolerance import TOLERANCES
from tempme_export.parity.verification import Standard, embedding_batches, embedding_checks, verify_on
from tempme_export.pipeline import rebuild
from tempme_export.retrieval import load
from tempme_export.runtime.base import Runner
from tempme_export.runtime.engine_facts import ENGINE, KEY, SOURCE, EngineFacts
from tempme_export.runtime.ort import OrtRunner

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
    plugins={"MergeNorm": 1},
    engine_plugins=1,
    layers={"fp32": 2},
    products={"fp32": 1},
    attentions=0,
    seconds=1.0,
)
OLD = dataclasses.replace(FACTS, gpu="NVIDIA A100", capability="sm_80")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def bundle(bundle_copy):
    """A bundle with the plugin graph, and an engine of another GPU."""
    manifest = json.loads((bundle_copy / MANIFEST).read_bytes())
    shutil.copyfile(bundle_copy / VIDEO_ONNX.file, bundle_copy / SOURCE)
    (bundle_copy / ENGINE).write_bytes(b"the engine of an A100")
    kept = {key: value for key, value in manifest.items() if key not in ("format", "files", "sha256")}
    old = {"artifact": ENGINE, "backend": "an A100", "checks": [], "reason": "", "status": "passed"}
    write_manifest(bundle_copy, {**kept, KEY: OLD.to_dict(), "parity": [*kept["parity"], old]})
    return bundle_copy


class Wrong(Runner):
    """Embeddings of unit length that have nothing to do with the clips."""

    name = "wrong"

    def __init__(self, path, device="cpu"):
        with OrtRunner(path, device) as good:
            self.inputs = good.inputs

    def _infer(self, inputs):
        draw = np.random.default_rng(0).standard_normal((len(inputs["frames"]), 32)).astype(np.float32)
        return {"video_embedding": draw / np.linalg.norm(draw, axis=1, keepdims=True)}


@pytest.fixture
def builder(engines):
    """The stand-in for build and for the runner."""
    return engines(FACTS, b"the engine of an H100", VIDEO_ONNX.file)


class Stale(Runner):
    """Right, but from the third run of a batch size on it gives what it gave in the second: a replay that reads what
    the graph was recorded with."""

    name = "stale"

    def __init__(self, path):
        self._good, self._runs = OrtRunner(path), {}
        self.inputs = self._good.inputs

    def _infer(self, inputs):
        runs = self._runs.setdefault(len(inputs["frames"]), [])
        runs.append(runs[1] if len(runs) > 1 else self._good.infer(inputs))
        return runs[-1]


class TestRebuild:
    def test_a_new_engine_with_its_manifest(self, bundle, builder, recording):
        before, told = contents(bundle), recording()
        renewed = rebuild.rebuild(bundle, progress=told)
        after = contents(bundle)
        verify_files(open_bundle(bundle))
        assert after[ENGINE] == b"the engine of an H100"
        assert {n for n in before if before[n] != after[n]} == {ENGINE, MANIFEST} and before.keys() == after.keys()
        assert EngineFacts.from_dict(renewed.manifest[KEY]) == FACTS
        reports = [report for report in renewed.manifest["parity"] if report["artifact"] == ENGINE]
        assert [report["status"] for report in reports] == ["passed"] and "H100" in reports[0]["backend"]
        assert {report["artifact"] for report in renewed.manifest["parity"]} > {ENGINE, VIDEO_ONNX.file}
        assert told.kinds == ["Intact", "EngineFacts", "Parity", "Bundle"]
        assert [path.name for path in bundle.parent.iterdir()] == [bundle.name]

    def test_a_bundle_that_is_replaced_meanwhile(self, bundle, builder):
        """The new engine of the old release must not take the place of a newer release."""

        def replace_bundle():
            manifest = {k: v for k, v in open_bundle(bundle).manifest.items() if k not in ("format", "files", "sha256")}
            write_manifest(bundle, {**manifest, "tool_version": "9.9"})

        builder.before = replace_bundle
        with pytest.raises(BundleError, match="another release"):
            rebuild.rebuild(bundle)
        assert open_bundle(bundle).manifest["tool_version"] == "9.9"
        assert [path.name for path in bundle.parent.iterdir()] == [bundle.name]

    def test_what_is_built(self, bundle, builder, small_recipe):
        rebuild.rebuild(str(bundle), device="cuda:1", workspace_gib=2.0, verbose=True)
        timings = bundle.with_name(bundle.name + ".timing")
        settings = EngineSettings(BatchRange(1, 3, 8), "fp32", "cuda:1", timings, 2.0, verbose=True)
        asked = vars(builder.asked)
        assert (asked.pop("source").name, asked.pop("nodes")) == (SOURCE, plugin_nodes(small_recipe))
        assert asked == vars(settings)

    @pytest.mark.parametrize("spoil", ["missing", "changed"])
    def test_the_old_engine_need_not_be_sound(self, bundle, builder, spoil):
        if spoil == "missing":
            (bundle / ENGINE).unlink()
        else:
            (bundle / ENGINE).write_bytes(b"cut off")
        rebuild.rebuild(bundle)
        verify_files(open_bundle(bundle))

    def test_a_bundle_behind_a_link(self, bundle, builder):
        link = bundle.with_name("link.tempme")
        link.symlink_to(bundle)
        rebuild.rebuild(link)
        assert link.is_symlink() and (link / ENGINE).read_bytes() == b"the engine of an H100"

    def test_files_are_copied_where_there_are_no_links(self, bundle, other_file_system):
        """Links do not leave a file system."""
        names = [VIDEO_ONNX.file, SOURCE]
        rebuild._carry_over(bundle, names, other_file_system)
        assert {name: (bundle / name).read_bytes() for name in names} == contents(other_file_system)


class TestRefusals:
    @pytest.fixture(autouse=True)
    def untouched(self, bundle):
        """Whatever is refused: the bundle stays byte for byte, and nothing lies beside it."""
        before = contents(bundle)
        yield
        assert contents(bundle) == before
        assert [path.name for path in bundle.parent.iterdir()] == [bundle.name]

    def test_a_builder_that_fails(self, bundle, builder):
        builder.error = ExportError("no tactic")
        with pytest.raises(ExportError, match="no tactic"):
            rebuild.rebuild(bundle)

    def test_an_engine_that_computes_something_else(self, bundle, builder):
        builder.runtime.runner = Wrong
        with pytest.raises(
            ParityError, match=rf"{ENGINE}: video, batch 1: 1 - cosine.* keeps the engine it had"
        ) as caught:
            rebuild.rebuild(bundle)
        assert caught.value.exit_code == 5

    def test_a_machine_that_lacks_something(self, bundle, builder):
        builder.missing = ("TensorRT is not installed.",)
        with pytest.raises(BackendError, match="TensorRT is not installed") as caught:
            rebuild.rebuild(bundle)
        assert caught.value.exit_code == 4 and builder.asked is None

    def test_it_is_said_before_the_bundle_is_looked_at(self, builder, tmp_path):
        builder.missing = ("TensorRT is not installed.",)
        with pytest.raises(BackendError):
            rebuild.rebuild(tmp_path / "no-bundle")


@pytest.mark.parametrize("name", [SOURCE, VIDEO_ONNX.file, "selftest.npz"])
@pytest.mark.parametrize("spoil", ["missing", "changed"])
def test_sources_that_are_not_the_manifests(bundle, builder, name, spoil):
    if spoil == "missing":
        (bundle / name).unlink()
    else:
        with (bundle / name).open("ab") as stream:
            stream.write(b"more")
    with pytest.raises(BundleError, match=rf"{name} is missing or was changed"):
        rebuild.rebuild(bundle)
    assert builder.asked is None


def test_files_of_somebody_else_are_not_thrown_away(bundle, builder):
    (bundle / "notes.txt").write_text("mine")
    before = contents(bundle)
    with pytest.raises(BundleError, match=r"would be lost: notes\.txt\. Move it elsewhere"):
        rebuild.rebuild(bundle)
    assert contents(bundle) == before and builder.asked is None


@pytest.mark.parametrize("workspace", [0.0, -1.0, float("inf"), float("nan")])
def test_a_workspace_that_is_none(bundle, builder, workspace):
    with pytest.raises(UsageError, match="expected more than 0"):
        rebuild.rebuild(bundle, workspace_gib=workspace)
    assert builder.asked is None


def test_a_bundle_without_the_plugin_graph(bundle_copy, builder):
    with pytest.raises(BundleError, match=r"has no video\.plugin\.onnx.*tempme-export CKPT --trt"):
        rebuild.rebuild(bundle_copy)


def test_an_engine_is_never_run_on_another_device_than_was_asked_for(bundle):
    with pytest.raises(BackendError, match="device 'cpu' is no NVIDIA GPU"):
        load(bundle, backend="tensorrt", device="cpu")


def test_a_folder_that_is_no_bundle(builder, tmp_path):
    with pytest.raises(BundleError, match="has no manifest"):
        rebuild.rebuild(tmp_path)


class TestVerifying:
    def test_batches(self, small_selftest):
        assert embedding_batches(FACTS.batch, small_selftest) == (1, 3, 6, 8)
        assert embedding_batches((6, 6, 6), small_selftest) == (6,)

    def test_every_batch_and_the_length_are_judged(self, small_bundle, small_recipe, small_selftest):
        with OrtRunner(small_bundle / VIDEO_ONNX.file) as runner:
            standard = Standard(small_selftest, small_recipe.schedule, preprocess_for(small_recipe), (1, 3, 6, 8))
            checks = embedding_checks(standard, runner, TOLERANCES["fp32"])
        assert all(check.passed for check in checks)
        for batch in (1, 3, 6, 8):
            assert any(check.name.startswith(f"video, batch {batch}: 1 - cosine") for check in checks)
        assert any("unit length" in check.name for check in checks)

    @pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
    def test_a_replay_is_judged(self, small_bundle, small_recipe, small_selftest, precision):
        stale = Stale(small_bundle / VIDEO_ONNX.file)
        for batch in (1, 3, 6, 8):
            standard = Standard(small_selftest, small_recipe.schedule, preprocess_for(small_recipe), (batch,))
            checks = embedding_checks(standard, stale, TOLERANCES[precision], find_backend("tensorrt").replays)
            assert not all(check.passed for check in checks), batch

    def test_texts_rank_the_clips_as_before(self, small_bundle, small_recipe, small_selftest):
        with OrtRunner(small_bundle / VIDEO_ONNX.file) as runner:
            standard = Standard(small_selftest, small_recipe.schedule, preprocess_for(small_recipe), (6, 8))
            checks = embedding_checks(standard, runner, TOLERANCES["fp16"])
        ranked = [check for check in checks if "rank agreement" in check.name]
        assert [check.name for check in ranked] == ["video, batch 6: rank agreement"] and ranked[0].passed

    @pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
    def test_an_engine_that_computes_something_else_fails_in_every_precision(
        self, small_bundle, small_recipe, builder, precision
    ):
        builder.runtime.runner = Wrong
        facts = dataclasses.replace(FACTS, precision=precision)
        selftest = load_selftest(small_bundle / "selftest.npz")
        standard = Standard(selftest, small_recipe.schedule, preprocess_for(small_recipe), facts.batch)
        folder = Folder(small_bundle, precision, {KEY: facts.to_dict()})
        report = verify_on(find_backend("tensorrt"), folder, standard, "cuda")
        assert report.status == "failed" and report.artifact == ENGINE
