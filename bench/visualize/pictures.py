"""A merge picture as in Figures 4 and 7 of the paper: patches of one token share their border and their fill."""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from tempme_export.artifacts.bundle import Bundle
from tempme_export.bench.cases import Case
from tempme_export.bench.visualize.merges import Stage, drawn_blocks, video_merges
from tempme_export.errors import InputError, UsageError
from tempme_export.files import write_file

OVERVIEW, ANIMATION = "merges.png", "merges.gif"
SECONDS = 1.2  # each picture of the animation is shown

_FRAME = 112  # pixels of a drawn frame, where its patches are large enough
_LEAST_PATCH = 12  # pixels along the side of a drawn patch
_WIDEST = 2400  # pixels of one row of frames
_GAP, _MARGIN, _BAR = 6, 20, 3  # pixels
_PAPER, _INK, _PALE = (255, 255, 255), (28, 30, 34), (112, 118, 128)
_BAR_COLOUR = (150, 156, 166)
_TITLE_SIZE, _NOTE_SIZE, _LINE = 18, 15, 20  # pixels
_TITLE, _NOTE = (cast(ImageFont.FreeTypeFont, ImageFont.load_default(size)) for size in (_TITLE_SIZE, _NOTE_SIZE))
_NEUTRAL = np.array([128.0, 128.0, 128.0])
_NEUTRAL_SHARE = 0.45  # of the border around a patch that is a token of its own

_TURN = (5**0.5 - 1) / 2  # golden ratio: consecutive hues lie far apart
_SHADES = ((0.9, 1.0), (0.9, 0.75), (0.45, 1.0))  # saturation, value
_LIGHT, _LEAST_LIGHT = np.array([0.299, 0.587, 0.114]), 90.0  # luma, of 255
_CANDIDATES = 64
_APART = 120.0
_APART_IN_FRAME = 60.0  # the same between tokens of one frame, or of two frames that follow each other

_LEGEND = (
    "Patches of one token share their border and are filled with its mean colour; a thin grey border is a token of "
    "one patch. A bar under the frames spans one clip."
)


@dataclass(frozen=True)
class MergePictures:
    """Pictures that were drawn.

    paths   the written files: a picture for every stage, the overview, the animation
    stages  in order
    origin  the graph or the weights that decided which tokens merge
    """

    paths: tuple[Path, ...]
    stages: tuple[Stage, ...]
    origin: str


def draw_merges(model: Case | Bundle, video: Path, out: Path, allow_damaged: bool = False) -> MergePictures:
    """Run one video and write its merge pictures into a folder, which is made where there is none.

    model, allow_damaged  as `video_merges` takes them
    Raises UsageError, before the model runs, for a folder that cannot be written or already holds such pictures;
    otherwise as `video_merges`.
    """
    schedule = model.schedule if isinstance(model, Bundle) else model.recipe.schedule
    _free_paths(out, len(drawn_blocks(schedule)))
    merged = video_merges(model, video, allow_damaged)
    paths = save_pictures(merged.frames, merged.stages, out)
    return MergePictures(tuple(paths), merged.stages, merged.origin)


def save_pictures(frames: NDArray[np.uint8], stages: Sequence[Stage], out: Path) -> list[Path]:
    """Write `stage-1.png`, ..., `merges.png` (the video, then every stage) and `merges.gif` (the same in time).

    frames  uint8 [F, S, S, 3]
    Returns the paths in this order. No file is ever replaced: raises UsageError where one of them exists or cannot be
    written, and InputError as `draw_stage`.
    """
    paths = _free_paths(out, len(stages))
    grid = stages[0].groups.shape[1]
    start = f"input: {len(frames)} frames of {grid} x {grid} patches"
    panels = [_Panel(start, "", _row(_tiles(frames, grid), len(frames)))]
    total = frames.shape[0] * grid**2
    for stage in stages:
        count = f"{total} patches in {stage.patch_tokens} tokens, and {stage.tokens - stage.patch_tokens} class tokens"
        panels.append(_Panel(stage.title, count, draw_stage(frames, stage.groups, stage.clips)))
    width = max(panel.width for panel in panels)
    canvases = [_canvas([panel], width=width) for panel in panels]
    overview = _canvas(panels, _LEGEND)
    for path, canvas in zip(paths, [*canvases[1:], overview], strict=False):
        write_file(path, partial(canvas.save, format="PNG", optimize=True))
    write_file(paths[-1], partial(_animate, canvases))
    return paths


