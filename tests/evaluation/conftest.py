"""A small model with a tokenizer, its bundle, a folder of clips with captions, and an encoder without a model."""

import hashlib

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image

from tempme_export.data.annotations import open_data
from tempme_export.encoder.profile import load_profile
from tempme_export.encoder.random_weights import draw_state_dict
from tempme_export.media.preprocess import Preprocess
from tempme_export.media.render import render_clip
from tempme_export.pipeline import export

CLIPS = ("a", "b", "c", "d", "e")


MINI = """
name = "mini"
backbone = "tempme-mini"
frames = 8
text_length = 24

[merge]
image_r = 0
clip_layers = [2]
clip_factors = [8]
cross_percent = 30
intra_percent = 0
size_bias = true
clip_position = true

[shapes]
batch = [1, 2, 4]
"""


@pytest.fixture(scope="session")
def mini_profile(tmp_path_factory):
    """Path of a profile with a tokenizer and a single merge: it exports three times as fast as `mini-8f`. Five clips
    are three of its usual batches."""
    path = tmp_path_factory.mktemp("mini") / "mini.toml"
    path.write_text(MINI)
    return path


@pytest.fixture(scope="session")
def mini_checkpoint(mini_profile):
    """Path of a checkpoint of `mini_profile`: random weights, 8 frames of 64 pixels, CLIP's vocabulary."""
    path = mini_profile.parent / "mini.pth"
    torch.save(draw_state_dict(load_profile(mini_profile), seed=3), path)
    return path


@pytest.fixture(scope="session")
def mini_bundle(mini_checkpoint, mini_profile, tmp_path_factory):
    """Path of its bundle, built and accepted for real. Do not write there."""
    out = tmp_path_factory.mktemp("bundles") / "mini.tempme"
    export.export(mini_checkpoint, mini_profile, out)
    return out


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Folder with five clips and `data.csv`: a and d have two captions, a, b and c are one group, d and e another.

    Do not write there.
    """
    folder = tmp_path_factory.mktemp("world")
    for seed, name in enumerate(CLIPS):
        render_clip(folder / f"{name}.avi", seconds=1, fps=8, size=(80, 64), seed=seed)
    rows = [(f"{name}.avi", name, f"clip {name} in words", "one" if name in "abc" else "two") for name in CLIPS]
    rows += [("a.avi", "a", "another of a", "one"), ("d.avi", "d", "another of d", "two")]
    pl.DataFrame(rows, schema=["video", "video_id", "caption", "group"], orient="row").write_csv(folder / "data.csv")
    return folder


@pytest.fixture
def world_data(world):
    """Its RetrievalData."""
    return open_data(world / "data.csv", "test")


@pytest.fixture(scope="session")
def noise():
    """uint8 [5, 8, 64, 64, 3]: blurred noise, clips already cropped for the mini model."""
    coarse = np.random.default_rng(21).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    frames = [np.asarray(Image.fromarray(c).resize((64, 64), Image.Resampling.BICUBIC)) for c in coarse]
    return np.stack(frames).reshape(5, 8, 64, 64, 3)


def _direction(content, width):
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(content).digest()[:8], "little"))
    row = rng.standard_normal(width)
    return (row / np.linalg.norm(row)).astype(np.float32)


class FakeEncoder:
    """A direction drawn from each clip's or text's bytes. Counts what it encodes; raises after `stop` videos."""

    name = "fake"

    def __init__(self, fingerprint="f" * 64, stop=None, frames=4, size=16, embed=6):
        self.fingerprint, self.stop, self.frames, self.embed = fingerprint, stop, frames, embed
        self.preprocess = Preprocess(size, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
        self.batches, self.texts, self.closed = [], [], False

    @property
    def videos(self):
        """How many videos were encoded."""
        return sum(self.batches)

    def encode_frames(self, frames):
        assert frames.dtype == np.uint8
        assert frames.shape[1:] == (self.frames, self.preprocess.size, self.preprocess.size, 3)
        if self.stop is not None and self.videos + len(frames) > self.stop:
            raise KeyboardInterrupt
        self.batches.append(len(frames))
        return np.stack([_direction(clip.tobytes(), self.embed) for clip in frames])

    def encode_text(self, texts):
        self.texts += texts
        return np.stack([_direction(text.encode(), self.embed) for text in texts])

    def close(self):
        self.closed = True


@pytest.fixture
def fake_encoder():
    """The class, an Encoder without a model."""
    return FakeEncoder
