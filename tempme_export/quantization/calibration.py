"""The clips and captions whose activations fix the scales of an int8 encoder, and what its weights are rounded for."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from warnings import catch_warnings, simplefilter

import numpy as np
import torch
from numpy.typing import NDArray

from tempme_export.data.annotations import open_data
from tempme_export.data.clip import Clip
from tempme_export.data.clip_batches import readable_batches
from tempme_export.data.frames import FrameFiles
from tempme_export.data.records import missing
from tempme_export.data.video_files import SUFFIXES, index_files
from tempme_export.encoder.profile import FROM_CHECKPOINT
from tempme_export.encoder.recipe import Recipe
from tempme_export.errors import InputError, sentence
from tempme_export.media.preprocess import Preprocess, preprocess_for
from tempme_export.media.token_ids import TextTruncatedWarning
from tempme_export.media.tokenizer import Tokenizer
from tempme_export.parity.selftest import TEXTS, draw_clip, draw_token_ids
from tempme_export.quantization.products import Calls

CLIPS = 32  # used at most, spread evenly over what is given
FEWEST = 8  # below, scales are believed less
_LEAST = 2
_CAPTIONS = 64
_SUBJECTS = ("a man", "two women", "a small dog", "the chef", "a group of children", "someone", "a cartoon cat", "cars")
_ACTIONS = (
    "is talking to the camera",
    "playing football on a field",
    "cutting vegetables in a kitchen",
    "moving slowly down the street at night",
    "sings on a stage while people are clapping",
    "is shown in a video game",
    "looking at a red and white boat on the water",
    "explains how to fold a piece of paper into a bird",
)


@dataclass(frozen=True)
class Calibration:
    """Data that scales are taken from, and weights rounded for.

    source    as it was given
    clips     uint8 [V, F, S, S, 3]
    texts     int64 [T, L] token ids
    captions  where the texts are from: "data", "built in", or "random tokens" for a backbone without a tokenizer
    skipped   files that could not be read, each with the reason
    """

    source: str
    clips: NDArray[np.uint8]
    texts: NDArray[np.int64]
    captions: str
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Reasons why the scales are less than they could be."""
        if len(self.clips) >= FEWEST:
            return ()
        return (
            f"found {len(self.clips)} calibration clips, expected at least {FEWEST}: what no clip shows is cut off at "
            "the ends of the ranges, and weights are rounded for what they show. Give more, of the kind that will be "
            "indexed.",
        )

    def video_calls(self, preprocess: Preprocess) -> Calls:
        """Normalised frames, float32 [1, F, 3, S, S] each."""
        return [torch.from_numpy(preprocess(clip)).unsqueeze(0) for clip in self.clips]

    def text_calls(self) -> Calls:
        """Token ids, int64 [at most 8, L] each."""
        return list(torch.from_numpy(self.texts).split(TEXTS))

    def to_dict(self) -> dict[str, Any]:
        """Values for the manifest."""
        return {
            "source": self.source,
            "clips": len(self.clips),
            "clips_sha256": hashlib.sha256(self.clips.tobytes()).hexdigest(),
            "texts": len(self.texts),
            "captions": self.captions,
            "skipped": self.skipped,
            "warnings": list(self.warnings),
        }


def _spread(items: Sequence[Any], count: int) -> list[Any]:
    """At most `count` of them, evenly over all."""
    if len(items) <= count:
        return list(items)
    return [items[round(i)] for i in np.linspace(0, len(items) - 1, count)]


def _built_in() -> list[str]:
    return [f"{subject} {action}" for subject in _SUBJECTS for action in _ACTIONS]


