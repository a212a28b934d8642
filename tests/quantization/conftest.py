"""A tiny model with planted outliers, the trained mini model, and both made ready for 8 bits once for all tests."""

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from tempme_export.data.synthetic import all_scenes, draw_pictures
from tempme_export.encoder.checkpoint import from_state_dict, load_checkpoint
from tempme_export.encoder.profile import FROM_CHECKPOINT, BatchRange, Profile
from tempme_export.encoder.recipe import prepare
from tempme_export.encoder.schedule import MergePolicy
from tempme_export.exporters import onnx as to_onnx
from tempme_export.media.preprocess import preprocess_for
from tempme_export.parity.selftest import draw_clip, draw_token_ids
from tempme_export.parity.tolerance import INT8
from tempme_export.quantization.build import prepare as quantize
from tempme_export.quantization.calibration import Calibration
from tempme_export.quantization.outliers import plant_outliers
from tempme_export.quantization.products import hooked
from tempme_export.quantization.qdq import quantise

MINI = Path(__file__).parents[2] / "examples/mini.pth"
KINDS = ("moving", "static", "moving", "black", "repeated", "moving", "moving")


@pytest.fixture(scope="session")
def small_state(checkpoint_maker):
    """State dict of two blocks of width 128, 4 frames of 48 pixels, joined in pairs in the second block. Copy it."""
    settings = checkpoint_maker.settings("tiny", image=48, layers=2, merge_layer="1", merge_frame_num="2", max_frames=4)
    return {
        name: torch.from_numpy(np.array(value))
        for name, value in checkpoint_maker.make_state_dict(settings, seed=7).items()
    }


@pytest.fixture(scope="session")
def small_profile():
    """The profile of `small_state`: merges inside and across clips."""
    return Profile("small", FROM_CHECKPOINT, 4, 8, MergePolicy(1, (1,), (2,), 30, 10), BatchRange(1, 3, 8))


@pytest.fixture(scope="session")
def plain_recipe(small_state, small_profile):
    """The small model without outliers."""
    return prepare(from_state_dict(small_state, source="small"), small_profile)


@pytest.fixture(scope="session")
def planted_recipe(small_state, small_profile):
    """The small model with five channels of each tower that are 20 to 100 times as large as the rest."""
    return prepare(from_state_dict(plant_outliers(small_state, small_profile, seed=3), source="planted"), small_profile)


@pytest.fixture(scope="session")
def calibration_of():
    """(recipe, clips=8, seed=100) -> Calibration of drawn moving clips and random texts."""

    def make(recipe, clips=8, seed=100):
        shape = recipe.profile.frames, recipe.backbone.image_size
        drawn = np.stack([draw_clip("moving", *shape, seed + i) for i in range(clips)])
        texts = np.concatenate([draw_token_ids(recipe, seed + i) for i in range(2)])
        return Calibration("drawn", drawn, texts, "random tokens")

    return make


@pytest.fixture(scope="session")
def video_calls(calibration_of):
    """recipe -> the frames of its drawn calibration clips."""
    return lambda recipe: calibration_of(recipe).video_calls(preprocess_for(recipe))


@pytest.fixture(scope="session")
def all_kinds():
    """recipe -> float32 [7, F, 3, S, S]: moving clips that no calibration saw, a static, a black, a repeated one."""

    def make(recipe):
        shape = recipe.profile.frames, recipe.backbone.image_size
        preprocess = preprocess_for(recipe)
        return np.stack([preprocess(draw_clip(kind, *shape, 500 + i)) for i, kind in enumerate(KINDS)])

    return make


@pytest.fixture(scope="session")
def planted(planted_recipe, calibration_of):
    """Quantization of the planted model. Copy its modules to change them."""
    return quantize(planted_recipe, calibration_of(planted_recipe))


@pytest.fixture(scope="session")
def mini_recipe():
    """The trained model of the demonstration, profile mini-8f: random weights would not tell accuracy."""
    return prepare(load_checkpoint(MINI))


@pytest.fixture(scope="session")
def scenes(mini_recipe):
    """(count, seed) -> uint8 [count, 8, 64, 64, 3]: clips of the kind that the mini model was trained on."""
    preprocess, every = preprocess_for(mini_recipe), all_scenes()

    def draw(count, seed):
        clips = []
        for i in range(count):
            pictures = np.stack(list(draw_pictures(every[(37 * i + seed) % len(every)], (seed, i))))
            clips.append(preprocess.crop(pictures[np.linspace(0, len(pictures) - 1, 8).astype(int)]))
        return np.stack(clips)

    return draw


@pytest.fixture(scope="session")
def mini(mini_recipe, scenes, calibration_of):
    """Quantization of the mini model on eight of its scenes."""
    return quantize(mini_recipe, dataclasses.replace(calibration_of(mini_recipe, 2), clips=scenes(8, 0)))


@dataclasses.dataclass(frozen=True)
class Graphs:
    """One tower as graphs: the float32 one of the prepared module, and the int8 file of it."""

    tower: object
    floats: bytes
    path: Path

    def proto(self):
        """The float32 graph, to use up."""
        return onnx.load_from_string(self.floats)

    def quantised(self, in_float=()):
        """Written anew with other products in float, before logarithms are looked up."""
        return quantise(self.proto(), self.tower.module, self.tower.ranges, in_float)


@pytest.fixture(scope="session")
def graphs_of(tmp_path_factory):
    """(recipe, tower, export, largest size, **options) -> Graphs; the one export that costs seconds."""
    from tempme_export.quantization import export

    def make(recipe, tower, name, largest, **options):
        path, kept = tmp_path_factory.mktemp("int8") / f"{name}.onnx", []
        prepared = export._prepared(tower, largest)

        def keep(proto):
            kept.append(proto.SerializeToString())
            return prepared.rewrite(proto)

        write = getattr(to_onnx, f"export_{name}")
        write(recipe, path, INT8, **options, prepared=dataclasses.replace(prepared, rewrite=keep))
        return Graphs(tower, kept[0], path)

    return make


@pytest.fixture(scope="session")
def mini_video(mini_recipe, mini, graphs_of):
    """The mini model's video tower."""
    schedule = mini_recipe.schedule
    return graphs_of(mini_recipe, mini.video, "video", schedule.frames * schedule.tokens_per_frame)


@pytest.fixture(scope="session")
def mini_text(mini_recipe, mini, graphs_of):
    """The mini model's text tower."""
    return graphs_of(mini_recipe, mini.text, "text", 0)


@pytest.fixture(scope="session")
def fake_quantised():
    """(module, ranges, in_float, call) -> what a prepared tower gives with its 8 bits played in float."""

    @torch.inference_mode()
    def run(module, ranges, in_float, call):
        with hooked(module, lambda name, x: None if name in in_float else ranges[name].rounded(x)):
            return module(call)

    return run
