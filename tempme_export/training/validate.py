"""Retrieval on held-out data with the weights of the moment, shared by all processes."""

from contextlib import closing

import numpy as np
import torch
from numpy.typing import NDArray

from tempme_export.data.clip_batches import placed_batches
from tempme_export.errors import InputError, sentence
from tempme_export.evaluation.metrics import Retrieval, group_retrieval, retrieval
from tempme_export.training.log import Row
from tempme_export.training.prefetch import prefetch
from tempme_export.training.skipped import Skipped
from tempme_export.training.split import Split
from tempme_export.training.step import Stepper

VIDEOS, TEXTS = 32, 256  # per call

Floats = NDArray[np.float32]
Scores = tuple[list[Retrieval], Retrieval | None, list[Skipped]]


def _embed_videos(
    stepper: Stepper, split: Split, videos: NDArray[np.int64], size: int
) -> tuple[Floats, dict[int, str]]:
    """Unit embeddings [n, E] of videos [n], and why some could not be read; their rows mean nothing."""
    groups = [videos[start : start + size].tolist() for start in range(0, len(videos), size)]
    found: list[Floats] = []
    failed: dict[int, str] = {}
    with closing(prefetch(placed_batches(split.source, groups, split.workers))) as batches:
        for clips in batches:
            failed |= clips.failed
            pixels = torch.from_numpy(clips.pixels).to(stepper.world.device)
            with stepper.autocast():
                found.append(stepper.model.video(stepper.normalise(pixels)).float().cpu().numpy())
    return np.concatenate(found), failed


def _embed_texts(stepper: Stepper, token_ids: NDArray[np.int64], size: int) -> Floats:
    found = []
    for start in range(0, len(token_ids), size):
        part = torch.from_numpy(token_ids[start : start + size]).to(stepper.world.device)
        with stepper.autocast():
            found.append(stepper.model.text(part).float().cpu().numpy())
    return np.concatenate(found)


def _merged(parts: list[Floats]) -> Floats:
    """Rows that were dealt to the processes one by one, in their order again."""
    merged = np.empty((sum(map(len, parts)), parts[0].shape[1]), np.float32)
    for rank, part in enumerate(parts):
        merged[rank :: len(parts)] = part
    return merged


@torch.no_grad()
def evaluate(stepper: Stepper, split: Split, step: int, n_videos: int = VIDEOS, n_texts: int = TEXTS) -> Scores:
    """Text-to-video and video-to-text; text-to-video within groups, where the data has them; videos that failed.

    n_videos, n_texts  per call of a tower
    Every process encodes its part and learns the result. A video that cannot be read any more is left out with its
    captions. Raises InputError when that is so for all.
    """
    world, data = stepper.world, split.data
    # A process without a part of its own encodes the first row, which nobody reads.
    videos, texts = (np.arange(world.rank, n, world.size) for n in (len(data.video_ids), len(data.captions)))
    stepper.model.eval()
    try:
        video, failed = _embed_videos(stepper, split, videos if len(videos) else np.zeros(1, np.int64), n_videos)
        text = _embed_texts(stepper, split.token_ids[texts if len(texts) else np.zeros(1, np.int64)], n_texts)
    finally:
        stepper.model.train()
    told = world.gather_objects((video[: len(videos)], text[: len(texts)], failed))
    video, text = _merged([part[0] for part in told]), _merged([part[1] for part in told])
    reasons = {i: reason for _, _, part in told for i, reason in part.items()}
    keep = [i for i in range(len(data.video_ids)) if i not in reasons]
    if not keep:
        raise InputError(
            f"{data.name}: no video can be read any more, the first because: "
            f"{sentence(next(iter(reasons.values())))} Look after the videos, then --resume."
        )
    kept = data.select(keep)
    text = text[np.isin(split.owner, keep)]
    both = retrieval(text, video[keep], kept.owner)
    groups = group_retrieval(text, video[keep], kept.owner, kept.groups)
    return list(both), groups, [split.skipped(i, reasons[i], step) for i in sorted(reasons)]


def row_of(found: Retrieval, prefix: str) -> Row:
    """A result as columns of the log."""
    names = ("r1", "r5", "r10", "median_rank", "mean_rank")
    return {f"{prefix}_{name}": getattr(found, name) for name in names}
