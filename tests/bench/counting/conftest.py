import dataclasses

import pytest
import torch

from tempme_export.bench.counting.shapes import shape_recipe
from tempme_export.encoder.backbone import Backbone
from tempme_export.encoder.profile import BatchRange, Profile
from tempme_export.encoder.schedule import MergePolicy
from tempme_export.exporters.onnx import export_video
from tempme_export.quantization import export as int8
from tempme_export.quantization.calibration import drawn_clips
from tempme_export.quantization.towers import prepare_video

# Three blocks of four frames with 17 tokens each; the embedding differs from every multiple of the width.
BACKBONE = Backbone("tiny", 64, 16, 64, 3, 1, 48, 64, 1, 1, 16, 64)
POLICIES = {
    "none": MergePolicy(0, (), (), 0, 0),
    "image": MergePolicy(2, (), (), 0, 0),
    "clips": MergePolicy(2, (1, 2), (2, 2), 30, 10),
    "joined": MergePolicy(0, (1, 2), (2, 2), 0, 0),
    "no-bias": MergePolicy(1, (1,), (4,), 25, 0, size_bias=False, clip_position=False),
}


@pytest.fixture(scope="session")
def tiny_recipe():
    """policy name, device, activation, additions -> recipe; random values on the CPU, so that merges decide."""

    def make(policy, device="meta", activation="quickgelu", **additions):
        backbone = dataclasses.replace(BACKBONE, activation=activation)
        profile = Profile(policy, backbone.name, 4, 8, POLICIES[policy], BatchRange(1, 1, 1))
        recipe = shape_recipe(profile, backbone, device=device, **additions)
        if device == "meta":
            return recipe
        generator = torch.Generator().manual_seed(11)
        tensors = {
            name: (1.0 if ".ln_" in f".{name}" and name.endswith("weight") else 0.0)
            + 0.2 * torch.randn(tensor.shape, generator=generator)
            for name, tensor in recipe.checkpoint.tensors.items()
        }
        return dataclasses.replace(recipe, checkpoint=dataclasses.replace(recipe.checkpoint, tensors=tensors))

    return make


@pytest.fixture(scope="session")
def artifact(tiny_recipe, tmp_path_factory):
    """policy name -> its exported file, each exported once."""
    files = {}

    def export(policy, precision="fp32"):
        if (policy, precision) not in files:
            path, recipe = tmp_path_factory.mktemp("graphs") / f"{policy}-{precision}.onnx", tiny_recipe(policy, "cpu")
            if precision == "int8":
                tower = prepare_video(recipe, drawn_clips(recipe))
                int8.export_video(recipe, tower, path)
            else:
                export_video(recipe, path, precision)
            files[policy, precision] = path
        return files[policy, precision]

    return export


@pytest.fixture
def frames():
    """videos -> [videos, 4, 3, 64, 64] float32 of noise."""

    def draw(videos):
        return torch.randn(videos, 4, 3, 64, 64, generator=torch.Generator().manual_seed(videos))

    return draw
