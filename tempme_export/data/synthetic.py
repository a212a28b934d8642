"""A rendered world of moving shapes with captions, in which the order of events matters.

Each clip shows one shape that moves twice: "a red square moves left, then up". Where it starts is drawn, so that no
single picture tells the motion. Each motion has a partner whose clips show the same places in another order ("down,
then right", or for "left, then right" the way "right, then left"), so that an encoder which averages frames cannot
tell the two apart however well it sees: within one look it finds at most half.
"""

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from tempme_export.errors import InputError
from tempme_export.files import building, publish
from tempme_export.media.writer import write_video
from tempme_export.progress import SILENT, Progress

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 80, 230),
    "yellow": (235, 215, 50),
    "white": (240, 240, 240),
}
# Corners around the origin, in radii; a circle has none and is drawn as an ellipse.
_CORNERS: dict[str, list[tuple[float, float]]] = {
    "square": [(-1, -1), (1, -1), (1, 1), (-1, 1)],
    "triangle": [(0, -1.2), (1.15, 0.9), (-1.15, 0.9)],
    "cross": [
        *((-0.35, -1.2), (0.35, -1.2), (0.35, -0.35), (1.2, -0.35), (1.2, 0.35), (0.35, 0.35)),
        *((0.35, 1.2), (-0.35, 1.2), (-0.35, 0.35), (-1.2, 0.35), (-1.2, -0.35), (-0.35, -0.35)),
    ],
}
SHAPES = ("square", "circle", "triangle", "cross")
MOVES = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}

SIDE = 64  # pixels
PICTURES = 12  # of one clip
FPS = 6
TRAIN_CLIPS, TEST_CLIPS = 4800, 200
FORMAT, WORLD = 1, "world.json"
_OVERSAMPLE = 4
_RADIUS = (0.11, 0.16)  # of the picture's side
_REACH = (0.28, 0.42)  # length of one move, of the picture's side


@dataclass(frozen=True)
class Scene:
    """Content of one clip."""

    colour: str
    shape: str
    first: str
    second: str

    @property
    def look(self) -> str:
        """Description that any single picture of the clip bears out."""
        return f"{self.colour} {self.shape}"

    @property
    def caption(self) -> str:
        """Caption of the clip."""
        return f"a {self.look} moves {self.first}, then {self.second}"


def all_scenes() -> list[Scene]:
    """Every look with every ordered pair of different moves, in a fixed order."""
    return [
        Scene(colour, shape, first, second)
        for colour, shape in itertools.product(COLOURS, SHAPES)
        for first, second in itertools.permutations(MOVES, 2)
    ]


def _outline(shape: str, x: float, y: float, radius: float) -> list[tuple[float, float]]:
    """Corners of a shape around (x, y), pixels."""
    return [(x + radius * dx, y + radius * dy) for dx, dy in _CORNERS[shape]]


def _path(scene: Scene, radius: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Centres over time, [PICTURES, 2] in [0, 1]: two moves of equal duration from a drawn start."""
    steps = np.array([MOVES[scene.first], MOVES[scene.second]]) * rng.uniform(*_REACH)
    corners = np.concatenate([np.zeros((1, 2)), np.cumsum(steps, axis=0)])
    margin = 1.2 * radius + 0.02
    low, high = margin - corners.min(axis=0), 1 - margin - corners.max(axis=0)
    corners += rng.uniform(low, high)
    at = np.linspace(0, 2, PICTURES)
    return np.stack([np.interp(at, [0, 1, 2], corners[:, axis]) for axis in (0, 1)], axis=1)


def draw_pictures(scene: Scene, seed: int | Sequence[int]) -> Iterator[NDArray[np.uint8]]:
    """The clip's pictures, uint8 [SIDE, SIDE, 3] each: start, reach, shade and background are drawn from the seed."""
    rng = np.random.default_rng(seed)
    radius = rng.uniform(*_RADIUS)
    path = _path(scene, radius, rng)
    colour = np.clip(np.array(COLOURS[scene.colour]) * rng.uniform(0.85, 1.05), 0, 255)
    ground = rng.uniform(0, 60, 3) + rng.normal(0, 6, (8, 8, 1))
    side = SIDE * _OVERSAMPLE
    background = Image.fromarray(np.clip(ground, 0, 255).astype(np.uint8)).resize(
        (side, side), Image.Resampling.BICUBIC
    )
    fill = tuple(int(value) for value in colour)
    for x, y in path:
        image = background.copy()
        draw, cx, cy, r = ImageDraw.Draw(image), x * side, y * side, radius * side
        if scene.shape not in _CORNERS:
            draw.ellipse((cx - r, cy - r, cx + r, cy + r), fill=fill)
        else:
            draw.polygon(_outline(scene.shape, cx, cy, r), fill=fill)
        yield np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX))


