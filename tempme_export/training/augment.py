"""RandAugment: a few random operations on the pictures of a video, the same for all of its frames.

Operations, strengths and chances are those of timm's `rand-m7-n4-mstd0.5-inc1` with bicubic interpolation. They stand
here since timm draws from the random state that all threads share, and would bring torch (0.7 GB, 3 s) into every
process that decodes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

OPERATIONS = 4  # drawn for a video, one may come twice
CHANCE = 0.5  # that a drawn one is applied
MAGNITUDE, NOISE, LARGEST = 7.0, 0.5, 10.0  # mean and standard deviation of the strength; where it is cut

_GREY = (128, 128, 128)  # where a moved picture leaves nothing

Picture = Image.Image


def _affine(image: Picture, *matrix: float) -> Picture:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=_GREY)


def _brighten_dark(image: Picture, amount: int) -> Picture:
    return image.point([min(255, value + amount) if value < 128 else value for value in range(256)] * 3)


def _blend(strength: float) -> float:
    """Enhancement factor: 1 changes nothing, 0 would leave none of the picture, 2 doubles the difference."""
    return max(0.1, 1 + 0.9 * strength)


# Of an RGB picture and a strength from -1 to 1; what has one direction looks at its size alone.
_APPLY: dict[str, Callable[[Picture, float], Picture]] = {
    "autocontrast": lambda image, _: ImageOps.autocontrast(image),
    "equalize": lambda image, _: ImageOps.equalize(image),
    "invert": lambda image, _: ImageOps.invert(image),
    "rotate": lambda image, s: image.rotate(s * 30, Image.Resampling.BICUBIC, fillcolor=_GREY),
    "posterize": lambda image, s: ImageOps.posterize(image, max(1, 4 - int(abs(s) * 4))),
    "solarize": lambda image, s: ImageOps.solarize(image, 256 - int(abs(s) * 256)),
    "solarize-add": lambda image, s: _brighten_dark(image, int(abs(s) * 110)),
    "colour": lambda image, s: ImageEnhance.Color(image).enhance(_blend(s)),
    "contrast": lambda image, s: ImageEnhance.Contrast(image).enhance(_blend(s)),
    "brightness": lambda image, s: ImageEnhance.Brightness(image).enhance(_blend(s)),
    "sharpness": lambda image, s: ImageEnhance.Sharpness(image).enhance(_blend(s)),
    "shear-x": lambda image, s: _affine(image, 1, s * 0.3, 0, 0, 1, 0),
    "shear-y": lambda image, s: _affine(image, 1, 0, 0, s * 0.3, 1, 0),
    "translate-x": lambda image, s: _affine(image, 1, 0, s * 0.45 * image.width, 0, 1, 0),
    "translate-y": lambda image, s: _affine(image, 1, 0, 0, 0, 1, s * 0.45 * image.height),
}
NAMES = tuple(_APPLY)


def apply(name: str, strength: float, frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """One operation of NAMES on every frame: uint8 [F, H, W, 3] -> the same; `strength` from -1 to 1."""
    return np.stack([np.asarray(_APPLY[name](Image.fromarray(frame), strength)) for frame in frames])


@dataclass(frozen=True)
class RandAugment:
    """Augmentation of one caption's video in one epoch of a run: the same on any machine and in any process."""

    seed: int
    epoch: int
    caption: int

    def draw(self) -> list[tuple[str, float]]:
        """The operations in their order, each with its strength from -1 to 1."""
        # Caption 0 would have the stream of the epoch's shuffle, since zeros at the end of a seed do not count.
        generator = np.random.default_rng([self.seed, self.epoch, self.caption + 1])
        drawn = []
        for number in generator.integers(len(NAMES), size=OPERATIONS):
            applied, positive = generator.random(2) < (CHANCE, 0.5)
            size = float(np.clip(generator.normal(MAGNITUDE, NOISE), 0, LARGEST)) / LARGEST
            if applied:
                drawn.append((NAMES[number], size if positive else -size))
        return drawn

    def __call__(self, frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """uint8 [F, H, W, 3] -> the same."""
        for name, strength in self.draw():
            frames = apply(name, strength, frames)
        return frames
