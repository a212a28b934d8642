"""A small checkpoint, its profile and one accepted bundle, exported once for all tests here."""

import csv
import shutil
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from tempme_export.artifacts.registry import PLAN, TEXT_ONNX, VIDEO_ONNX, find_backend
from tempme_export.encoder.backbone import open_clip_backbone
from tempme_export.encoder.checkpoint import load_checkpoint
from tempme_export.encoder.recipe import prepare
from tempme_export.errors import UsageError
from tempme_export.media.render import render_clip
from tempme_export.parity.making import make_selftest
from tempme_export.pipeline import export
from tempme_export.progress import LogLine
from tempme_export.runtime.ort import OrtRunner
from tempme_export.training.init import draw_clip

PROFILE = """
name = "small"
backbone = "checkpoint"
frames = 4
text_length = 8

[merge]
image_r = 1
clip_layers = [1, 2]
clip_factors = [2, 2]
cross_percent = 30
intra_percent = 10
size_bias = true
clip_position = true

[shapes]
batch = [1, 3, 8]
"""


@pytest.fixture(scope="session")
def one_thread():
    """Operators this small wait longer for a second thread than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory, checkpoint_maker):
    """Folder with `small.pth` (3 blocks, 4 frames of 48 pixels, seed 7) and `small.toml`. Do not write there."""
    folder = tmp_path_factory.mktemp("small")
    settings = checkpoint_maker.settings(
        "tiny", image=48, layers=3, merge_layer="1-2", merge_frame_num="2-2", max_frames=4
    )
    state = checkpoint_maker.make_state_dict(settings, seed=7)
    torch.save({name: torch.from_numpy(np.array(value)) for name, value in state.items()}, folder / "small.pth")
    (folder / "small.toml").write_text(PROFILE)
    return folder


@pytest.fixture(scope="session")
def small_checkpoint(small_folder):
    """Path of the small checkpoint."""
    return small_folder / "small.pth"


@pytest.fixture(scope="session")
def small_profile(small_folder):
    """Path of its profile."""
    return small_folder / "small.toml"


@pytest.fixture(scope="session")
def small_recipe(small_checkpoint, small_profile):
    """Both brought together."""
    return prepare(load_checkpoint(small_checkpoint), small_profile)


@pytest.fixture(scope="session")
def small_selftest(one_thread, small_recipe):
    """Its self-test with every merged token."""
    return make_selftest(small_recipe)


@pytest.fixture(scope="session")
def small_told(recording):
    """What `export` told while `small_bundle` was built."""
    return recording()


@pytest.fixture(scope="session")
def small_bundle(one_thread, small_checkpoint, small_profile, small_told, tmp_path_factory):
    """Path of a float32 bundle that was built and accepted for real. Do not write there."""
    out = tmp_path_factory.mktemp("bundles") / "small.tempme"
    export.export(small_checkpoint, small_profile, out, progress=small_told)
    return out


@pytest.fixture
def bundle_copy(small_bundle, tmp_path):
    """A copy of the bundle to spoil."""
    return shutil.copytree(small_bundle, tmp_path / "copy.tempme")


COLOURS = ("red", "green", "blue", "yellow", "white", "black", "pink", "orange", "brown")


@pytest.fixture(scope="session")
def gate_folder(tmp_path_factory):
    """Nine clips with two captions each in `data.csv`, and the checkpoint `mini.pth`. Do not write there."""
    folder = tmp_path_factory.mktemp("gate")
    (folder / "clips").mkdir()
    with (folder / "data.csv").open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["video", "caption"])
        for i, colour in enumerate(COLOURS):
            render_clip(folder / "clips" / f"{i}.mp4", seconds=1, fps=8, size=(64, 48), seed=i)
            rows.writerows([f"clips/{i}.mp4", caption] for caption in (f"{colour} shapes", f"it is all {colour} here"))
    state = draw_clip(open_clip_backbone("tempme-mini"), seed=3).tensors
    torch.save({f"clip.{name}": tensor for name, tensor in state.items()}, folder / "mini.pth")
    return folder


@pytest.fixture(scope="session")
def gate_told(recording):
    """What `export` told while `gated` was built."""
    return recording()


@pytest.fixture(scope="session")
def gated(one_thread, gate_folder, gate_told, tmp_path_factory):
    """Path of a bundle that was built, verified and gated for real. Do not write there."""
    out = tmp_path_factory.mktemp("gated") / "mini.tempme"
    export.export(
        gate_folder / "mini.pth",
        "mini-8f",
        out,
        batch=(1, 4, 5),
        gate=f"{gate_folder / 'data.csv'}",
        progress=gate_told,
    )
    return out


class Copying:
    """An exporter that takes its file from a folder; what it checks and promises is the real one's."""

    def __init__(self, artifact, folder):
        self.real, self.source, self.built = artifact.exporter, folder and folder / artifact.file, []

    def __getattr__(self, name):
        return getattr(self.real, name)

    def build(self, artifact, making):
        self.built.append(making.spec)
        shutil.copyfile(self.source, making.folder / artifact.file)


class Failing(Copying):
    """An exporter whose building ends in an error."""

    def __init__(self, artifact, error):
        super().__init__(artifact, None)
        self.error = error

    def build(self, artifact, making):
        raise self.error


