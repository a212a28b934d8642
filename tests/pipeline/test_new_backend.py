"""A new artifact with two backends takes an exporter, a runner and a registration: everything else finds it."""

import importlib.util
import json
import re
import shutil
from types import ModuleType

import numpy as np
import pytest

import tempme_export
from tempme_export.artifacts import registry
from tempme_export.artifacts.artifact import Artifact
from tempme_export.artifacts.backend import Backend, Need, Platform, Reveals
from tempme_export.artifacts.bundle import open_bundle
from tempme_export.bench import candidates as bench
from tempme_export.bench.cases import open_case
from tempme_export.doctor import rules
from tempme_export.errors import BackendError, ParityError, UsageError
from tempme_export.evaluation.encoders import open_encoder
from tempme_export.pipeline.spec import ExportSpec
from tempme_export.progress import Written
from tempme_export.runtime.ort import OrtRunner
from tempme_export.serving.model_config import served_models
from tempme_export.serving.repository import write_repository

pytestmark = pytest.mark.usefixtures("one_thread")

FILE, GRAPH = "video.toy", registry.ARTIFACTS[0].file


def exporter():
    """Its file is the graph under another name."""
    module = ModuleType("toy_exporter")
    module.checked = []
    module.check = module.checked.append
    module.check_recipe = lambda recipe, spec: None
    module.files = lambda artifact, recipe, spec: [artifact.file]
    module.size = lambda artifact, recipe, spec: 1000
    module.scratch = lambda artifact, recipe, spec: 10
    module.preview = lambda recipe, spec: None

    def build(artifact, making):
        shutil.copyfile(making.folder / GRAPH, making.folder / artifact.file)
        return {"made_by": "a toy"}

    module.build = build
    return module


def runner():
    """Runs it with ONNX Runtime; `opened` holds what of, `factor` spoils embeddings."""
    module = ModuleType("toy_runner")
    module.opened, module.turn = [], 0

    class Toy(OrtRunner):
        def _infer(self, inputs):
            out = super()._infer(inputs)
            return {**out, "video_embedding": np.roll(out["video_embedding"], module.turn, axis=1)}

    def open_runner(path, facts, setting):
        module.opened.append((path.name, facts["made_by"], setting.device, bool(setting.extra_outputs)))
        return Toy(path, setting.device, setting.extra_outputs, setting.threads, max_batch=setting.max_batch)

    module.choose_device = lambda facts, device: device or "cpu"
    module.describe = lambda facts, device: f"Toy by {facts['made_by']}, {device}"
    module.open_runner = open_runner
    return module


@pytest.fixture
def toy(registering):
    """The toy, registered within a test: its exporter and its runner."""
    exporting, running = exporter(), runner()
    registering()
    artifact = Artifact(FILE, "video", exporting, option="toy", help="Also build a toy.")
    registry.register(
        Backend("toy", artifact, running, ("cpu",), need=Need("toy", "play", {"numpy": "pip install numpy"})),
        Backend("toy-open", artifact, running, ("cpu",), Reveals.VALUES),
    )
    return exporting, running


@pytest.fixture
def folder(gate_folder, gated, builds):
    """Clips with captions and a checkpoint, whose graphs were exported before."""
    for artifact in (registry.VIDEO_ONNX, registry.TEXT_ONNX):
        builds.copying(artifact, gated)
    return gate_folder


def test_everything_finds_it(toy, folder, tmp_path, recording):
    out = tmp_path / "out.tempme"
    told = recording()
    bundle = tempme_export.export(
        folder / "mini.pth",
        "mini-8f",
        out,
        batch=(1, 2, 3),
        also=["toy"],
        gate=folder / "data.csv",
        progress=told,
    )
    assert toy[0].checked and bundle.manifest["toy"] == {"made_by": "a toy"} and FILE in bundle.manifest["files"]
    assert FILE in [fact.path.name for fact in told.of(Written)]
    for reports, name in ((bundle.manifest["parity"], FILE), (bundle.manifest["gate"]["reports"], f"gate {FILE}")):
        ours = [one for one in reports if one["artifact"] == name]
        assert [one["status"] for one in ours] == ["passed", "passed"]
        assert {one["backend"] for one in ours} == {"Toy by a toy, cpu"}
    blind, seeing = [one for one in bundle.manifest["gate"]["comparisons"] if one["artifact"] == FILE]
    assert blind["decisions"] is None and seeing["decisions"]["videos"] == 0
    assert {extra_outputs for *_, extra_outputs in toy[1].opened} == {True, False}
    assert {one.artifact for one in tempme_export.verify(out)} >= {FILE}

    video = np.random.default_rng(0).integers(0, 256, (8, 40, 50, 3), np.uint8)
    with tempme_export.load(out) as plain, tempme_export.load(out, backend="toy") as ours:
        np.testing.assert_array_equal(ours.encode_video(video), plain.encode_video(video))
        np.testing.assert_array_equal(ours.encode_text(["a toy"]), plain.encode_text(["a toy"]))
        assert toy[1].opened[-1] == (FILE, "a toy", "cpu", False)

    encoder = open_encoder(out, backend="toy-open")
    assert encoder.backend == "toy-open" and encoder.fingerprint != open_encoder(out).fingerprint
    encoder.close()
    with pytest.raises(UsageError, match="--toy and give the bundle"):
        open_encoder(folder / "mini.pth", "mini-8f", "toy")

    assert {"toy", "toy-open"} <= bench.known_candidates().keys()
    loaded = bench.known_candidates()["toy"].open(open_case(str(out), None, None), "cpu", tmp_path)
    assert loaded.costs.artifact_mb > 0 and loaded.embed(np.zeros((2, 8, 3, 64, 64), np.float32)).shape[0] == 2

    written = write_repository(bundle, tmp_path / "models")
    assert FILE in (tmp_path / "models" / "README.md").read_text(), "left out, by name"
    assert len(served_models(bundle)) == 2 and len(written) == 5
    assert "toy" in rules.names()


