"""A short clip to try the tools on, when no video is at hand."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from tempme_export.errors import InputError
from tempme_export.media.writer import check_video_path, write_video

_N_SHAPES = 5


def render_clip(
    path: str | os.PathLike[str],
    seconds: float = 6,
    fps: int = 25,
    size: tuple[int, int] = (320, 240),
    seed: int = 0,
) -> None:
    """Write a video of coloured shapes that drift over a gradient; the same arguments give the same pictures.

    path  .mp4 (H.264 where PyAV has the encoder) or .avi (MPEG-4); an existing file is replaced
    size  width, height in pixels, both even
    Raises InputError for what cannot be rendered and BackendError without PyAV.
    """
    path = Path(path)
    width, height = size
    n_frames = round(seconds * fps)
    check_video_path(path)
    if n_frames < 1 or fps < 1:
        raise InputError(f"found {seconds} s at {fps} frames per second, expected at least one frame. Ask for more.")
    if min(size) < 16 or width % 2 or height % 2:
        raise InputError(f"found a size of {width}x{height}, expected even numbers, at least 16. Round them.")
    write_video(path, _pictures(n_frames, width, height, seed), fps, size)


def _pictures(n_frames: int, width: int, height: int, seed: int) -> Iterator[NDArray[np.uint8]]:
    """Draw n_frames pictures, uint8 [height, width, 3]."""
    rng = np.random.default_rng(seed)
    extent = np.array([width, height])
    colours = rng.integers(64, 256, (_N_SHAPES, 3))
    starts = rng.uniform(0.0, 1.0, (_N_SHAPES, 2))
    speeds = rng.uniform(-0.01, 0.01, (_N_SHAPES, 2))  # of the picture's extent per frame
    radii = rng.uniform(0.08, 0.2, _N_SHAPES) * min(width, height)
    background = _gradient(width, height, rng.integers(0, 128, (2, 3)))
    for index in range(n_frames):
        image = Image.fromarray(background)
        draw = ImageDraw.Draw(image)
        centres = (starts + speeds * index) % 1.0 * extent
        for shape, ((x, y), radius) in enumerate(zip(centres, radii, strict=True)):
            outline = draw.ellipse if shape % 2 else draw.rectangle
            outline((x - radius, y - radius, x + radius, y + radius), fill=tuple(map(int, colours[shape])))
        yield np.asarray(image)


def _gradient(width: int, height: int, corners: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Blend two colours [2, 3] from the top left to the bottom right."""
    along = np.add.outer(np.linspace(0, 0.5, height), np.linspace(0, 0.5, width))[..., None]
    blend: NDArray[np.float64] = corners[0] * (1 - along) + corners[1] * along
    return blend.astype(np.uint8)