def _free_paths(out: Path, stages: int) -> list[Path]:
    """The files to write, in a folder that exists from here on. Raises UsageError where one of them exists."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{out} cannot be a folder: {error}. Name another one.") from error
    paths = [out / name for name in (*(f"stage-{k + 1}.png" for k in range(stages)), OVERVIEW, ANIMATION)]
    found = [path.name for path in paths if path.exists() or path.is_symlink()]
    if found:
        raise UsageError(f"{out} already holds {', '.join(found)}. Name another folder, or remove what is there.")
    return paths


def draw_stage(frames: NDArray[np.uint8], groups: NDArray[np.int64], clips: int | None = None) -> Image.Image:
    """The frames side by side with their patches filled and bordered by token.

    A token of several patches, in one frame or in many, is filled with the mean colour of all its pixels and has a
    border of its own colour around each of its regions. A token of one patch keeps its pixels and a thin grey border.
    Many frames are wrapped into several rows.

    frames  uint8 [F, S, S, 3]
    groups  int64 [F, g, g]: the token of every patch; g divides S
    clips   with it, a bar under the frames spans each clip
    Raises InputError for frames and groups that do not fit together.
    """
    _check(frames, groups, clips)
    ids = np.unique(groups, return_inverse=True)[1].reshape(groups.shape)
    merged = np.bincount(ids.ravel()) > 1
    tiles = _tiles(frames, groups.shape[1])
    side = tiles.shape[1] // groups.shape[1]
    wide = ids.repeat(side, axis=1).repeat(side, axis=2)
    filled = merged[wide]
    tiles[filled] = _mean_colours(frames, ids)[wide[filled]]
    thin = ~filled & _border(wide, 1)
    tiles[thin] = (1 - _NEUTRAL_SHARE) * tiles[thin] + _NEUTRAL_SHARE * _NEUTRAL
    thick = filled & _border(wide, max(2, side // 8))
    tiles[thick] = token_colours(groups)[wide[thick]]
    return _row(tiles, clips)


def _check(frames: NDArray[np.uint8], groups: NDArray[np.int64], clips: int | None) -> None:
    square = frames.ndim == 4 and frames.dtype == np.uint8 and frames.shape[1] == frames.shape[2] > 0
    if not square or frames.shape[3] != 3 or len(frames) == 0:
        raise InputError(f"found frames {frames.dtype} {list(frames.shape)}, expected uint8 [F, S, S, 3].")
    grid = groups.shape[-1]
    if groups.shape != (len(frames), grid, grid) or grid == 0 or frames.shape[1] % grid:
        raise InputError(
            f"found groups of shape {list(groups.shape)}, expected [{len(frames)}, g, g] with g a divisor of "
            f"{frames.shape[1]} pixels."
        )
    if clips is not None and (clips < 1 or len(frames) % clips):
        raise InputError(f"found {clips} clips of {len(frames)} frames, expected a number that divides the frames.")


def _tiles(frames: NDArray[np.uint8], grid: int) -> NDArray[np.uint8]:
    """The frames at the size they are drawn in, a whole number of pixels for each patch: uint8 [F, T, T, 3]."""
    side = grid * max(_FRAME // grid, _LEAST_PATCH)
    pictures = (Image.fromarray(frame).resize((side, side), Image.Resampling.BICUBIC) for frame in frames)
    return np.stack([np.asarray(picture) for picture in pictures])


def _mean_colours(frames: NDArray[np.uint8], ids: NDArray[np.intp]) -> NDArray[np.uint8]:
    """Mean of the pixels of each token's patches: uint8 [tokens, 3].

    ids  [F, g, g] from 0 without gaps
    """
    grid, patch = ids.shape[1], frames.shape[1] // ids.shape[1]
    patches = frames.reshape(len(frames), grid, patch, grid, patch, 3).mean(axis=(2, 4))
    counts = np.bincount(ids.ravel())
    sums = [np.bincount(ids.ravel(), weights=patches[..., channel].ravel()) for channel in range(3)]
    return np.rint(np.stack(sums, axis=-1) / counts[:, None]).astype(np.uint8)


def _border(wide: NDArray[np.intp], width: int) -> NDArray[np.bool_]:
    """[F, T, T]: pixels within `width` of another token or of the frame's edge. Patches are wider than that."""
    padded = np.pad(wide, ((0, 0), (width, width), (width, width)), constant_values=-1)
    size, found = wide.shape[1], np.zeros(wide.shape, np.bool_)
    for down in (0, width, 2 * width):
        for right in (0, width, 2 * width):
            found |= padded[:, down : down + size, right : right + size] != wide
    return found


