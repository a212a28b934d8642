"""Effect of a change of embeddings on retrieval: on recalls, on the first candidates and on the order of all; and the
share of each of its two causes, other merge decisions and numeric drift. Arrays in, numbers and checks out."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tempme_export.evaluation.metrics import TEXT_TO_VIDEO, VIDEO_TO_TEXT, Retrieval, group_retrieval, retrieval
from tempme_export.parity.checks import Check, centred_cosine, cosine_distance, embedding_checks, rank_agreement
from tempme_export.parity.tolerance import UNIT_LENGTH, RetrievalTolerance, Tolerance

GROUPS = f"{TEXT_TO_VIDEO} in group"
RECALLS = {"R@1": "r1", "R@5": "r5", "R@10": "r10"}
_BEST = 10
_QUERIES = 256  # rows of a similarity table at a time
_STEPS = 2.0**30  # scores are cut to multiples of 1 / _STEPS: equal embeddings tie, wherever they stand in a matrix

Floats = NDArray[np.float32]
Metrics = dict[str, Retrieval]
"""By name: both directions, and GROUPS where the data has groups."""


@dataclass(frozen=True)
class Embedded:
    """One path over the data: text [T, E] and video [V, E], float32, rows of unit length."""

    text: Floats
    video: Floats

    def with_videos_of(self, other: "Embedded", which: NDArray[np.bool_]) -> "Embedded":
        """These texts, and the videos of `other` where `which` [V] says so."""
        return replace(self, video=np.where(which[:, None], other.video, self.video))


@dataclass(frozen=True)
class Truth:
    """Ground truth: the video of each text, owner [T], and groups [V] or None."""

    owner: Sequence[int]
    groups: Sequence[str] | None = None

    def metrics(self, found: Embedded) -> Metrics:
        """Retrieval metrics of these embeddings. Raises InputError where there is nothing to retrieve."""
        metrics: Metrics = {m.direction: m for m in retrieval(found.text, found.video, self.owner)}
        grouped = group_retrieval(found.text, found.video, self.owner, self.groups)
        return metrics if grouped is None else {**metrics, GROUPS: grouped}


@dataclass(frozen=True)
class Decisions:
    """Merge decisions of an artifact that differ from the original path's.

    changed  int64 [V]: tokens that went to another row, over all merges
    gap      float32 [V]: the smallest score difference the original decided by in the merge where the video first
             left its path; 0 where it never did
    tokens   per video, over all merges; 0 where nothing merges
    known    False for an artifact that does not say how it decided: `changed` is then above 0 for every video in which
             rounding may have turned a decision, and `gap` the smallest difference of all
    """

    changed: NDArray[np.int64]
    gap: Floats
    tokens: int
    known: bool = True

    @property
    def share(self) -> float:
        """Share of all tokens that went to another row."""
        return float(self.changed.sum() / max(1, self.tokens * len(self.changed)))


@dataclass(frozen=True)
class Part:
    """Effect of one cause.

    videos         how many it touched
    largest, mean  1 - cosine of their embeddings; 0 for no video
    r1_change      points of R@1 by metric, when only what this cause touched is the artifact's
    """

    videos: int
    largest: float
    mean: float
    r1_change: dict[str, float]


@dataclass(frozen=True)
class RetrievalComparison:
    """One artifact beside the original path.

    metrics         the artifact's
    top10_overlap   share of a query's ten best candidates (half of them where there are fewer than twenty) that are
                    the original's, mean over queries, by direction
    rank_agreement  Spearman correlation over all candidates, mean over queries, by direction
    centred_cosine  smallest cosine after the original's mean is subtracted, of videos and of texts
    changed_tokens  share of all tokens that went to another row
    largest_gap     largest score difference that the original decided by where a video first left its path
    r1_change       points of R@1 by metric, with all embeddings the artifact's
    decisions       the part of videos with a changed decision
    drift           the part of all other videos and of the texts; both need not add up to `r1_change`

    Where the artifact does not say how it decided, `changed_tokens`, `largest_gap` and `decisions` are None and `drift`
    is the part of everything.
    """

    artifact: str
    metrics: Metrics
    top10_overlap: dict[str, float]
    rank_agreement: dict[str, float]
    centred_cosine: dict[str, float]
    changed_tokens: float | None
    largest_gap: float | None
    r1_change: dict[str, float]
    decisions: Part | None
    drift: Part

    def to_dict(self) -> dict[str, Any]:
        """Values for the manifest and `--json`."""
        return {**asdict(self), "metrics": {name: one.to_dict() for name, one in self.metrics.items()}}


def _over_queries(
    original: tuple[Floats, Floats], artifact: tuple[Floats, Floats], measure: Callable[[Any, Any], float]
) -> float:
    """Sum of a measure of two similarity tables [Q, C], some queries at a time. Sides are queries and candidates."""
    total = 0.0
    for start in range(0, len(original[0]), _QUERIES):
        tables = []
        for queries, candidates in (original, artifact):
            scores = queries[start : start + _QUERIES].astype(np.float64) @ candidates.astype(np.float64).T
            tables.append(np.round(scores * _STEPS))
        total += measure(*tables)
    return total


def _best(scores: NDArray[np.float64], best: int) -> NDArray[np.bool_]:
    """[Q, C] -> which candidates are a query's best; the first of equals."""
    chosen = np.zeros(scores.shape, np.bool_)
    np.put_along_axis(chosen, np.argsort(-scores, axis=1, kind="stable")[:, :best], True, axis=1)
    return chosen


