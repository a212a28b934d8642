"""The clips and texts that every artifact is checked on, and the reference's decisions and outputs on them.

Clips are drawn so that no decision of the reference hangs on less than a few snapping steps: another backend's
rounding must not decide. Among them are a static, a black and a repeating one, where exact ties are the rule.
Some may stay fragile whatever is drawn: behind the exact ties lie tokens that differ by next to nothing, and
many frames mean many decisions.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tempme_export.encoder.schedule import Schedule
from tempme_export.errors import BundleError
from tempme_export.kernels import SNAP_STEPS

if TYPE_CHECKING:
    from tempme_export.encoder.recipe import Recipe

CLIPS = ("moving", "static", "moving", "black", "repeated", "moving")
TEXTS = 8
SAFE_GAP = 4 / SNAP_STEPS
# What a bundle's tokenizer is checked on: each rule of the encoding, and a few scripts.
CAPTIONS = (
    "a man is playing a guitar",
    "A Man IS Playing\tthe  GUITAR!!",
    "it's 2024: 3.14% of $5 &amp; we'll pay",
    "caf\u00e9 na\u00efve \ufb01anc\u00e9e \u201cquotes\u201d sch\u00c3\u00b6n",
    "\u4e00\u4e2a\u7537\u4eba\u5728\u5f39\u5409\u4ed6",
    "\u0631\u062c\u0644 \u064a\u0639\u0632\u0641",
    "\u0915\u0941\u0924\u094d\u0924\u093e \u0926\u094c\u0921\u093c\u0924\u093e \u0939\u0948",
    "\u0e2a\u0e38\u0e19\u0e31\u0e02\u0e27\u0e34\u0e48\u0e07 \uac1c\uac00 \u8d70\u308b",
    "\U0001f3b8\U0001f525 solo \U0001f469\u200d\U0001f467",
    "\u0130stanbul \u03a3\u0391\u03a3 stra\u00dfe it'\u017f",
)


@dataclass(frozen=True)
class SelfTest:
    """Inputs with the original path's outputs, in float32.

    clips            uint8 [V, F, S, S, 3]
    token_ids        int64 [T, L]
    video_embedding  float32 [V, E], text_embedding float32 [T, E], of unit length
    assigns          one int32 [V * clips, N] per merge
    tokens           merged tokens of every merge; empty when read from a bundle
    gaps             float32 [V, merges]: the smallest difference each video's decisions hang on
    captions         C texts, caption_ids int64 [C, L]: what the tokenizer makes of them; none where the backbone has
                     no tokenizer, and in bundles of earlier versions
    """

    clips: NDArray[np.uint8]
    token_ids: NDArray[np.int64]
    video_embedding: NDArray[np.float32]
    text_embedding: NDArray[np.float32]
    assigns: tuple[NDArray[np.int32], ...]
    gaps: NDArray[np.float32]
    tokens: tuple[NDArray[np.float32], ...] = ()
    captions: tuple[str, ...] = ()
    caption_ids: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 0), np.int64))

    @property
    def fragile(self) -> NDArray[np.bool_]:
        """[V]: clips in which some decision hangs on less than SAFE_GAP, so that rounding may take another."""
        return self.gaps.min(axis=1, initial=np.inf) < SAFE_GAP


def _texture(rng: np.random.Generator, cells: int, size: int) -> NDArray[np.float64]:
    grid = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(grid).resize((size, size), Image.Resampling.BICUBIC), np.float64)


def draw_clip(kind: str, frames: int, size: int, seed: int) -> NDArray[np.uint8]:
    """One clip, uint8 [F, S, S, 3]: a textured square over a drifting background.

    kind  "moving"; "static", one frame F times; "repeated", a third of the frames, each shown in a row;
          "black", every pixel (seed mod 16) of 255
    """
    if kind == "black":
        return np.full((frames, size, size, 3), seed % 16, np.uint8)
    rng = np.random.default_rng(seed)
    background = 0.5 * _texture(rng, 5, size) + 0.3 * _texture(rng, 17, size)
    background += rng.uniform(0, 50, (size, size, 3))
    side = size // 3
    square = _texture(rng, 7, side)
    start, step = rng.integers(0, size - side, 2), rng.integers(1, max(2, size // 16), 2)
    distinct = {"static": 1, "repeated": max(1, frames // 3)}.get(kind, frames)
    clip = np.empty((distinct, size, size, 3), np.uint8)
    for t in range(distinct):
        frame = np.roll(background, (t, -2 * t), axis=(0, 1))
        y, x = (start + t * step) % (size - side)
        frame[y : y + side, x : x + side] = square
        clip[t] = np.clip(frame + rng.uniform(-4, 4, frame.shape), 0, 255)
    return clip[np.arange(frames) * distinct // frames]


def draw_token_ids(recipe: "Recipe", seed: int) -> NDArray[np.int64]:
    """Random texts, int64 [T, L]: start, words, end, zero padding; the last one fills its length."""
    rng = np.random.default_rng(seed)
    length, vocab = recipe.profile.text_length, recipe.backbone.vocab
    ids = np.zeros((TEXTS, length), np.int64)
    for row, words in zip(ids, np.linspace(min(1, length - 2), length - 2, TEXTS, dtype=int), strict=True):
        row[0], row[1 + words] = vocab - 2, vocab - 1
        row[1 : 1 + words] = rng.integers(1, vocab - 2, words)
    return ids


def save_selftest(selftest: SelfTest, path: Path) -> None:
    """Write `selftest.npz`: everything but the merged tokens."""
    more: dict[str, NDArray[Any]] = {f"assign_{k:02d}": assign for k, assign in enumerate(selftest.assigns)}
    if selftest.captions:
        more |= {"captions": np.array(selftest.captions), "caption_ids": selftest.caption_ids}
    np.savez_compressed(
        path,
        clips=selftest.clips,
        token_ids=selftest.token_ids,
        video_embedding=selftest.video_embedding,
        text_embedding=selftest.text_embedding,
        gaps=selftest.gaps,
        **more,  # type: ignore[arg-type]
    )


def check_fits(selftest: SelfTest, schedule: Schedule, size: int, embed: int) -> None:
    """Raises BundleError for a self-test of other sizes than the bundle's: it belongs to another bundle."""
    videos, texts = max(1, len(selftest.clips)), max(1, len(selftest.token_ids))
    blocks = {block.index: block for block in schedule.blocks}
    expected: dict[str, tuple[str, tuple[int, ...]]] = {
        "clips": ("uint8", (videos, schedule.frames, size, size, 3)),
        "token_ids": ("int64", (texts, *selftest.token_ids.shape[1:2])),
        "video_embedding": ("float32", (videos, embed)),
        "text_embedding": ("float32", (texts, embed)),
        "gaps": ("float32", (videos, len(schedule.merges))),
    }
    for merge in schedule.merges:
        block = blocks[merge.block]
        tokens = block.tokens_attention + (merge.r if merge.kind == "cross" else 0)
        expected[merge.assign_name] = ("int32", (videos * block.clips, tokens))
    assigns = {f"assign_{k:02d}": assign for k, assign in enumerate(selftest.assigns)}
    if selftest.captions:
        expected["caption_ids"] = ("int64", (len(selftest.captions), *selftest.token_ids.shape[1:2]))
    found = {name: assigns.get(name, getattr(selftest, name, None)) for name in {**expected, **assigns}}
    for name, array in found.items():
        said = "nothing" if array is None else f"{array.dtype} {list(array.shape)}"
        dtype, shape = expected.get(name, ("", ()))
        required = f"{dtype} {list(shape)}" if dtype else "nothing"
        if said != required:
            raise BundleError(
                f"the bundle's self-test: {name} is {said}, expected {required}. Export the bundle again."
            )


def _stored_captions(data: Any) -> dict[str, Any]:
    if "captions" not in data.files:
        return {}
    return {"captions": tuple(map(str, data["captions"])), "caption_ids": data["caption_ids"]}


def load_selftest(path: Path) -> SelfTest:
    """Read `selftest.npz`. Raises BundleError when it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as data:
            if flat := [name for name in data.files if np.ndim(data[name]) == 0]:
                raise ValueError(f"{', '.join(flat)} is no array")
            assigns = tuple(data[name] for name in sorted(data.files) if name.startswith("assign_"))
            return SelfTest(
                clips=data["clips"],
                token_ids=data["token_ids"],
                video_embedding=data["video_embedding"],
                text_embedding=data["text_embedding"],
                assigns=assigns,
                gaps=data["gaps"],
                **_stored_captions(data),
            )
    except Exception as error:  # a damaged archive fails in whatever operation comes next
        raise BundleError(f"{path} cannot be read: {error}. Export the bundle again.") from error
