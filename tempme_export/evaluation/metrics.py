"""Retrieval metrics of the papers: recall at 1, 5 and 10, and median and mean rank, in both directions.

Every doubt counts against the model: a wrong candidate with the right one's score comes before it, and so does one
whose score is NaN; a query whose right candidate has no score comes last. Scores are cosines in float64; nothing that
looks at the other queries (inverted softmax and its like) is applied.

Where videos have several captions, video-to-text is counted in two ways. `video_to_text_ranks` ranks a video's best
caption among all captions of other videos. `best_caption_ranks` ranks it among the best captions of the other videos,
one each, which is what CLIP4Clip and what follows it report for MSVD and the like. Both have one R@1.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tempme_export.errors import InputError

Direction = Literal["text-to-video", "video-to-text"]
TEXT_TO_VIDEO: Direction = "text-to-video"
VIDEO_TO_TEXT: Direction = "video-to-text"

_BLOCK = 2**22  # scores at once: 32 MiB in float64, and a few arrays of that size beside them
_ROUNDOFF = 2.0**-53  # of one float64 operation, relative


@dataclass(frozen=True)
class Retrieval:
    """Retrieval metrics of one direction.

    r1, r5, r10               percent of the queries whose right candidate is among the first 1, 5, 10
    median_rank, mean_rank    of the right candidate, 1 is best
    queries, candidates       how many; within groups, candidates of the largest group
    """

    direction: Direction
    r1: float
    r5: float
    r10: float
    median_rank: float
    mean_rank: float
    queries: int
    candidates: int

    @property
    def r_sum(self) -> float:
        """R@1 + R@5 + R@10, at most 300."""
        return self.r1 + self.r5 + self.r10

    def to_dict(self) -> dict[str, Any]:
        """Every field and `r_sum`."""
        return {**asdict(self), "r_sum": self.r_sum}


def ranks(similarity: ArrayLike, right: ArrayLike, tie: float = 0.0) -> NDArray[np.int64]:
    """Rank of each query's best right candidate, 1 for the best.

    similarity  [Q, C] scores, higher is nearer
    right       bool [Q, C], at least one candidate in each row
    tie         scores this close count as equal, against the right one
    Returns int64 [Q]: 1 + wrong candidates with an equal or higher score or NaN; 1 + all wrong candidates where every
    right one is NaN. Raises InputError for other shapes, a `right` that is not bool, or a query without one.
    """
    scores, is_right = np.asarray(similarity), np.asarray(right)
    if scores.ndim != 2 or scores.shape != is_right.shape or is_right.dtype != np.bool_:
        raise InputError(
            f"found similarity {list(scores.shape)} and right {is_right.dtype} {list(is_right.shape)}, expected "
            "[queries, candidates] and bool of the same shape."
        )
    if not is_right.any(axis=1).all():
        query = int(np.flatnonzero(~is_right.any(axis=1))[0])
        raise InputError(f"found query {query} without a right candidate, expected at least one. Leave the query out.")
    scores = scores.astype(np.float64, copy=False)
    best = np.where(is_right & ~np.isnan(scores), scores, -np.inf).max(axis=1, keepdims=True)
    ahead = ~(scores < best - tie)  # true for NaN too
    return 1 + np.count_nonzero(ahead & ~is_right, axis=1).astype(np.int64)


def summarise(direction: Direction, found: NDArray[np.int64], candidates: int) -> Retrieval:
    """Recalls, median and mean of ranks [Q]. Raises InputError for none."""
    if len(found) == 0:
        raise InputError(f"found no queries for {direction}, expected at least one with a right candidate.")
    r1, r5, r10 = (100.0 * float(np.mean(found <= k)) for k in (1, 5, 10))
    return Retrieval(
        direction, r1, r5, r10, float(np.median(found)), float(np.mean(found)), len(found), int(candidates)
    )


def _checked(
    text: ArrayLike, video: ArrayLike, owner: Sequence[int] | NDArray[np.integer[Any]]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Both as float64, rows that are not finite as NaN throughout, and the owners as int64. Raises InputError."""
    sides = [np.array(side, np.float64) for side in (text, video)]
    owners = np.asarray(owner)
    shapes = [list(side.shape) for side in sides]
    if any(side.ndim != 2 for side in sides) or shapes[0][1] != shapes[1][1] or owners.shape != (shapes[0][0],):
        raise InputError(
            f"found text {shapes[0]}, video {shapes[1]} and owner {list(owners.shape)}, expected [texts, E], "
            "[videos, E] and one video index for each text."
        )
    if 0 in (*shapes[0], *shapes[1]):
        raise InputError(f"found text {shapes[0]} and video {shapes[1]}, expected at least one of each.")
    if not np.issubdtype(owners.dtype, np.integer) or owners.min() < 0 or owners.max() >= len(sides[1]):
        raise InputError(
            f"found owners {owners.dtype} from {owners.min()} to {owners.max()}, expected video indices from 0 to "
            f"{len(sides[1]) - 1}."
        )
    for side in sides:
        side[~np.isfinite(side).all(axis=1)] = np.nan
    return sides[0], sides[1], owners.astype(np.int64)


def _longest(rows: NDArray[np.float64]) -> float:
    lengths = np.linalg.norm(rows, axis=1)
    return float(lengths[~np.isnan(lengths)].max(initial=0.0))


def _tie(queries: NDArray[np.float64], candidates: NDArray[np.float64]) -> float:
    """Twice the rounding error of a product: where a row stands in the matrix changes its last bits, and without
    this an exact copy of the right candidate would come before or after it by chance."""
    return 2.0 * queries.shape[1] * _ROUNDOFF * _longest(queries) * _longest(candidates)


