"""Pixels in 8 bits, as the video file had them: nothing is lost."""

import numpy as np
import pytest
import torch

from tempme_export.encoder.model import Linear, VideoEncoder
from tempme_export.media.preprocess import Preprocess
from tempme_export.quantization.pixels import PIXELS, PixelPatches

CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.fixture
def every_pixel():
    """uint8 [1, 16, 16, 3]: each value in each colour, in another order for each."""
    columns = [np.roll(np.arange(256, dtype=np.uint8), shift) for shift in (0, 7, 100)]
    return np.stack(columns, axis=-1).reshape(1, 16, 16, 3)


def patches(every_pixel, mean, std):
    """One patch of 16 * 16 pixels, the colours outermost, normalised as frames arrive: float32 [1, 768]."""
    return torch.from_numpy(Preprocess(16, mean, std).normalise(every_pixel)).reshape(1, -1)


@pytest.mark.parametrize("colours", [CLIP, IMAGENET], ids=["clip", "imagenet"])
def test_every_value_of_every_colour_comes_back(every_pixel, colours):
    module = PixelPatches(Linear(torch.eye(768)), *colours)
    given = []
    module.linear.register_forward_pre_hook(lambda _, args: given.append(args[0]))
    module(patches(every_pixel, *colours))
    expected = every_pixel.transpose(0, 3, 1, 2).reshape(1, -1)
    steps = PIXELS.rounded(given[0]) / PIXELS.scale
    np.testing.assert_allclose(steps.numpy(), expected, rtol=2**-23, atol=0)  # times the scale, and divided by it
    assert float((given[0] / PIXELS.scale - steps).abs().max()) < 1e-2, "far from a tie, whatever rounds"
    assert PIXELS.zero_point == 0 and PIXELS.scale == 1 / 255


@pytest.mark.parametrize("colours", [CLIP, IMAGENET], ids=["clip", "imagenet"])
def test_the_patch_embedding_is_what_it_was(every_pixel, colours, step_error):
    weight = torch.randn(7, 768, generator=torch.Generator().manual_seed(1)) * 768**-0.5
    x = patches(every_pixel, *colours)
    exact = x.double() @ weight.double().T
    found = PixelPatches(Linear(weight), *colours)(x)
    mean, std = (torch.tensor(one).double().repeat_interleave(256) for one in colours)
    sizes = (x.double().abs() + 2 * mean / std) @ weight.double().abs().T  # pixels and their mean are summed apart
    assert ((found.double() - exact).abs() <= step_error(torch.float32) * sizes).all()


def test_the_recipe_keeps_its_weights(plain_recipe):
    encoder = VideoEncoder(plain_recipe)
    before = encoder.conv1.weight.clone()
    PixelPatches(encoder.conv1, plain_recipe.backbone.mean, plain_recipe.backbone.std)
    assert torch.equal(encoder.conv1.weight, before)