class Seeing:
    """An exporter that refuses every request and keeps it."""

    def __init__(self):
        self.specs = []

    def check(self, spec):
        self.specs.append(spec)
        raise UsageError("seen")


class Negated(Copying):
    """A text tower that is another one: its last projection is negated."""

    def build(self, artifact, making):
        proto = onnx.load(self.source)
        for tensor in proto.graph.initializer:
            if list(tensor.dims) == [128, 32]:
                tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), tensor.name))
        onnx.save(proto, making.folder / artifact.file)


class Builds:
    """Who builds artifacts until the test ends. Each returns its exporter."""

    def __init__(self, registering, small_bundle):
        self.registering, self.small_bundle = registering, small_bundle

    def by(self, artifact, exporter):
        self.registering(replace(artifact, builder=exporter))
        return exporter

    def copying(self, artifact, folder=None):
        return self.by(artifact, Copying(artifact, folder or self.small_bundle()))

    def failing(self, artifact, error):
        return self.by(artifact, Failing(artifact, error))

    def seeing(self, artifact):
        """Every request is refused with code 2; the requests."""
        return self.by(artifact, Seeing()).specs

    def negated(self, artifact):
        return self.by(artifact, Negated(artifact, self.small_bundle()))


@pytest.fixture
def builds(registering, request):
    """`builds.copying(artifact, folder)`, `failing`, `negated` and `by`; copies are of `small_bundle` by default."""
    return Builds(registering, partial(request.getfixturevalue, "small_bundle"))


@pytest.fixture
def tempme_export(run_command):
    """Run `tempme-export`; returns exit code, stdout and stderr."""
    from tempme_export.cli.export import main

    return partial(run_command, main)


@pytest.fixture
def quick_export(builds):
    """Within a test, exports copy the graphs of `small_bundle`; all else is real."""
    for artifact in (VIDEO_ONNX, TEXT_ONNX):
        builds.copying(artifact)


class EngineRuntime:
    """TensorRT's runtime, whose engines are run by ONNX Runtime from a graph beside them.

    runner             what runs that graph: called with its path and the CPU
    error, misfit      raised where an engine is opened, or held against this machine
    here               there is a GPU, whatever this machine has
    opened             (file, facts, device) of every engine
    """

    def __init__(self, backend, graph):
        self.real, self.graph, self.runner = backend.runtime, graph, OrtRunner
        self.error, self.misfit, self.here, self.opened = None, None, False, []

    def __getattr__(self, name):
        return getattr(self.real, name)

    def choose_device(self, facts, device):
        return device or "cuda" if self.here else self.real.choose_device(facts, device)

    def check_fit(self, path, facts, device):
        if self.misfit is not None:
            raise self.misfit

    def open_runner(self, path, facts, setting):
        self.opened.append((path.name, facts, setting.device))
        if self.error is not None:
            raise self.error
        return self.runner(path.with_name(self.graph), "cpu")


class EngineMaker:
    """What builds engines and says what a machine lacks for it; nothing of TensorRT, but all that is around it.

    facts, content  of the engine that it writes
    missing         on this machine
    error           raised in place of building
    before          called when it begins
    asked           what was asked of it last: source, nodes and the settings by name
    runtime         what runs the engines
    """

    def __init__(self, artifact, facts, content, runtime):
        self.exporter, self.needed = artifact.exporter, artifact.requirements
        self.facts, self.content, self.runtime = facts, content, runtime
        self.missing, self.error, self.before, self.asked = (), None, lambda: None, None

    def __getattr__(self, name):
        return getattr(self.exporter if hasattr(self.exporter, name) else self.needed, name)

    def check_builder(self, device):
        self.needed.check_builder(device, missing=self._missing)

    def check_rebuild(self, device, workspace_gib):
        self.needed.check_rebuild(device, workspace_gib, self._missing)

    def preview(self, recipe, spec):
        return self.exporter.preview(recipe, spec, self._missing)

    def build(self, artifact, making):
        return self.exporter.build(artifact, making, self._make)

    def _missing(self, device):
        return self.missing

    def _make(self, source, engine, settings, nodes, progress):
        self.before()
        if self.error is not None:
            raise self.error
        self.asked = SimpleNamespace(source=source, nodes=nodes, **vars(settings))
        with progress.step("building the engine", 100, "%") as step:
            step.advance(50, "Building Engine")
        if settings.verbose:
            progress.tell(LogLine("TensorRT", "info: a line of the log"))
        engine.write_bytes(self.content)
        return self.facts


@pytest.fixture
def engines(registering, engine_runtime):
    """`engines(facts, content, graph)`: an EngineMaker until the test ends, whose engines are run from a graph."""

    def make(facts, content, graph):
        maker = EngineMaker(PLAN, facts, content, engine_runtime(graph))
        registering(replace(PLAN, builder=maker, needs=maker))
        return maker

    return make


@pytest.fixture
def engine_runtime(registering):
    """`engine_runtime(graph)`: engines are run by an EngineRuntime until the test ends, which is returned."""

    def run(graph):
        backend = find_backend("tensorrt")
        runtime = EngineRuntime(backend, graph)
        registering(replace(backend, runner=runtime))
        return runtime

    return run