def _blocks(queries: int, candidates: int) -> Iterator[slice]:
    step = max(1, _BLOCK // candidates)
    return (slice(start, min(start + step, queries)) for start in range(0, queries, step))


def _block_ranks(
    queries: NDArray[np.float64],
    candidates: NDArray[np.float64],
    query_video: NDArray[np.int64],
    candidate_video: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Ranks [Q], where a candidate is right when it belongs to the query's video; scores exist a block at a time."""
    found, tie = np.empty(len(queries), np.int64), _tie(queries, candidates)
    for block in _blocks(len(queries), len(candidates)):
        with np.errstate(invalid="ignore"):
            scores = queries[block] @ candidates.T
        found[block] = ranks(scores, query_video[block, None] == candidate_video, tie)
    return found


def text_to_video_ranks(
    text: ArrayLike, video: ArrayLike, owner: Sequence[int] | NDArray[np.integer[Any]]
) -> NDArray[np.int64]:
    """Rank of each text's video among all videos: int64 [T]. Arguments and errors as `retrieval`."""
    t, v, owners = _checked(text, video, owner)
    return _block_ranks(t, v, owners, np.arange(len(v)))


def video_to_text_ranks(
    text: ArrayLike, video: ArrayLike, owner: Sequence[int] | NDArray[np.integer[Any]]
) -> NDArray[np.int64]:
    """Rank of each video's best caption among all texts, the video's other captions left out: int64, one for each
    video that has a caption, in order. Arguments and errors as `retrieval`."""
    t, v, owners = _checked(text, video, owner)
    asked = np.unique(owners)
    return _block_ranks(v[asked], t, asked, owners)


def best_caption_ranks(
    text: ArrayLike, video: ArrayLike, owner: Sequence[int] | NDArray[np.integer[Any]]
) -> NDArray[np.int64]:
    """Rank of each video's best caption among every video's best caption: int64, one for each video that has a
    caption, in order. Arguments and errors as `retrieval`."""
    t, v, owners = _checked(text, video, owner)
    order = np.argsort(owners, kind="stable")
    asked, first = np.unique(owners[order], return_index=True)
    found, tie = np.empty(len(asked), np.int64), _tie(v[asked], t)
    for block in _blocks(len(asked), len(t)):
        with np.errstate(invalid="ignore"):
            scores = v[asked[block]] @ t[order].T
        own = asked[block, None] == asked
        # A score that is no number is no best for the right video, and comes first of a wrong one's.
        best = np.where(own, np.fmax.reduceat(scores, first, axis=1), np.maximum.reduceat(scores, first, axis=1))
        found[block] = ranks(best, own, tie)
    return found


def best_caption_retrieval(
    text: ArrayLike, video: ArrayLike, owner: Sequence[int] | NDArray[np.integer[Any]]
) -> Retrieval | None:
    """Video-to-text where each video's best caption stands for all of its own; None where no video has several, and
    `retrieval` says the same. Arguments and errors as `retrieval`."""
    found = best_caption_ranks(text, video, owner)
    return None if len(found) == len(owner) else summarise(VIDEO_TO_TEXT, found, len(found))


def retrieval(
    text: ArrayLike, video: ArrayLike, owner: Sequence[int] | NDArray[np.integer[Any]]
) -> tuple[Retrieval, Retrieval]:
    """Both directions, text-to-video first.

    text   [T, E] unit embeddings of the captions
    video  [V, E] unit embeddings of the videos; one without a caption is a candidate and no query
    owner  [T]: text i belongs to video owner[i]
    Raises InputError for other shapes, owners out of range, or nothing to rank. A row with NaN or infinity counts
    as one without scores.
    """
    videos, texts = np.shape(video)[0] if np.ndim(video) else 0, np.shape(text)[0] if np.ndim(text) else 0
    return (
        summarise(TEXT_TO_VIDEO, text_to_video_ranks(text, video, owner), videos),
        summarise(VIDEO_TO_TEXT, video_to_text_ranks(text, video, owner), texts),
    )


def group_ranks(
    text: ArrayLike,
    video: ArrayLike,
    owner: Sequence[int] | NDArray[np.integer[Any]],
    groups: Sequence[str],
) -> NDArray[np.int64]:
    """Rank of each text's video among the videos of its group: int64, one for each text, in order, whose video has
    others in its group. Arguments and errors as `group_retrieval`."""
    t, v, owners = _checked(text, video, owner)
    if len(groups) != len(v):
        raise InputError(f"found {len(groups)} groups for {len(v)} videos, expected one for each.")
    _, group = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)
    found = np.zeros(len(t), np.int64)  # 0: a group of one
    for which in range(int(group.max()) + 1):
        members = np.flatnonzero(group == which)
        asked = np.flatnonzero(group[owners] == which)
        if len(members) > 1 and len(asked):
            found[asked] = _block_ranks(t[asked], v[members], owners[asked], members)
    return found[found > 0]


def group_retrieval(
    text: ArrayLike,
    video: ArrayLike,
    owner: Sequence[int] | NDArray[np.integer[Any]],
    groups: Sequence[str] | None,
) -> Retrieval | None:
    """Text-to-video where the candidates are the videos of the right one's group.

    groups  [V] names; None: the data has none
    A group of one asks nothing and is left out; None when no other is there. Raises InputError as `retrieval`, and
    for another number of groups.
    """
    if groups is None:
        return None
    found = group_ranks(text, video, owner, groups)
    if len(found) == 0:
        return None
    _, sizes = np.unique(np.asarray(groups, dtype=object).astype(str), return_counts=True)
    return summarise(TEXT_TO_VIDEO, found, int(sizes.max()))