def token_colours(groups: NDArray[np.int64], apart: float = _APART) -> NDArray[np.uint8]:
    """A border colour of its own for every token of several patches; the closer two tokens lie, the more they differ.

    A walk around the hues by the golden ratio, entered where the token's first patch lies, so that a token that does
    not change from one stage to the next mostly keeps its colour. The same groups give the same colours.

    groups  int64 [F, g, g]
    apart   distance in RGB between tokens that touch, where there is a colour so far away
    Returns uint8 [tokens, 3] in rising order of the ids in `groups`; black for a token of one patch.
    """
    _, first, ids, counts = np.unique(groups, return_index=True, return_inverse=True, return_counts=True)
    ids = ids.reshape(groups.shape)
    touching = _touching(ids, len(first))
    in_frame = [set(np.unique(frame[counts[frame] > 1]).tolist()) for frame in ids]
    near: list[set[int]] = [set() for _ in first]
    for index, here in enumerate(in_frame):
        for token in here:
            near[token].update(*in_frame[max(0, index - 1) : index + 2])
    walk = _walk(groups.size + _CANDIDATES)
    colours = np.zeros((len(first), 3), np.uint8)
    used, done = np.zeros(len(walk), np.bool_), set[int]()
    for token in np.argsort(first).tolist():
        if counts[token] > 1:
            window = slice(first[token], first[token] + _CANDIDATES)
            candidates = walk[window]
            touched, around = (
                _distance(candidates, colours[sorted(tokens[token] & done)]) for tokens in (touching, near)
            )
            touched[used[window]] = -np.inf
            around[touched < min(apart, touched.max())] = -np.inf
            far = np.flatnonzero(around >= _APART_IN_FRAME)
            chosen = far[0] if len(far) else around.argmax()
            colours[token], used[window][chosen] = candidates[chosen], True
            done.add(token)
    return colours


def _touching(ids: NDArray[np.intp], tokens: int) -> list[set[int]]:
    """For each token those with a patch beside, above or below one of its own, in the same frame."""
    touching: list[set[int]] = [set() for _ in range(tokens)]
    for a, b in ((ids[:, 1:], ids[:, :-1]), (ids[:, :, 1:], ids[:, :, :-1])):
        for one, other in np.unique(np.stack([a.ravel(), b.ravel()], axis=-1), axis=0).tolist():
            if one != other:
                touching[one].add(other)
                touching[other].add(one)
    return touching


def _distance(candidates: NDArray[np.uint8], colours: NDArray[np.uint8]) -> NDArray[np.float64]:
    """[n]: how far in RGB each candidate lies from the nearest of the colours; infinite where there are none."""
    apart = np.linalg.norm(candidates[:, None].astype(np.float64) - colours, axis=-1)
    nearest: NDArray[np.float64] = apart.min(axis=1, initial=np.inf)
    return nearest