def _texts(recipe: Recipe, captions: Sequence[str]) -> tuple[NDArray[np.int64], str]:
    if recipe.profile.backbone == FROM_CHECKPOINT:
        drawn = [draw_token_ids(recipe, seed) for seed in range(_CAPTIONS // TEXTS)]
        return np.concatenate(drawn), "random tokens"
    tokenizer = Tokenizer(recipe.profile.backbone, recipe.profile.text_length)
    distinct = list(dict.fromkeys(captions))
    if len(distinct) < FEWEST:
        return tokenizer(_built_in()), "built in"
    with catch_warnings():
        simplefilter("ignore", TextTruncatedWarning)  # the beginning of a text is as good
        return tokenizer(_spread(distinct, _CAPTIONS)), "data"


def _from_arrays(path: Path, recipe: Recipe) -> NDArray[np.uint8]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            clips = arrays["clips"]
    except Exception as error:  # numpy and zipfile have no common root for what damaged files give
        reason = str(error) or type(error).__name__
        raise InputError(
            f"{path}: found no array `clips` ({reason}), expected a .npz file with clips, uint8 [V, F, S, S, 3], as a "
            "bundle's selftest.npz has."
        ) from error
    frames, size = recipe.profile.frames, recipe.backbone.image_size
    if clips.dtype != np.uint8 or clips.ndim != 5 or clips.shape[1:] != (frames, size, size, 3):
        raise InputError(
            f"{path}: found clips {clips.dtype} {list(clips.shape)}, expected uint8 [V, {frames}, {size}, {size}, 3] "
            f"for profile {recipe.profile.name}. Give clips of {frames} frames, or the videos themselves."
        )
    return np.stack(_spread(list(clips), CLIPS)) if len(clips) else clips


def _decoded(videos: Sequence[Clip], recipe: Recipe, allow_damaged: bool) -> tuple[NDArray[np.uint8], dict[str, str]]:
    """CLIPS videos that can be read; for those that cannot, others are taken, and at last files of unknown suffixes."""
    common = [video for video in videos if video.path.suffix.lower() in SUFFIXES]
    first = _spread(sorted(common, key=_place), CLIPS)
    more = (sorted(set(some) - set(first), key=_place) for some in (common, set(videos) - set(common)))
    selected = [*first, *(video for others in more for video in _spread(others, CLIPS))]
    source = FrameFiles(selected, recipe.profile.frames, preprocess_for(recipe), allow_damaged)
    found = next(readable_batches(source, range(len(selected)), CLIPS))
    return found.pixels, {str(selected[i]): reason for i, reason in found.failed.items()}


def _place(clip: Clip) -> tuple[Path, float, float]:
    return clip.path, clip.start or 0.0, clip.end or 0.0


def _captioned(spec: str | Path) -> tuple[list[Clip], list[str]]:
    data = open_data(spec, "train")
    absent = set(missing(data))
    return [clip for i, clip in enumerate(data.clips) if i not in absent], list(data.captions)


def read_calibration(spec: str | Path, recipe: Recipe, allow_damaged: bool = False) -> Calibration:
    """Read at most CLIPS clips and 64 captions.

    spec  a folder of videos; what `data.annotations.open_data` reads (its training split); or a .npz file with the
          array `clips`, uint8 [V, F, S, S, 3]
    allow_damaged  take damaged pictures as the decoder shows them
    With fewer than FEWEST different captions, 64 built-in ones are used. Raises InputError where fewer than two clips
    can be read, and what `open_data` raises.
    """
    path = Path(spec).expanduser()
    skipped: dict[str, str] = {}
    captions: Sequence[str] = ()
    if path.suffix.lower() == ".npz":
        clips = _from_arrays(path, recipe)
    else:
        if not path.exists() and ":" not in str(spec):
            raise InputError(
                f"{spec}: found nothing there, expected a folder of videos, a .npz file of clips, or DATA as for "
                "--gate."
            )
        if path.is_dir():
            videos = [Clip(path / name) for names in index_files(path).names.values() for name in names]
        else:
            videos, captions = _captioned(spec)
        clips, skipped = _decoded(videos, recipe, allow_damaged)
    if len(clips) < _LEAST:
        lost = "".join(f" {name}: {sentence(reason)}" for name, reason in list(skipped.items())[:3])
        raise InputError(
            f"{spec}: found {len(clips)} calibration clips that can be read, expected at least {_LEAST} and better "
            f"{CLIPS}. Give a folder of videos like those that will be indexed.{lost}"
        )
    texts, origin = _texts(recipe, captions)
    return Calibration(str(spec), clips, texts, origin, skipped)


def drawn_clips(recipe: Recipe, seed: int = 0) -> Calls:
    """FEWEST drawn clips, float32 [1, F, 3, S, S] each, for measurements without videos; scales for use come from
    videos."""
    preprocess, frames, size = preprocess_for(recipe), recipe.profile.frames, recipe.backbone.image_size
    clips = [draw_clip("moving", frames, size, seed + i) for i in range(FEWEST)]
    return [torch.from_numpy(preprocess(clip)).unsqueeze(0) for clip in clips]