@pytest.fixture
def command(toy, run_command):
    """tempme-export as a new process builds it, with the toy in the registry."""
    found = importlib.util.find_spec("tempme_export.cli.export")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return lambda *arguments: run_command(module.main, *arguments)


def test_the_command_has_its_option(command, folder, tmp_path):
    code, out, _ = command("--help")
    assert code == 0 and "--toy" in out and "Also build a toy." in out and "--trt" in out and "--pt2" in out
    checkpoint = (folder / "mini.pth", "--profile", "mini-8f", "--batch-range", "1:2:3", "--out", tmp_path / "out")
    code, out, _ = command(*checkpoint, "--dry-run", "--json")
    assert code == 0 and FILE not in json.loads(out)["files"]
    code, out, _ = command(*checkpoint, "--dry-run", "--json", "--toy")
    assert code == 0 and FILE in json.loads(out)["files"] and list(tmp_path.iterdir()) == []
    assert command(*checkpoint, "--toy")[0] == 0
    assert open_bundle(tmp_path / "out").manifest["toy"] == {"made_by": "a toy"}


def test_one_that_a_server_runs(toy, small_bundle):
    registry.register(Backend("served", registry.ARTIFACTS[0], toy[1], ("cpu",), platform=Platform("toy", "toys")))
    models = served_models(open_bundle(small_bundle))
    assert [one.name for one in models] == ["video", "text"], "one of each artifact"


def test_a_wrong_one_is_refused(toy, folder, tmp_path):
    toy[1].turn = 1
    with pytest.raises(ParityError, match=r"video\.toy: .*1 - cosine"):
        tempme_export.export(folder / "mini.pth", "mini-8f", tmp_path / "out", batch=(1, 2, 3), also=["toy"])
    assert [path.name for path in tmp_path.iterdir()] == ["out.failed"]


def test_without_it_nothing_is_asked(toy, small_bundle, small_recipe):
    with pytest.raises(BackendError, match=rf"has no {FILE}. Export it with --toy"):
        tempme_export.load(small_bundle, backend="toy")
    assert FILE not in ExportSpec("").files(small_recipe)
    with pytest.raises(UsageError, match=r"options: found toi"):
        ExportSpec("", options=frozenset({"toi"})).check()


@pytest.mark.parametrize("package", ["torch", "onnx"])
def test_what_it_is_made_of_is_not_installed(package, run_python, not_installed):
    code = f"""
        from tempme_export.artifacts.artifact import Artifact
        from tempme_export.artifacts.backend import Backend
        from tempme_export.errors import BackendError
        artifact = Artifact({FILE!r}, "video", "toy_with_needs", option="toy")
        for use in (lambda: artifact.exporter, lambda: Backend("toy", artifact, "toy_with_needs", ("cpu",)).runtime):
            try:
                use()
            except BackendError as error:
                print(error)
    """
    said = run_python(code, {package: not_installed(package), "toy_with_needs": f"import {package}\n"}).splitlines()
    assert len(said) == 2
    for line in said:
        assert re.search(rf"toy.* needs {package}, .*pip install 'tempme-export\[export\]'", line)


def test_names_that_come_near(toy, small_bundle):
    with pytest.raises(BackendError, match=r"'openvin', expected one of ort, .*Did you mean openvino\?"):
        tempme_export.load(small_bundle, backend="openvin")
    with pytest.raises(BackendError, match="'toy' is registered already"):
        registry.register(registry.BACKENDS[-2])
    with pytest.raises(BackendError, match=rf"found a second artifact {GRAPH}, expected the registered one"):
        registry.register(Backend("another", Artifact(GRAPH, "video", "elsewhere"), toy[1], ("cpu",)))
