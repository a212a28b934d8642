"""One part of the data, ready for training or evaluation: readable videos, their frames, their captions as ids."""

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tempme_export.data.annotations import RetrievalData
from tempme_export.data.clip import Change, Clip
from tempme_export.data.clip_batches import placed_batches
from tempme_export.data.decoding import probe
from tempme_export.data.frame_cache import FrameCache
from tempme_export.data.frames import FrameFiles, FrameSource
from tempme_export.encoder.recipe import Recipe
from tempme_export.errors import InputError, ProfileError, sentence
from tempme_export.media.preprocess import preprocess_for
from tempme_export.media.token_ids import TextTruncatedWarning
from tempme_export.media.tokenizer import Tokenizer
from tempme_export.progress import Progress
from tempme_export.training.config import TrainConfig
from tempme_export.training.distributed import World
from tempme_export.training.skipped import Skipped


class Batch(NamedTuple):
    """One process's part of a batch, on the CPU.

    pixels     uint8 [b, F, S, S, 3]
    token_ids  int64 [b, L]
    valid      bool [b]: the pair counts
    failed     {video: why it could not be read}
    """

    pixels: Tensor
    token_ids: Tensor
    valid: Tensor
    failed: dict[int, str]


@dataclass(frozen=True)
class Split:
    """Videos that could be read when the run began, and what is said of them.

    name       "train" or "val"
    token_ids  int64 [T, L]
    cut        whether captions are longer than L tokens
    workers    processes that decode
    """

    name: str
    data: RetrievalData
    source: FrameSource
    token_ids: NDArray[np.int64]
    cut: bool
    workers: int = 0

    @property
    def owner(self) -> NDArray[np.int64]:
        """The video of each caption, [T]."""
        return np.array(self.data.owner, np.int64)

    def batches(
        self,
        shares: Sequence[tuple[NDArray[np.int64], NDArray[np.bool_]]],
        device: torch.device,
        change_of: Callable[[int], Change] | None = None,
    ) -> Iterator[Batch]:
        """Read each share (captions [b], present bool [b]) in order; for a GPU into memory that it can copy from
        while it computes.

        change_of  what is done to the frames of a caption's video before they are resized
        """
        owner, gpu = self.owner, device.type == "cuda"
        changes = None if change_of is None else [change_of(int(one)) for captions, _ in shares for one in captions]
        groups = [owner[captions].tolist() for captions, _ in shares]
        clips_of = placed_batches(self.source, groups, self.workers, changes)
        for (captions, present), clips in zip(shares, clips_of, strict=True):
            valid = present & ~np.isin(clips.indices, list(clips.failed))
            tensors = [torch.from_numpy(a) for a in (clips.pixels, self.token_ids[captions], valid)]
            pixels, token_ids, counts = pinned(tensors, device) if gpu else tensors
            yield Batch(pixels, token_ids, counts, clips.failed)

    def skipped(self, video: int, reason: str, step: int) -> Skipped:
        """The record of a video that failed in a step."""
        return Skipped(self.name, self.data.video_ids[video], str(self.data.paths[video]), reason, step)


def pinned(tensors: Sequence[Tensor], device: torch.device, cuda: Any = torch.cuda) -> list[Tensor]:
    """The same in memory that a GPU can copy from while it computes."""
    with cuda.device(device):  # a thread begins at the first GPU, and would open a context there
        return [tensor.pin_memory() for tensor in tensors]


def tokenizer_for(recipe: Recipe) -> Tokenizer:
    """The tokenizer of the recipe's backbone. Raises ProfileError for a backbone that has none."""
    if recipe.backbone.tokenizer is None:
        raise ProfileError(
            f"profile {recipe.profile.name} takes its backbone from the checkpoint, so its tokenizer is unknown. "
            "Name an open_clip backbone in the profile."
        )
    return Tokenizer(recipe.backbone.tokenizer, recipe.profile.text_length)


def tokenize(tokenizer: Tokenizer, captions: Sequence[str]) -> tuple[NDArray[np.int64], bool]:
    """int64 [T, L], and whether any caption was cut to L tokens. Raises InputError for one without words."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", TextTruncatedWarning)
        token_ids = tokenizer(captions)
    return token_ids, any(issubclass(one.category, TextTruncatedWarning) for one in caught)


def open_split(
    name: str,
    data: RetrievalData,
    recipe: Recipe,
    world: World,
    config: TrainConfig,
    progress: Progress,
) -> tuple[Split, list[Skipped]]:
    """Look at every video once, fill the cache where there is one, and leave out what cannot be read.

    A run that begins looks again at videos that an earlier filling of the cache could not read; one that goes on does
    not. The first process looks and fills; with several machines the cache must lie where all of them see it.
    Raises InputError when no video can be read or a caption has no words, and what opening a cache raises.
    """
    frames, preprocess = recipe.profile.frames, preprocess_for(recipe)

    def cached(folder: Path, clips: Sequence[Clip]) -> FrameCache:
        return FrameCache.open(folder / name, clips, frames, preprocess, config.allow_damaged)

    def look() -> dict[int, str]:
        if config.cache is None:
            return probe(data.clips, config.workers, progress)
        store = cached(config.cache, data.clips)
        store.fill(config.workers, progress, retry_failed=not config.resume)
        return store.failures

    reasons = world.on_first(look)
    skipped = [Skipped(name, data.video_ids[i], str(data.paths[i]), reasons[i]) for i in sorted(reasons)]
    keep = [i for i in range(len(data.paths)) if i not in reasons]
    if not keep:
        raise InputError(
            f"{data.name}: found none of {len(skipped)} videos readable, the first because: "
            f"{sentence(skipped[0].reason)} Check where the videos lie (--videos)."
        )
    kept = data.select(keep)
    source: FrameSource = FrameFiles(kept.clips, frames, preprocess, config.allow_damaged)
    if config.cache is not None:
        source = cached(config.cache, kept.clips)
    token_ids, cut = tokenize(tokenizer_for(recipe), kept.captions)
    return Split(name, kept, source, token_ids, cut, config.workers), skipped


def fingerprint(data: RetrievalData) -> dict[str, Any]:
    """Fingerprint of a data set: counts, and a hash of video ids, file sizes, ranges, captions and their owners.

    Where the files lie does not count.
    """
    sizes = [path.stat().st_size if path.is_file() else -1 for path in data.paths]
    ranges = [(clip.start, clip.end) for clip in data.clips]
    facts = json.dumps([data.video_ids, sizes, ranges, data.captions, data.owner])
    digest = hashlib.sha256(facts.encode()).hexdigest()
    return {"videos": len(data.video_ids), "captions": len(data.captions), "sha256": digest[:16]}
