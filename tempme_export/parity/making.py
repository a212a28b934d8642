"""A self-test drawn for a recipe: the reference's outputs on clips and texts whose decisions are safe."""

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from tempme_export.encoder.recipe import Recipe
from tempme_export.encoder.reference import MergeLog, MergeStep, ReferenceText, ReferenceVideo
from tempme_export.media.preprocess import Preprocess, preprocess_for
from tempme_export.media.token_ids import TextTruncatedWarning
from tempme_export.media.tokenizer import Tokenizer
from tempme_export.parity.selftest import CAPTIONS, CLIPS, SAFE_GAP, SelfTest, draw_clip, draw_token_ids


@dataclass(frozen=True)
class Drawing:
    """Rule for drawing clips: one of each kind, `tries` times at most until its closest decision has the gap `safe`."""

    kinds: tuple[str, ...] = CLIPS
    tries: int = 4
    safe: float = SAFE_GAP


@dataclass(frozen=True)
class _Drawn:
    """One clip with the reference's embedding and merges."""

    clip: NDArray[np.uint8]
    embedding: NDArray[np.float32]
    steps: list[MergeStep]

    @property
    def gaps(self) -> list[float]:
        return [float(step.gap.min()) for step in self.steps]


def _draw_safely(kind: str, video: ReferenceVideo, preprocess: Preprocess, seed: int, drawing: Drawing) -> _Drawn:
    """The first clip of a kind whose decisions are safe, or the safest of a few."""
    drawn = []
    for attempt in range(drawing.tries):
        clip, log = draw_clip(kind, video.schedule.frames, preprocess.size, seed + attempt), MergeLog()
        feature = video.video_feature(torch.from_numpy(preprocess(clip)[None]), log=log)
        drawn.append(_Drawn(clip, torch.nn.functional.normalize(feature, dim=-1).numpy(), log.steps))
        if min(drawn[-1].gaps, default=np.inf) >= drawing.safe:
            return drawn[-1]
    return max(drawn, key=lambda chosen: min(chosen.gaps))


def _captions(recipe: Recipe) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Texts and what open_clip makes of them, cut to the profile's length; none without a tokenizer."""
    length = recipe.profile.text_length
    if recipe.backbone.tokenizer is None:
        return (), np.zeros((0, length), np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TextTruncatedWarning)
        return CAPTIONS, Tokenizer(recipe.backbone.tokenizer, length)(CAPTIONS)


def make_selftest(recipe: Recipe, seed: int = 0, drawing: Drawing = Drawing()) -> SelfTest:
    """Draw clips and texts and run the reference on them. Raises ProfileError and BackendError as the tokenizer."""
    captions, caption_ids = _captions(recipe)
    video, text = ReferenceVideo(recipe), ReferenceText(recipe)
    preprocess, token_ids = preprocess_for(recipe), draw_token_ids(recipe, seed)
    chosen = [_draw_safely(kind, video, preprocess, seed + 1600 * i, drawing) for i, kind in enumerate(drawing.kinds)]
    merges = range(len(recipe.schedule.merges))
    return SelfTest(
        clips=np.stack([one.clip for one in chosen]),
        token_ids=token_ids,
        video_embedding=np.concatenate([one.embedding for one in chosen]),
        text_embedding=text(torch.from_numpy(token_ids)).numpy(),
        assigns=tuple(np.concatenate([one.steps[k].assign.numpy() for one in chosen]) for k in merges),
        gaps=np.array([one.gaps for one in chosen], np.float32).reshape(len(chosen), len(merges)),
        tokens=tuple(np.concatenate([one.steps[k].tokens.numpy() for one in chosen]) for k in merges),
        captions=captions,
        caption_ids=caption_ids,
    )
