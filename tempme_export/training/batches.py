"""Captions dealt into batches: the same for the same seed and epoch, on any machine."""

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tempme_export.errors import InputError

Ints = NDArray[np.int64]


def deal(order: Ints, owner: Ints, text: Ints, size: int) -> list[Ints]:
    """Fill batches of exactly `size` captions, walking along `order`.

    A caption whose video or text is already in the batch would be a negative of its own positive. It waits and comes
    first for the next batch, with the others that wait in their order. What is left when no whole batch can be filled
    is not dealt: fewer than `size` captions, or copies of too few videos or texts.

    order  captions, a permutation of part or all of 0..T-1
    owner  [T], the video of each caption
    text   [T], equal numbers for equal texts
    Returns the batches, int64 [size] each.
    """
    batches: list[Ints] = []
    ahead = deque(order.tolist())
    videos_of, texts_of = owner.tolist(), text.tolist()
    while True:
        chosen: list[int] = []
        waiting: list[int] = []
        videos: set[int] = set()
        texts: set[int] = set()
        while ahead and len(chosen) < size:
            caption = ahead.popleft()
            if videos_of[caption] in videos or texts_of[caption] in texts:
                waiting.append(caption)
            else:
                chosen.append(caption)
                videos.add(videos_of[caption])
                texts.add(texts_of[caption])
        if len(chosen) < size:
            return batches
        batches.append(np.array(chosen, np.int64))
        ahead.extendleft(reversed(waiting))


def share(batch: Ints, rank: int, ranks: int) -> tuple[Ints, NDArray[np.bool_]]:
    """The consecutive part of a batch that one of `ranks` processes takes.

    Every process takes equally many; where the batch does not divide, the last ones take its first caption instead,
    marked as not present.
    Returns captions int64 [b] and present bool [b], b = ceil(len(batch) / ranks).
    """
    each = -(-len(batch) // ranks)
    rows = np.arange(rank * each, (rank + 1) * each)
    present = rows < len(batch)
    return batch[np.where(present, rows, 0)], present


@dataclass(frozen=True)
class Deck:
    """All captions of a training set, and how they are dealt.

    owner  int64 [T], the video of each caption
    text   int64 [T], equal numbers for equal texts
    size   captions in a batch, over all processes
    Raises InputError where no batch can be filled.
    """

    owner: Ints
    text: Ints
    size: int
    seed: int

    def __post_init__(self) -> None:
        for found, what in ((self.owner, "videos"), (self.text, "different captions")):
            n = len(np.unique(found))
            if n < self.size:
                raise InputError(
                    f"found {n} {what} to train on, expected at least {self.size}, since a batch of {self.size} holds "
                    f"each at most once. Choose a smaller batch, like --batch {max(n, 2)}, or add videos."
                )
        if not self.epoch(0):
            raise InputError(
                f"found no batch of {self.size} captions in which no video and no caption comes twice. "
                "Choose a smaller batch with --batch, or add videos."
            )

    def epoch(self, epoch: int) -> list[Ints]:
        """The batches of epoch 0, 1, ...: a fresh shuffle of all captions, dealt. int64 [size] each."""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.owner))
        return deal(order, self.owner, self.text, self.size)

    def lengths(self, epochs: int) -> tuple[int, ...]:
        """Number of batches in each of the first epochs. They differ only where captions crowd on few videos."""
        return tuple(len(self.epoch(epoch)) for epoch in range(epochs))


def equal_rows(rows: Ints) -> Ints:
    """A number for each row, equal for equal rows: int64 [T, L] -> int64 [T]."""
    _, numbers = np.unique(rows, axis=0, return_inverse=True)
    return numbers.reshape(-1).astype(np.int64)
