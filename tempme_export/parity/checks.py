"""Parity checks of an artifact against the reference: three levels, one tolerance table.

(a) decisions: every token goes to the same row; (b) merged tokens, where the decisions are equal;
(c) embeddings of the whole encoder, at several batch sizes. Nothing compared is a failure.
"""

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tempme_export.encoder.schedule import Schedule
from tempme_export.media.preprocess import Preprocess
from tempme_export.media.token_ids import TextTruncatedWarning, TokenIds
from tempme_export.parity.selftest import SAFE_GAP, SelfTest
from tempme_export.parity.tolerance import UNIT_LENGTH, Tolerance
from tempme_export.runtime.base import Runner

Floats = NDArray[Any]


@dataclass(frozen=True)
class Check:
    """One comparison. `value` is also the smallest (or, with at_least, largest) limit that would have passed."""

    name: str
    value: float
    limit: float
    at_least: bool = False
    detail: str = ""

    @property
    def passed(self) -> bool:
        """False for NaN, whatever the limit."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit


@dataclass(frozen=True)
class ParityReport:
    """All checks of one artifact on one backend. `reason` says why nothing ran."""

    artifact: str
    backend: str
    checks: tuple[Check, ...]
    reason: str = ""

    @property
    def status(self) -> Literal["passed", "failed", "not run"]:
        """`not run` only with a reason; without any check it failed."""
        if self.reason:
            return "not run"
        return "passed" if self.checks and all(check.passed for check in self.checks) else "failed"

    def to_dict(self) -> dict[str, Any]:
        """Values for the manifest and `--json`. One that is not finite becomes None: JSON has no word for it."""
        checks = [
            {**asdict(check), "value": check.value if np.isfinite(check.value) else None, "passed": check.passed}
            for check in self.checks
        ]
        return {**asdict(self), "checks": checks, "status": self.status}


def cosine_distance(expected: Floats, found: Floats) -> float:
    """Largest 1 - cosine over rows, computed in float64; NaN when a row is not finite.

    Two zero rows are equal; a zero row against another is at distance 1.
    """
    a, b = np.asarray(expected, np.float64), np.asarray(found, np.float64)
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    both_zero = ~a.any(axis=-1) & ~b.any(axis=-1)
    cosine = np.where(both_zero, 1.0, (a * b).sum(axis=-1) / np.where(norms == 0, 1.0, norms))
    return float(np.max(1.0 - cosine))


def centred_cosine(expected: Floats, found: Floats) -> float:
    """Smallest cosine over rows after the mean of `expected` is subtracted from both."""
    mean = np.asarray(expected, np.float64).mean(axis=0)
    return 1.0 - cosine_distance(expected - mean, found - mean)


def _ranks(x: Floats) -> Floats:
    return np.argsort(np.argsort(x, axis=-1, kind="stable"), axis=-1, kind="stable").astype(np.float64)


def rank_agreement(expected: Floats, found: Floats) -> float:
    """Spearman correlation of two [queries, candidates] similarity tables: the mean over queries."""
    a, b = _ranks(expected), _ranks(found)
    a, b = a - a.mean(axis=-1, keepdims=True), b - b.mean(axis=-1, keepdims=True)
    if expected.shape[-1] < 2:
        return 1.0
    return float(((a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1))).mean())


def embedding_checks(
    label: str,
    expected: Floats,
    found: Floats,
    tolerance: Tolerance,
    against: Floats | None = None,
    fragile: NDArray[np.bool_] | None = None,
) -> list[Check]:
    """Level (c).

    against  embeddings of the other tower, for rank agreement
    fragile  rows whose decisions turned, or may turn, at a near tie; they have a limit of their own
    """
    safe = np.ones(len(expected), bool) if fragile is None else ~fragile
    checks = []
    if tolerance.cosine_distance is not None and safe.any():
        value = cosine_distance(expected[safe], found[safe])
        checks.append(Check(f"{label}: 1 - cosine", value, tolerance.cosine_distance))
    if tolerance.fragile_distance is not None and not safe.all():
        value, count = cosine_distance(expected[~safe], found[~safe]), int((~safe).sum())
        detail = f"{count} near-tied"
        checks.append(Check(f"{label}: 1 - cosine, near ties", value, tolerance.fragile_distance, detail=detail))
    if tolerance.centred_cosine is not None:
        value = centred_cosine(expected, found)
        checks.append(Check(f"{label}: centred cosine", value, tolerance.centred_cosine, at_least=True))
    if tolerance.rank_agreement is not None and against is not None:
        value = min(
            rank_agreement(against @ expected.T, against @ found.T),
            rank_agreement(expected @ against.T, found @ against.T),
        )
        checks.append(Check(f"{label}: rank agreement", value, tolerance.rank_agreement, at_least=True))
    return checks


def _per_video(array: NDArray[Any], videos: int) -> NDArray[Any]:
    """[V * clips, ...] -> [V, clips, ...]."""
    return array.reshape(videos, -1, *array.shape[1:])


def decision_checks(
    selftest: SelfTest,
    schedule: Schedule,
    found: dict[str, NDArray[Any]],
    tolerance: Tolerance,
    with_tokens: bool = True,
) -> tuple[list[Check], NDArray[np.bool_]]:
    """Levels (a) and, `with_tokens`, (b), from the values that the artifact exposes for every merge.

    A video that leaves the reference's path where the reference itself decided by less than SAFE_GAP is reported and
    not counted as changed from there on. Returns the checks and, for each video, whether it did so.
    """
    videos = len(selftest.clips)
    with_tokens = with_tokens and bool(selftest.tokens)
    same, forked = np.ones(videos, bool), np.zeros(videos, bool)  # so far; left at a near tie
    if not schedule.merges:
        return [], forked
    changed = tokens = 0
    worst, compared, margins, first = 0.0, 0, [], ""
    for k, merge in enumerate(schedule.merges):
        expected = _per_video(selftest.assigns[k], videos)
        assign = _per_video(found[merge.assign_name], videos)
        differs = (assign != expected).reshape(videos, -1)
        turned = same & differs.any(axis=1)
        forked |= turned & (selftest.gaps[:, k] < SAFE_GAP)
        changed, tokens = changed + int(differs[~forked].sum()), tokens + differs.size
        if turned.any() and not first:
            first = f", first in block {merge.block} ({merge.kind})"
        margins += [float(gap) for gap in selftest.gaps[turned, k]]
        same &= ~differs.any(axis=1)
        if with_tokens and same.any():
            x = _per_video(selftest.tokens[k], videos)[same].astype(np.float64)
            y = _per_video(found[merge.tokens_name], videos)[same].astype(np.float64)
            worst = float(np.maximum(worst, np.sqrt(((x - y) ** 2).mean() / (x**2).mean())))
            compared += int(same.sum())
    detail = f"{changed} of {tokens} tokens{first}"
    if margins:
        detail += f"; the reference decided there by {max(margins):.1e} or less"
    if forked.any():
        detail += f"; {int(forked.sum())} of {videos} videos turned at a near tie"
    checks = [Check("decisions changed", changed / tokens, tolerance.changed_decisions, detail=detail)]
    if with_tokens:
        value = worst if compared else float("nan")
        detail = f"{compared} of {videos * len(schedule.merges)} merges compared"
        checks.append(Check("merged tokens, relative RMS", value, tolerance.merged_tokens, detail=detail))
    return checks, forked


def unit_length(label: str, embedding: Floats) -> Check:
    """Check of unit length: the largest distance of any row's length from 1."""
    worst = np.abs(np.linalg.norm(embedding.astype(np.float64), axis=-1) - 1).max()
    return Check(f"unit length, {label}: | length - 1 |", float(worst), UNIT_LENGTH)