def _agreement_checks(
    direction: str, original: tuple[Floats, Floats], artifact: tuple[Floats, Floats], limits: RetrievalTolerance
) -> tuple[Check, Check]:
    """Overlap of the first candidates and correlation of all, for one direction."""
    queries, candidates = len(original[0]), len(original[1])
    best = min(_BEST, max(1, candidates // 2))  # with all of them, the overlap would be whole whatever the order
    shared = _over_queries(original, artifact, lambda a, b: int((_best(a, best) & _best(b, best)).sum()))
    ranks = _over_queries(original, artifact, lambda a, b: rank_agreement(a, b) * len(a)) / queries
    overlap = Check(
        f"{direction}: top-{_BEST} overlap",
        shared / (best * queries),
        limits.overlap_limit(queries, best),
        at_least=True,
        detail="" if best == _BEST else f"of the first {best}, half of the candidates",
    )
    limit = limits.rank_limit(queries, candidates)
    return overlap, Check(f"{direction}: rank agreement", ranks, limit, at_least=True)


def _recall_checks(name: str, original: Retrieval, artifact: Retrieval, limits: RetrievalTolerance) -> list[Check]:
    """Losses in points. In whole queries first: the difference of two percentages is no exact number of them."""
    recalls = {"R@1": "r1"} if name == GROUPS else RECALLS  # few groups have five candidates
    checks = []
    for label, field in recalls.items():
        lost = round((getattr(original, field) - getattr(artifact, field)) * original.queries / 100)
        value, limit = lost * 100 / original.queries, limits.recall_limit(original.queries)
        checks.append(Check(f"{name}: {label} lost, points", value, limit, detail=f"{lost} of {original.queries}"))
    return checks


def _length_check(found: Embedded) -> Check:
    """A row that is not finite, or not of unit length, fails here, however few there are among many."""
    lengths = np.concatenate([np.linalg.norm(side.astype(np.float64), axis=1) for side in (found.text, found.video)])
    return Check("unit length: | length - 1 |", float(np.abs(lengths - 1).max()), UNIT_LENGTH)


def _r1(metrics: Metrics, before: Metrics) -> dict[str, float]:
    return {name: one.r1 - before[name].r1 for name, one in metrics.items()}


def compare(
    name: str, original: Embedded, artifact: Embedded, truth: Truth, decisions: Decisions, tolerance: Tolerance
) -> tuple[RetrievalComparison, tuple[Check, ...]]:
    """Compare an artifact's embeddings with the original path's.

    Raises InputError where there is nothing to retrieve.
    """
    changed, limits, known = decisions.changed > 0, tolerance.retrieval, decisions.known
    before, after = truth.metrics(original), truth.metrics(artifact)
    distances = np.array([cosine_distance(a, b) for a, b in zip(original.video, artifact.video, strict=True)])

    def part(which: NDArray[np.bool_], found: Embedded) -> Part:
        largest, mean = (float(distances[which].max()), float(distances[which].mean())) if which.any() else (0.0, 0.0)
        return Part(int(which.sum()), largest, mean, _r1(truth.metrics(found), before))

    agreement = {
        direction: _agreement_checks(direction, (a, b), (c, d), limits)
        for direction, a, b, c, d in (
            (TEXT_TO_VIDEO, original.text, original.video, artifact.text, artifact.video),
            (VIDEO_TO_TEXT, original.video, original.text, artifact.video, artifact.text),
        )
    }
    comparison = RetrievalComparison(
        artifact=name,
        metrics=after,
        top10_overlap={direction: overlap.value for direction, (overlap, _) in agreement.items()},
        rank_agreement={direction: ranks.value for direction, (_, ranks) in agreement.items()},
        centred_cosine={
            "video": centred_cosine(original.video, artifact.video),
            "text": centred_cosine(original.text, artifact.text),
        },
        changed_tokens=decisions.share if known else None,
        largest_gap=float(decisions.gap.max(initial=0.0)) if known else None,
        r1_change=_r1(after, before),
        decisions=part(changed, original.with_videos_of(artifact, changed)) if known else None,
        drift=part(~changed, artifact.with_videos_of(original, changed)) if known else part(changed | True, artifact),
    )
    # Where decisions changed, and below float32, the recalls and ranks measure an embedding by its effect.
    distance_only = replace(tolerance, fragile_distance=None, centred_cosine=None, rank_agreement=None)
    checks = [check for metric in before for check in _recall_checks(metric, before[metric], after[metric], limits)]
    checks += [check for pair in agreement.values() for check in pair]
    label = "video, equal decisions" if known else "video, safe decisions"
    checks += embedding_checks(label, original.video, artifact.video, distance_only, fragile=changed)
    checks += embedding_checks("text", original.text, artifact.text, distance_only)
    return comparison, (*checks, _length_check(artifact))
