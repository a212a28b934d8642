"""Frames to pixels: resize, crop and normalise exactly as the backbone was trained."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tempme_export.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

    from tempme_export.encoder.recipe import Recipe

_EIGHT_BIT_MODES = (
    "1",
    "L",
    "LA",
    "La",
    "P",
    "PA",
    "RGB",
    "RGBA",
    "RGBa",
    "RGBX",
    "CMYK",
    "YCbCr",
    "LAB",
    "HSV",
)


@dataclass(frozen=True)
class Preprocess:
    """Resize the shorter side with antialiased bicubic, crop the centre, normalise.

    Pixel for pixel what torchvision computes on PIL images with Resize, CenterCrop, ToTensor and Normalize.

    size       side S of the square picture, pixels
    mean, std  per RGB channel, of values in [0, 1]
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, frames: "NDArray[np.uint8] | Sequence[Image.Image]") -> NDArray[np.float32]:
        """Turn RGB frames into the encoder's input.

        frames  uint8 [F, H, W, 3], or a list of F PIL images of any 8-bit mode and any sizes
        Returns float32 [F, 3, S, S]. Raises InputError.
        """
        return self.normalise(self.crop(frames))

    def crop(self, frames: "NDArray[np.uint8] | Sequence[Image.Image]") -> NDArray[np.uint8]:
        """The first half: resize and crop, as `__call__` takes them -> uint8 [F, S, S, 3]. Idempotent."""
        return np.stack([np.asarray(self._square(image)) for image in _images(frames)])

    def normalise(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The second half: uint8 [F, S, S, 3] -> float32 [F, 3, S, S]."""
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        normalised = (pixels.astype(np.float32) / np.float32(255) - mean) / std
        return np.ascontiguousarray(normalised.transpose(0, 3, 1, 2))

    def _square(self, image: "Image.Image") -> "Image.Image":
        from PIL import Image

        short = min(image.size)
        # The longer side is rounded down and the crop's offset to the nearest even, as in torchvision.
        width, height = (int(self.size * side / short) for side in image.size)
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = round((width - self.size) / 2), round((height - self.size) / 2)
        return image.crop((left, top, left + self.size, top + self.size))


def preprocess_for(recipe: "Recipe") -> Preprocess:
    """The resize, crop and normalisation of a recipe's backbone."""
    return Preprocess(recipe.backbone.image_size, recipe.backbone.mean, recipe.backbone.std)


def preprocess_in(manifest: Mapping[str, Any]) -> Preprocess:
    """The same, as a bundle's manifest states it."""
    image = manifest["image"]
    return Preprocess(image["size"], tuple(image["mean"]), tuple(image["std"]))


def _images(frames: "NDArray[np.uint8] | Sequence[Image.Image]") -> "list[Image.Image]":
    """Check the frames and return them as RGB images, at least one."""
    from PIL import Image

    if isinstance(frames, np.ndarray):
        _check_array(frames)
        return [Image.fromarray(frame) for frame in frames]
    if not isinstance(frames, Sequence) or isinstance(frames, str | bytes):
        raise InputError(
            f"found frames of type {type(frames).__name__}, expected a uint8 array [F, H, W, 3] or a list of "
            "PIL images. Put a single image in a list."
        )
    if len(frames) == 0:
        raise InputError("found no frames, expected at least 1. Pass a list with a PIL image in it.")
    return [_rgb(frame, index) for index, frame in enumerate(frames)]


def _check_array(frames: NDArray[np.uint8]) -> None:
    expected = "expected uint8 [F, H, W, 3]"
    if frames.dtype != np.uint8:
        raise InputError(f"found frames of dtype {frames.dtype}, {expected}. Pass RGB values from 0 to 255 as uint8.")
    if frames.ndim != 4:
        raise InputError(f"found frames of shape {list(frames.shape)}, {expected}. Pass one frame as frame[None].")
    if frames.shape[3] != 3:
        advice = "transpose(0, 2, 3, 1) puts channels last." if frames.shape[1] == 3 else "Convert the frames to RGB."
        raise InputError(f"found frames of shape {list(frames.shape)}, {expected}. {advice}")
    if frames.size == 0:
        raise InputError(f"found frames of shape {list(frames.shape)}, {expected}. Pass at least one frame and pixel.")


def _rgb(image: "Image.Image", index: int) -> "Image.Image":
    from PIL import Image

    if not isinstance(image, Image.Image):
        raise InputError(
            f"found frame {index} to be of type {type(image).__name__}, expected a PIL image. "
            "Pass arrays as one uint8 array [F, H, W, 3]."
        )
    if image.mode not in _EIGHT_BIT_MODES:
        raise InputError(
            f"found frame {index} in mode {image.mode}, expected 8 bits per channel. Scale it to 0..255 first."
        )
    if 0 in image.size:
        raise InputError(f"found frame {index} of size {image.size}, expected at least one pixel. Drop the frame.")
    try:
        return image.convert("RGB")
    except OSError as error:
        raise InputError(
            f"found frame {index} unreadable ({error}), expected a whole image. Copy its file again."
        ) from error
