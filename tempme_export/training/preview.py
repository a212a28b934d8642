"""Preview of a run, without a video read or a file written."""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tempme_export.data.annotations import RetrievalData, missing
from tempme_export.data.frame_cache import FrameCache
from tempme_export.encoder.recipe import Recipe
from tempme_export.errors import InputError
from tempme_export.training.config import TrainConfig
from tempme_export.training.encoder import TrainableModel
from tempme_export.training.folder import bytes_needed, check_folder
from tempme_export.training.memory import MemoryAccount, account
from tempme_export.training.run import RunLength, deal
from tempme_export.training.split import tokenize, tokenizer_for
from tempme_export.training.step import resolve_precision


@dataclass(frozen=True)
class Preview:
    """Preview of a run.

    counts          parameters that train, by kind
    missing         videos that are not there, by split; the others may still be unreadable
    disk, on_cache  bytes for the results, and for decoded frames in the cache
    memory          of a training step, in each process
    """

    length: RunLength
    counts: dict[str, int]
    missing: dict[str, int]
    disk: int
    on_cache: int
    memory: MemoryAccount

    def to_dict(self) -> dict[str, Any]:
        """Values for JSON."""
        return {
            "steps": self.length.steps,
            "batches_per_epoch": list(self.length.lengths),
            "trained": self.counts,
            "missing": self.missing,
            "bytes": {"out": self.disk, "cache": self.on_cache},
            "memory": self.memory.to_dict(),
        }


def precision_of(config: TrainConfig, cuda: Any = torch.cuda) -> str:
    """The precision of the run, on the device that `config` asks for where it is there."""
    on_gpu = config.device != "cpu" and cuda.is_available()
    if config.precision != "auto":
        return config.precision
    return resolve_precision("auto", torch.device("cuda" if on_gpu else "cpu"), cuda)


def _memory(config: TrainConfig, recipe: Recipe, model: TrainableModel) -> MemoryAccount:
    """Memory of a step on one process's part of the batch."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    precision: Any = precision_of(config)
    return account(model, recipe, -(-config.batch // processes), precision)


def preview(
    config: TrainConfig, recipe: Recipe, train_data: RetrievalData, val_data: RetrievalData | None = None
) -> Preview:
    """Check settings, folder, recipe and data as far as that goes without reading videos. Raises as `train`."""
    config.check()
    check_folder(config)
    tokenizer = tokenizer_for(recipe)
    splits = {"train": train_data} | ({} if val_data is None else {"val": val_data})
    absent = {name: missing(data) for name, data in splits.items()}
    keep = sorted(set(range(len(train_data.paths))) - set(absent["train"]))
    if not keep:
        raise InputError(
            f"{train_data.name}: found none of {len(train_data.paths)} videos, such as {train_data.paths[0]}. "
            "Check where the videos lie (--videos)."
        )
    kept = train_data.select(keep)
    token_ids, _ = tokenize(tokenizer, kept.captions)
    _, length = deal(config, np.array(kept.owner, np.int64), token_ids)
    tune: Any = config.tune
    model = TrainableModel(recipe, tune, config.rank, config.seed, config.train_temperature)
    frames, size = recipe.profile.frames, recipe.backbone.image_size
    clips = 0 if config.cache is None else sum(len(data.paths) for data in splits.values())
    return Preview(
        length=length,
        counts=model.counts(),
        missing={name: len(found) for name, found in absent.items()},
        disk=bytes_needed(config, model),
        on_cache=FrameCache.estimate(clips, frames, size) if clips else 0,
        memory=_memory(config, recipe, model),
    )