def _frames(selftest: SelfTest, preprocess: Preprocess, rows: NDArray[np.intp]) -> NDArray[np.float32]:
    distinct = np.stack([preprocess(clip) for clip in selftest.clips])
    return distinct[rows]


def inputs_for(runner: Runner, frames: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """Normalised frames [B, F, 3, S, S] as a runner of a video tower takes them, every frame counting."""
    inputs: dict[str, NDArray[Any]] = {"frames": frames}
    if "frame_mask" in runner.inputs:
        inputs["frame_mask"] = np.ones(frames.shape[:2], np.bool_)
    return inputs


def check_video(
    selftest: SelfTest,
    schedule: Schedule,
    preprocess: Preprocess,
    with_merges: Runner,
    tolerance: Tolerance,
    with_tokens: bool = True,
) -> list[Check]:
    """Check a video tower on the self-test clips.

    with_merges  a Runner whose outputs also hold every merge's `assign_name` and `tokens_name`
    with_tokens  False for an artifact that exposes its decisions only
    """
    rows = np.arange(len(selftest.clips))
    found = with_merges.infer(inputs_for(with_merges, _frames(selftest, preprocess, rows)))
    checks, forked = decision_checks(selftest, schedule, found, tolerance, with_tokens)
    embedding = found["video_embedding"]
    checks += embedding_checks(
        f"video, batch {len(rows)}",
        selftest.video_embedding,
        embedding,
        tolerance,
        selftest.text_embedding,
        forked,
    )
    return [*checks, unit_length("video", embedding)]


def _change(one: Floats, other: Floats) -> float:
    return float(np.abs(one - other).max())


def _independence(label: str, dependence: float, tolerance: Tolerance) -> list[Check]:
    if tolerance.dependence is None:
        return []
    return [Check(f"{label}: change by what else is in the batch", dependence, tolerance.dependence)]


def check_batches(
    selftest: SelfTest,
    preprocess: Preprocess,
    runner: Runner,
    batches: Sequence[int],
    tolerance: Tolerance,
    runs_before: int = 0,
) -> list[Check]:
    """Check the same clips in batches of other sizes, in another order: neighbours must not matter.

    runs_before  how often a batch runs on black frames before the run that is checked, for a runner that records its
                 work and replays it from some run on
    """
    checks, alone, dependence = [], dict[int, Floats](), 0.0
    for batch in batches:
        rows = np.arange(batch)[::-1] % len(selftest.clips)
        frames = _frames(selftest, preprocess, rows)
        for _ in range(runs_before):
            runner.infer(inputs_for(runner, np.zeros_like(frames)))
        found = runner.infer(inputs_for(runner, frames))["video_embedding"]
        for row, embedding in zip(rows, found, strict=True):
            dependence = max(dependence, _change(alone.setdefault(int(row), embedding), embedding))
        expected, fragile = selftest.video_embedding[rows], selftest.fragile[rows]
        against = selftest.text_embedding if batch == len(selftest.clips) else None  # a repeated clip has no rank
        if batch < len(selftest.clips):  # too few to subtract a mean
            found = np.concatenate([found, selftest.video_embedding])
            expected = np.concatenate([expected, selftest.video_embedding])
            fragile = np.concatenate([fragile, selftest.fragile])
        checks += embedding_checks(f"video, batch {batch}", expected, found, tolerance, against, fragile)
    return [*checks, *_independence("video", dependence, tolerance)]


def check_tokenizer(selftest: SelfTest, tokenizer: TokenIds) -> Check:
    """Check a tokenizer on the self-test's captions: every id must be open_clip's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TextTruncatedWarning)
        changed = int((tokenizer(selftest.captions) != selftest.caption_ids).sum())
    detail = f"{changed} of {selftest.caption_ids.size} ids"
    return Check("token ids changed", changed if selftest.captions else float("nan"), 0, detail=detail)


def check_text(selftest: SelfTest, runner: Runner, tolerance: Tolerance) -> list[Check]:
    """Check a text tower on the self-test texts, together and one by one."""
    together = runner.infer({"token_ids": selftest.token_ids})["text_embedding"]
    alone = np.concatenate([runner.infer({"token_ids": row[None]})["text_embedding"] for row in selftest.token_ids])
    count = len(selftest.token_ids)
    return [
        *embedding_checks(f"text, batch {count}", selftest.text_embedding, together, tolerance),
        *embedding_checks("text, batch 1", selftest.text_embedding, alone, tolerance),
        *_independence("text", _change(alone, together), tolerance),
        unit_length("text", alone),
    ]
