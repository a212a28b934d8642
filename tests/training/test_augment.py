"""RandAugment: operation by operation what timm does, and the same draws wherever a video is decoded."""

import random
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from timm.data import auto_augment

from tempme_export.data.clip_batches import placed_batches
from tempme_export.data.frames import FrameFiles
from tempme_export.media.preprocess import preprocess_for
from tempme_export.media.video import read_frames
from tempme_export.training.augment import NAMES, OPERATIONS, RandAugment, apply

THEIRS = dict(
    zip(
        NAMES,
        (
            *("AutoContrast", "Equalize", "Invert", "Rotate", "PosterizeIncreasing", "SolarizeIncreasing"),
            *("SolarizeAdd", "ColorIncreasing", "ContrastIncreasing", "BrightnessIncreasing", "SharpnessIncreasing"),
            *("ShearX", "ShearY", "TranslateXRel", "TranslateYRel"),
        ),
        strict=True,
    )
)
ONE_SIGN = {"autocontrast", "equalize", "invert", "posterize", "solarize", "solarize-add"}


def pictures(frames=3, height=37, width=53):
    """Smooth enough that interpolation shows, dark enough that contrast does."""
    y, x, f = np.mgrid[:height, :width, :frames]
    planes = [(3 * x + 40 * f) % 160, (2 * y + x) % 200 + 20, 40 + (x * y + 11 * f) % 120]
    return np.ascontiguousarray(np.stack(planes, -1).astype(np.uint8).transpose(2, 0, 1, 3))


def test_the_operations_are_timms():
    theirs = auto_augment.rand_augment_transform("rand-m7-n4-mstd0.5-inc1")
    assert sorted(THEIRS.values()) == sorted(op.name for op in theirs.ops)
    assert theirs.num_layers == OPERATIONS and {op.prob for op in theirs.ops} == {0.5}
    assert {(op.magnitude, op.magnitude_std, op.magnitude_max) for op in theirs.ops} == {(7, 0.5, None)}


def seeded(sign, operation, image):
    """timm tosses a coin for the direction; this decides it."""
    random.seed(next(seed for seed in range(99) if (random.Random(seed).random() < 0.5) == (sign > 0)))
    return operation(image)


@pytest.mark.parametrize("magnitude", [0.0, 5.1, 7.0, 7.5, 9.9])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sign", [1, -1])
def test_each_is_timms_pixel_for_pixel(name, magnitude, sign):
    settings = {"interpolation": Image.Resampling.BICUBIC, "img_mean": (128, 128, 128)}
    theirs = auto_augment.AugmentOp(THEIRS[name], prob=1.0, magnitude=magnitude, hparams=settings)
    frames = pictures()
    drawn = random.getstate()
    expected = np.stack([np.asarray(seeded(sign, theirs, Image.fromarray(frame))) for frame in frames])
    random.setstate(drawn)
    found = apply(name, sign * magnitude / 10, frames)
    np.testing.assert_array_equal(found, expected)
    if magnitude >= 5:
        assert (found != frames).any()
        other = apply(name, -sign * magnitude / 10, frames)
        assert np.array_equal(found, other) == (name in ONE_SIGN)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("strength", [1.0, -1.0])
def test_the_strongest_leaves_a_picture(name, strength):
    """Six standard deviations out; a picture of one pixel and one of one colour are pictures too."""
    for frames in (pictures(), pictures(1, 1, 1), np.full((2, 5, 3, 3), 200, np.uint8)):
        assert apply(name, strength, frames).shape == frames.shape


class TestDraws:
    def many(self):
        return [RandAugment(3, 1, caption).draw() for caption in range(4000)]

    def test_as_often_and_as_strong_as_asked(self):
        """Four draws, each applied in half of the cases: within five standard deviations of what chance gives."""
        drawn = self.many()
        lengths = np.bincount([len(one) for one in drawn], minlength=5) / 4000
        np.testing.assert_allclose(lengths, np.array([1, 4, 6, 4, 1]) / 16, atol=5 * 0.0077)
        names, strengths = zip(*(one for each in drawn for one in each), strict=True)
        counts = np.array([names.count(name) for name in NAMES])
        np.testing.assert_allclose(counts / len(names), 1 / 15, atol=5 * 0.0028)
        sizes = np.abs(strengths)
        assert abs(sizes.mean() - 0.7) < 5 * 0.05 / 89 and abs(sizes.std() - 0.05) < 5 * 0.05 / 126
        assert abs(np.mean(np.array(strengths) > 0) - 0.5) < 5 * 0.5 / 89

    def test_they_hang_on_seed_epoch_and_caption_alone(self):
        random.seed(1)
        np.random.seed(1)
        before = random.getstate(), np.random.get_state()[1].tolist()
        first = RandAugment(0, 1, 2).draw()
        assert (random.getstate(), np.random.get_state()[1].tolist()) == before
        assert RandAugment(0, 1, 2).draw() == first
        others = [RandAugment(*key).draw() for key in ((1, 1, 2), (0, 2, 2), (0, 1, 3), (0, 0, 0), (0, 2, 1))]
        assert len({str(one) for one in [first, *others]}) == 6


def changed_one():
    """A draw in which something moves the picture."""
    return next(
        one
        for one in (RandAugment(0, 0, caption) for caption in range(100))
        if {name for name, _ in one.draw()} & {"rotate", "shear-x", "translate-y"}
    )


def test_all_frames_of_a_video_are_changed_alike():
    one = changed_one()
    frames = np.repeat(pictures(frames=1), 4, axis=0)
    found = one(frames)
    assert found.shape == frames.shape and found.dtype == np.uint8 and (found != frames).any()
    assert all(np.array_equal(frame, found[0]) for frame in found)


@pytest.mark.parametrize("workers", [0, 2])
def test_whole_frames_are_changed_before_they_are_resized(data, recipe, workers):
    preprocess = preprocess_for(recipe)
    source = FrameFiles(data.clips, 4, preprocess)
    selected = [[3, 0], [3]]
    changes = [[RandAugment(7, 2, caption) for caption in captions] for captions in ((4, 0), (11,))]
    found = list(placed_batches(source, selected, workers, [*changes[0], *changes[1]]))
    for videos, each, clips in zip(selected, changes, found, strict=True):
        for video, change, pixels in zip(videos, each, clips.pixels, strict=True):
            expected = preprocess.crop(change(read_frames(data.paths[video], 4)))
            np.testing.assert_array_equal(pixels, expected)
    assert (found[0].pixels[0] != found[1].pixels[0]).any(), "one video, two captions"


def test_a_process_that_decodes_stays_light():
    code = "import sys, tempme_export.training.augment; sys.exit(len({'torch', 'timm', 'av'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