def _walk(steps: int) -> NDArray[np.uint8]:
    """[steps, 3]: hues by the golden ratio in turning shades, those that are too dark for a dark picture lightened."""
    shades = (_SHADES[step % len(_SHADES)] for step in range(steps))
    rgb = 255 * np.array([colorsys.hsv_to_rgb(step * _TURN % 1, *shade) for step, shade in enumerate(shades)])
    light = rgb @ _LIGHT
    lift = np.clip((_LEAST_LIGHT - light) / (255 - light), 0, 1)[:, None]
    return np.rint(rgb + lift * (255 - rgb)).astype(np.uint8)


def _row(tiles: NDArray[np.uint8], clips: int | None) -> Image.Image:
    """Frames in time order, wrapped into rows of equal length, with a bar under each clip where clips are given."""
    count, side = tiles.shape[:2]
    rows = -(-count // max(1, (_WIDEST + _GAP) // (side + _GAP)))
    columns = -(-count // rows)
    height = side + (0 if clips is None else 2 * _BAR)
    size = (columns * (side + _GAP) - _GAP, rows * (height + _GAP) - _GAP)
    picture = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(picture)
    for index, tile in enumerate(tiles):
        x, y = index % columns * (side + _GAP), index // columns * (height + _GAP)
        picture.paste(Image.fromarray(tile), (x, y))
        if clips is not None:
            ends = (index + 1) % (count // clips) == 0
            under = y + side + _BAR
            draw.rectangle((x, under, x + side + (0 if ends else _GAP) - 1, under + _BAR - 1), _BAR_COLOUR)
    return picture


@dataclass(frozen=True)
class _Panel:
    """A row of frames under its title, with a note at the right."""

    title: str
    note: str
    picture: Image.Image

    @property
    def width(self) -> int:
        """Pixels it needs."""
        texts = _TITLE.getlength(self.title) + _NOTE.getlength(self.note) + 2 * _MARGIN
        return max(self.picture.width, round(texts))

    def draw(self, canvas: Image.Image, top: int) -> int:
        """Draw it at this height; return the height below it."""
        pen, right = ImageDraw.Draw(canvas), canvas.width - _MARGIN
        base = top + _TITLE_SIZE
        pen.text((_MARGIN, base), self.title, _INK, _TITLE, anchor="ls")
        pen.text((right, base), self.note, _PALE, _NOTE, anchor="rs")
        canvas.paste(self.picture, (_MARGIN, base + _TITLE_SIZE // 2))
        return base + _TITLE_SIZE // 2 + self.picture.height


def _canvas(panels: Sequence[_Panel], legend: str = "", width: int = 0) -> Image.Image:
    """The panels below each other, and the legend below them."""
    inner = max(width, *(panel.width for panel in panels))
    lines = _wrapped(legend, inner)
    heights = sum(panel.picture.height + _TITLE_SIZE + _TITLE_SIZE // 2 for panel in panels)
    height = 2 * _MARGIN + heights + _MARGIN * (len(panels) - 1) + len(lines) * _LINE + (_MARGIN if lines else 0)
    canvas = Image.new("RGB", (inner + 2 * _MARGIN, height), _PAPER)
    top = _MARGIN
    for panel in panels:
        top = panel.draw(canvas, top) + _MARGIN
    pen = ImageDraw.Draw(canvas)
    for index, line in enumerate(lines):
        pen.text((_MARGIN, top + index * _LINE), line, _PALE, _NOTE, anchor="la")
    return canvas


def _wrapped(text: str, width: int) -> list[str]:
    """The text in lines of at most `width` pixels, broken between words."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and _NOTE.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _animate(pictures: Sequence[Image.Image], stream: BinaryIO) -> None:
    """Write pictures of one size as a GIF that loops, each shown for SECONDS."""
    first, *others = (picture.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE) for picture in pictures)
    first.save(
        stream, format="GIF", save_all=True, append_images=others, duration=round(1000 * SECONDS), loop=0, disposal=1
    )
