"""A few short videos with captions, a small checkpoint whose backbone has a tokenizer, and runs on them."""

import dataclasses

import numpy as np
import polars as pl
import pytest
import torch

from tempme_export.data.annotations import open_data
from tempme_export.encoder.backbone import open_clip_backbone
from tempme_export.encoder.checkpoint import load_checkpoint
from tempme_export.encoder.profile import load_profile
from tempme_export.encoder.recipe import prepare
from tempme_export.media.render import render_clip
from tempme_export.training.config import TrainConfig
from tempme_export.training.distributed import World
from tempme_export.training.encoder import TrainableModel
from tempme_export.training.init import draw_clip
from tempme_export.training.loop import train

FRAMES, SIZE, VIDEOS = 4, 64, 9
PROFILE = f"""
name = "small"
backbone = "tempme-mini"
frames = {FRAMES}
text_length = 12

[merge]
image_r = 2
clip_layers = [1, 2]
clip_factors = [2, 2]
cross_percent = 30
intra_percent = 10
size_bias = true
clip_position = true

[shapes]
batch = [1, 2, 4]
"""
WORDS = ("red", "green", "blue", "small", "large", "round", "square", "left", "right")


@pytest.fixture(scope="session")
def clips(tmp_path_factory):
    """Folder with nine short videos, train.csv with 13 captions and val.csv with four. Do not write there."""
    folder = tmp_path_factory.mktemp("clips")
    rows = []
    for i in range(VIDEOS):
        render_clip(folder / f"{i}.avi", seconds=1, fps=8, size=(64, 64), seed=i)
        rows.append({"video": f"{i}.avi", "caption": f"a {WORDS[i]} thing that moves"})
        if i % 2 == 0:
            rows.append({"video": f"{i}.avi", "caption": f"something {WORDS[i]} again"})
    pl.DataFrame(rows[:13]).write_csv(folder / "train.csv")
    pl.DataFrame([row for row in rows if row["video"] in ("1.avi", "3.avi", "4.avi")]).write_csv(folder / "val.csv")
    return folder


@pytest.fixture(scope="session")
def profile(tmp_path_factory):
    """Path of a profile: four frames on the smallest backbone that has a tokenizer."""
    path = tmp_path_factory.mktemp("profile") / "small.toml"
    path.write_text(PROFILE)
    return path


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Path of a plain CLIP with the sizes of the profile's backbone."""
    path = tmp_path_factory.mktemp("init") / "mini.pth"
    drawn = draw_clip(open_clip_backbone("tempme-mini"), seed=3)
    torch.save({f"clip.{name}": tensor for name, tensor in drawn.tensors.items()}, path)
    return path


@pytest.fixture(scope="session")
def recipe(checkpoint, profile):
    """`checkpoint` with `profile`."""
    return prepare(load_checkpoint(checkpoint), load_profile(profile))


@pytest.fixture(scope="session")
def logit_error(recipe, video_rounding, text_rounding):
    """How far a logit of `recipe` may lie from itself in another order of additions: the embeddings' difference times
    the scale. A loss is the difference of a logarithm of sums and a logit, so that it errs by at most twice that."""
    towers = (one(recipe.backbone).difference for one in (video_rounding, text_rounding))
    return float(recipe.checkpoint.tensors["logit_scale"].exp()) * sum(towers)


@pytest.fixture(scope="session")
def trainable():
    """TrainableModel of a recipe and a tuning, seed 0."""
    return lambda recipe, tune, rank=8, **more: TrainableModel(recipe, tune, rank, seed=0, **more)


@pytest.fixture(scope="session")
def data(clips):
    """The training data."""
    return open_data(clips / "train.csv", "train")


@pytest.fixture(scope="session")
def val(clips):
    """The validation data."""
    return open_data(clips / "val.csv", "test")


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """Folder for decoded frames, shared by the runs of all tests."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def config(tmp_path, cache):
    """Two epochs of three steps on one thread: LoRA, batches of 4, frames from the shared cache as they are."""
    settings = {"epochs": 2, "batch": 4, "rank": 2, "workers": 0, "device": "cpu", "rate": 1e-3}
    return TrainConfig(out=tmp_path / "out", cache=cache, augment="none", **settings)


@pytest.fixture
def run(config, recipe, data, val, recording):
    """Train with changes to `config`, or with another kind of Run; returns the result and what progress told."""

    def call(recipe=recipe, data=data, val=val, kind=None, **changes):
        told = recording()
        asked = (dataclasses.replace(config, **changes), recipe, data, val)
        if kind is None:
            return train(*asked, told), told
        return kind(*asked, World(0, 1, torch.device("cpu")), told).go(), told

    return call


@pytest.fixture(scope="session")
def weights_of():
    """A checkpoint's tensors by name."""
    return lambda path: torch.load(path, weights_only=True)["state_dict"]


@pytest.fixture(scope="session")
def assert_same_weights(weights_of):
    """Asserts that two checkpoints hold bitwise equal tensors, and that some are not zero."""

    def check(first, second):
        a, b = weights_of(first), weights_of(second)
        assert a.keys() == b.keys() and len(a) > 50
        different = [name for name in a if not torch.equal(a[name], b[name])]
        assert different == []
        assert any(float(a[name].abs().max()) > 0 for name in a if name.endswith("LoRA_b"))

    return check


@pytest.fixture(scope="session")
def broken_clips(clips, tmp_path_factory):
    """`clips` as data in which video 2 is cut short and video 5 is not there."""
    folder = tmp_path_factory.mktemp("broken")
    for path in clips.glob("*.avi"):
        whole = path.read_bytes()
        (folder / path.name).write_bytes(whole[: len(whole) // 2] if path.name == "2.avi" else whole)
    (folder / "5.avi").unlink()
    (folder / "train.csv").write_bytes((clips / "train.csv").read_bytes())
    return open_data(folder / "train.csv", "train")


@pytest.fixture(scope="session")
def pixels_of():
    """Random pictures for a batch of so many: uint8 [b, 4, 64, 64, 3]."""

    def draw(rows, seed=0):
        drawn = np.random.default_rng(seed).integers(0, 256, (rows, FRAMES, SIZE, SIZE, 3), np.uint8)
        return torch.from_numpy(drawn)

    return draw