def _render(job: tuple[Path, Scene, tuple[int, ...]]) -> None:
    path, scene, seed = job
    write_video(path, draw_pictures(scene, seed), FPS, (SIDE, SIDE))


@dataclass(frozen=True)
class Split:
    """One part of the world: a scene per clip, in order."""

    name: str
    scenes: tuple[Scene, ...]


def draw_splits(train_clips: int, test_clips: int, seed: int) -> tuple[Split, Split]:
    """Draw the scenes of both splits: the training split repeats all of them, the held-out ones are all different.

    Raises InputError for counts that cannot be had.
    """
    scenes, rng = all_scenes(), np.random.default_rng(seed)
    if train_clips < 1 or not 1 <= test_clips <= len(scenes):
        raise InputError(
            f"found {train_clips} training and {test_clips} held-out clips, expected at least 1, and 1 to "
            f"{len(scenes)}, which is how many different captions there are."
        )
    held = [scenes[i] for i in sorted(rng.permutation(len(scenes))[:test_clips])]
    rounds = -(-train_clips // len(scenes))
    order = np.concatenate([rng.permutation(len(scenes)) for _ in range(rounds)])[:train_clips]
    return Split("train", tuple(scenes[i] for i in order)), Split("test", tuple(held))


def _write_split(
    folder: Path, split: Split, seed: int, pool: ProcessPoolExecutor, rendered: Callable[[], None]
) -> None:
    (folder / split.name).mkdir()
    names = [f"{split.name}/{index:05d}.mp4" for index in range(len(split.scenes))]
    jobs = [
        (folder / name, scene, (seed, split.name == "test", index))
        for index, (name, scene) in enumerate(zip(names, split.scenes, strict=True))
    ]
    for _ in pool.map(_render, jobs, chunksize=8):
        rendered()
    captions, looks = [scene.caption for scene in split.scenes], [scene.look for scene in split.scenes]
    pl.DataFrame({"video": names, "caption": captions, "group": looks}).write_csv(folder / f"{split.name}.csv")


def write_world(
    folder: Path,
    train_clips: int = TRAIN_CLIPS,
    test_clips: int = TEST_CLIPS,
    seed: int = 0,
    workers: int = 2,
    progress: Progress = SILENT,
) -> None:
    """Render the world into `folder`: train.csv and test.csv (video, caption, group) over H.264 files.

    A clip depends on the seed, its split and its number alone. Clips of one `group` look alike and move differently.
    The folder appears when it is complete; one that is there and was written with the same arguments is kept.
    Raises InputError for a folder of other arguments or other contents, ExportError where the disk refuses.
    """
    facts = {"format": FORMAT, "train_clips": train_clips, "test_clips": test_clips, "seed": seed}
    if folder.exists():
        _check_world(folder, facts)
        return
    splits = draw_splits(train_clips, test_clips, seed)
    done = itertools.count(1)
    with building(folder) as work:
        with (
            progress.step("rendering clips", train_clips + test_clips, "clips") as step,
            ProcessPoolExecutor(workers, get_context("spawn")) as pool,
        ):
            for split in splits:
                _write_split(work, split, seed, pool, lambda: step.advance(next(done)))
        (work / WORLD).write_text(json.dumps(facts))
        publish(work, folder, replace=False)


def _check_world(folder: Path, facts: dict[str, int]) -> None:
    try:
        found = json.loads((folder / WORLD).read_text())
    except (OSError, ValueError, RecursionError):
        raise InputError(
            f"{folder} exists and is no rendered world; it is left alone. Choose another folder."
        ) from None
    if found != facts:
        raise InputError(f"{folder} was rendered with {found}, expected {facts}. Delete it, or choose another folder.")
