import sys

import pytest
import torch

from tempme_export.artifacts.bundle import write_manifest
from tempme_export.artifacts.registry import VIDEO_ONNX
from tempme_export.bench import cli
from tempme_export.encoder.checkpoint import CheckpointFacts, expected_shapes, load_checkpoint
from tempme_export.encoder.recipe import prepare
from tempme_export.exporters.onnx import export_video
from tempme_export.pipeline import export
from tempme_export.pipeline.spec import ExportSpec

PROFILE = """
name = "tiny"
backbone = "checkpoint"
frames = 4
text_length = 8

[merge]
image_r = 2
clip_layers = [2, 3]
clip_factors = [2, 2]
cross_percent = 30
intra_percent = 10
size_bias = true
clip_position = true

[shapes]
batch = [1, 2, 4]
"""
FACTS = CheckpointFacts(
    image_size=64,
    patch=16,
    width=64,
    layers=4,
    embed=32,
    text_width=64,
    text_layers=1,
    context=16,
    vocab=64,
    lora_rank=2,
    clip_lengths=((2, 4), (3, 2)),
)


@pytest.fixture(scope="module")
def one_thread():
    """Small operators wait long for a second thread where the machine is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tiny(one_thread, tmp_path_factory):
    """Paths of a tiny checkpoint in the original's layout and of its profile."""
    folder = tmp_path_factory.mktemp("tiny")
    generator = torch.Generator().manual_seed(7)
    tensors = {}
    for name, shape in expected_shapes(FACTS).items():
        centre = 1.0 if ".ln_" in f".{name}" and name.endswith("weight") else 0.0
        tensors[f"clip.{name}"] = centre + 0.2 * torch.randn(shape, generator=generator)
    torch.save(tensors, folder / "tiny.pt")
    (folder / "tiny.toml").write_text(PROFILE)
    return folder / "tiny.pt", folder / "tiny.toml"


@pytest.fixture(scope="module")
def tiny_bundle(tiny, tmp_path_factory):
    """A bundle of the tiny checkpoint with the video tower alone, past the self-test. Its path."""
    checkpoint, profile = tiny
    folder = tmp_path_factory.mktemp("tiny.tempme")
    recipe = prepare(load_checkpoint(checkpoint), profile)
    export_video(recipe, folder / VIDEO_ONNX.file)
    write_manifest(folder, export._manifest(ExportSpec(""), recipe, export.Built()))
    return folder


@pytest.fixture
def tempme_bench(monkeypatch, capsys):
    """Run the command; returns exit code, stdout and stderr."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["tempme-bench", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        out, err = capsys.readouterr()
        return caught.value.code, out, err

    return call
