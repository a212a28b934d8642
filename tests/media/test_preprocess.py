"""Pixels equal to torchvision's on PIL images, and what is said about frames that are none."""

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tempme_export.errors import InputError
from tempme_export.media.preprocess import Preprocess, preprocess_for, preprocess_in

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def torchvision_pixels(images, size, mean=MEAN, std=STD):
    transforms = pytest.importorskip("torchvision.transforms")
    torch = pytest.importorskip("torch")
    pipeline = transforms.Compose(
        [
            transforms.Resize(size, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
    )
    return torch.stack([pipeline(image.convert("RGB")) for image in images]).numpy()


# Odd sides, both orientations, the exact size, smaller than the crop, and strips down to one pixel.
@pytest.mark.parametrize("size", [224, 33])
@pytest.mark.parametrize(
    "height, width",
    [
        (240, 320),
        (321, 243),
        (224, 224),
        (224, 301),
        (33, 57),
        (17, 11),
        (1, 1),
        (3, 601),
        (599, 2),
        (225, 223),
    ],
)
def test_equals_torchvision(height, width, size):
    rng = np.random.default_rng(height * 1000 + width)
    frames = rng.integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    pixels = Preprocess(size, MEAN, STD)(frames)
    assert pixels.dtype == np.float32 and pixels.shape == (2, 3, size, size) and pixels.flags.c_contiguous
    np.testing.assert_array_equal(pixels, torchvision_pixels([Image.fromarray(frame) for frame in frames], size))


@settings(max_examples=60, deadline=None)
@given(height=st.integers(1, 90), width=st.integers(1, 90), size=st.integers(1, 40))
def test_equals_torchvision_on_any_size(height, width, size):
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    expected = torchvision_pixels([Image.fromarray(frame)], size)
    np.testing.assert_array_equal(Preprocess(size, MEAN, STD)(frame[None]), expected)


def test_every_byte_is_normalised_alike():
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    frame = np.stack([levels, levels[::-1], levels.T], axis=2)
    mean, std = (0.5, 0.1, 0.9), (0.5, 0.31, 0.07)
    expected = torchvision_pixels([Image.fromarray(frame)], 16, mean, std)
    np.testing.assert_array_equal(Preprocess(16, mean, std)(frame[None]), expected)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "YCbCr", "HSV", "LAB"])
def test_images_of_any_mode_and_size(mode):
    rng = np.random.default_rng(7)
    pictures = [Image.fromarray(rng.integers(0, 256, (*shape, 3), dtype=np.uint8)) for shape in ((41, 63), (77, 35))]
    if mode == "LAB":
        pictures = [Image.frombytes("LAB", picture.size, picture.tobytes()) for picture in pictures]
    else:
        pictures = [
            picture.convert("L").convert(mode) if mode == "LA" else picture.convert(mode) for picture in pictures
        ]
    np.testing.assert_array_equal(Preprocess(32, MEAN, STD)(pictures), torchvision_pixels(pictures, 32))
    np.testing.assert_array_equal(Preprocess(32, MEAN, STD)(tuple(pictures)), torchvision_pixels(pictures, 32))


def test_strided_and_read_only_arrays():
    rng = np.random.default_rng(1)
    frames = rng.integers(0, 256, (4, 30, 50, 3), dtype=np.uint8)
    frames.flags.writeable = False
    preprocess = Preprocess(20, MEAN, STD)
    np.testing.assert_array_equal(
        preprocess(frames[::2, ::-1, 5:40]), preprocess(np.ascontiguousarray(frames[::2, ::-1, 5:40]))
    )


def test_input_is_left_alone():
    rng = np.random.default_rng(2)
    frames = rng.integers(0, 256, (2, 20, 20, 3), dtype=np.uint8)
    before = frames.copy()
    Preprocess(20, MEAN, STD)(frames)
    np.testing.assert_array_equal(frames, before)


@pytest.mark.parametrize(
    "frames, said",
    [
        (np.zeros((2, 9, 9, 3), np.float32), "dtype float32"),
        (np.zeros((2, 9, 9, 3), np.int64), "dtype int64"),
        (np.zeros((2, 3, 9, 9), np.uint8), "channels last"),
        (np.zeros((2, 9, 9, 4), np.uint8), r"\[2, 9, 9, 4\]"),
        (np.zeros((9, 9, 3), np.uint8), r"frame\[None\]"),
        (np.zeros((0, 9, 9, 3), np.uint8), "at least one frame"),
        (np.zeros((2, 0, 9, 3), np.uint8), "at least one frame"),
        ([], "no frames"),
        ([np.zeros((9, 9, 3), np.uint8)], "frame 0 to be of type ndarray"),
        (["a.png"], "frame 0 to be of type str"),
        ("a.mp4", "type str"),
        (None, "type NoneType"),
        (Image.new("RGB", (9, 9)), "in a list"),
        ([Image.new("RGB", (9, 9)), Image.new("I;16", (9, 9))], "frame 1 in mode I;16"),
        ([Image.new("F", (9, 9))], "mode F"),
        ([Image.new("RGB", (0, 9))], r"size \(0, 9\)"),
    ],
)
def test_refuses_what_is_not_frames(frames, said):
    with pytest.raises(InputError, match=said) as caught:
        Preprocess(8, MEAN, STD)(frames)
    assert "found" in str(caught.value) and "expected" in str(caught.value)


def test_refuses_a_broken_image_file(tmp_path):
    rng = np.random.default_rng(3)
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:4000])
    with Image.open(tmp_path / "cut.png") as image, pytest.raises(InputError, match="frame 0 unreadable"):
        Preprocess(8, MEAN, STD)([image])


def test_a_recipe_and_the_manifest_made_of_it_state_the_same():
    backbone = SimpleNamespace(image_size=33, mean=MEAN, std=STD)
    manifest = json.loads(json.dumps({"image": {"size": 33, "mean": MEAN, "std": STD}}))
    found = preprocess_for(SimpleNamespace(backbone=backbone)), preprocess_in(manifest)
    assert found == (Preprocess(33, MEAN, STD),) * 2
    assert len(set(found)) == 1, "tuples, as a key needs them"


def test_imports_neither_torch_nor_torchvision():
    code = "import sys, tempme_export.media.preprocess; sys.exit(bool({'torch', 'torchvision'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
