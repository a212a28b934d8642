"""Tiny videos, and files that are none."""

from pathlib import Path

import numpy as np
import pytest

from tempme_export.media.preprocess import Preprocess


@pytest.fixture(scope="session")
def clips(tmp_path_factory):
    """Paths of five clips of several lengths and sizes; the first takes longest to read. Copy one to change it."""
    pytest.importorskip("av")
    from tempme_export.media.render import render_clip

    folder = tmp_path_factory.mktemp("clips")
    sizes = [(320, 240), (48, 64), (64, 48), (34, 34), (80, 32)]
    lengths = [8, 1, 2, 0.25, 3]  # seconds
    paths = tuple(folder / f"{seed}.mp4" for seed in range(len(sizes)))
    for seed, (path, size, seconds) in enumerate(zip(paths, sizes, lengths, strict=True)):
        render_clip(path, seconds, 8, size, seed)
    return paths


@pytest.fixture(scope="session")
def unreadable(clips, tmp_path_factory) -> dict[str, Path]:
    """Paths of files that cannot be read, by what is wrong with them."""
    folder = tmp_path_factory.mktemp("unreadable")
    paths = {name: folder / f"{name}.mp4" for name in ("missing", "empty", "noise", "cut")}
    paths["empty"].touch()
    paths["noise"].write_bytes(np.random.default_rng(0).bytes(5000))
    whole = clips[0].read_bytes()
    paths["cut"].write_bytes(whole[: len(whole) // 2])
    return paths


@pytest.fixture(scope="session")
def preprocess():
    """Pictures of 30 pixels: no clip's size, and no power of two."""
    return Preprocess(30, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
