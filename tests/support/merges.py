"""Matches and merges by the words of the spec, and encoders that merge as they are told."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from tempme_export.encoder.reference import MergeLog, ReferenceVideo
from tempme_export.kernels.reference import merge_tokens_ref


@dataclasses.dataclass(frozen=True)
class TiedCase:
    """A metric [B, N, C] full of exact ties, and its similarities as exact multiples of 1/4."""

    metric: torch.Tensor
    n_cls: int
    r: int
    quarters: np.ndarray

    @property
    def n_tokens(self):
        return self.metric.shape[1]


@st.composite
def _tied_cases(draw, dtypes=(torch.float32,)):
    """Tokens are copies of a few vectors with four entries of one magnitude, or zero, scaled at random.

    Their cosines are multiples of 1/4 whatever the order of the additions, so that ties are exact and
    the rule of the spec decides every time.
    """
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows, width = draw(st.integers(1, 3)), draw(st.sampled_from([4, 5, 16, 63, 64]))
    n_cls, patches = draw(st.integers(1, 13)), draw(st.integers(2, 40))
    n_tokens = n_cls + patches
    available = len(range(n_cls + n_cls % 2, n_tokens, 2))
    r = draw(st.integers(1, available))
    words = np.zeros((draw(st.integers(1, 6)), width), np.int64)
    for word in words[int(rng.integers(2)) :]:  # the first may stay zero
        word[rng.choice(width, 4, replace=False)] = rng.choice([-1, 1], 4)
    signs = words[rng.integers(len(words), size=(rows, n_tokens))]
    scale = rng.choice([1.0, 3.0, 0.1, 1e-3, 700.0], size=(rows, n_tokens, 1))
    metric = torch.from_numpy(signs * scale).to(draw(st.sampled_from(dtypes)))
    return TiedCase(metric, n_cls, r, signs @ signs.transpose(0, 2, 1))


@pytest.fixture(scope="session")
def tied_cases():
    """Hypothesis strategy of TiedCase, by the dtypes of the metric."""
    return _tied_cases


def _match_by_definition(scores, n_cls, r):
    """Spec section 4 for one item, as a list; scores [N, N] of anything that compares exactly."""
    n_tokens = len(scores)
    set_a = [i for i in range(n_cls, n_tokens) if i % 2 == 0]
    set_b = [i for i in range(n_cls, n_tokens) if i % 2 == 1]
    best = {a: min(set_b, key=lambda b: (-scores[a][b], b)) for a in set_a}
    merged = sorted(set_a, key=lambda a: (-scores[a][best[a]], a))[:r]
    order = list(range(n_cls)) + [a for a in set_a if a not in merged] + set_b
    row = {token: place for place, token in enumerate(order)}
    return [row[best[token]] if token in merged else row[token] for token in range(n_tokens)]


@pytest.fixture(scope="session")
def match_by_definition():
    """A TiedCase's assignment [B, N] int32, by the words of the spec and in whole numbers."""

    def match(case):
        rows = [_match_by_definition(scores.tolist(), case.n_cls, case.r) for scores in case.quarters]
        return torch.tensor(rows, dtype=torch.int32)

    return match


def _check_assign(assign, n_tokens, n_cls, r):
    n_out = n_tokens - r
    assert assign.dtype == torch.int32 and assign.shape[1] == n_tokens
    set_a, set_b = (torch.arange(n_cls, n_tokens)[k::2] for k in (n_cls % 2, 1 - n_cls % 2))
    first_b = n_out - len(set_b)
    for row in assign:
        assert sorted(set(row.tolist())) == list(range(n_out)), "every output row gets something"
        assert row[:n_cls].tolist() == list(range(n_cls)), "class tokens stay"
        assert row[set_b].tolist() == list(range(first_b, n_out)), "B comes last, in order"
        kept = [place for place in row[set_a].tolist() if place < first_b]
        assert kept == list(range(n_cls, first_b)), "kept A in rising order"
        assert len(set_a) - len(kept) == r, "r tokens merge"


@pytest.fixture(scope="session")
def check_assign():
    """Asserts that an assignment [B, N] is a function onto the output rows, in the order of the spec."""
    return _check_assign


def _check_optimal(metric, assign, n_cls, r, within=1e-5):
    n_tokens = metric.shape[1]
    wide = metric.double()
    unit = wide / wide.norm(dim=-1, keepdim=True)
    set_a, set_b = (torch.arange(n_cls, n_tokens)[k::2] for k in (n_cls % 2, 1 - n_cls % 2))
    first_b = n_tokens - r - len(set_b)
    scores = unit[:, set_a] @ unit[:, set_b].transpose(1, 2)
    best = scores.amax(dim=-1)
    place = assign[:, set_a].long() - first_b
    merged = place >= 0
    chosen = scores.gather(2, place.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    assert (chosen >= best - within)[merged].all(), "each joins its nearest"
    lowest_merged = best.masked_fill(~merged, torch.inf).amin(dim=-1)
    highest_kept = best.masked_fill(merged, -torch.inf).amax(dim=-1)
    assert (lowest_merged >= highest_kept - within).all(), "the nearest pairs merge"


@pytest.fixture(scope="session")
def check_optimal():
    """Asserts that an assignment is the best by float64 scores up to 1e-5: near ties cannot flake."""
    return _check_optimal


class _Watched(ReferenceVideo):
    def __init__(self, recipe, video, assigns, dtype=torch.float32):
        super().__init__(recipe, dtype)
        self.given, self.metrics = iter(assigns), []
        self.feature = self.video_feature(video)

    def _merge(self, x, size, metric, block, kind, log):
        r = block.r_cross if kind == "cross" else block.r_intra
        if r == 0:
            return x, size
        self.metrics.append((metric, block.n_cls, r))
        return merge_tokens_ref(x, size, next(self.given), x.shape[1] - r)


@pytest.fixture(scope="session")
def watched():
    """`watched(recipe, video, assigns, dtype)`: the reference that merged by `assigns`, its `feature`, and the
    `metrics` it would have decided on, each with n_cls and r."""
    return _Watched


def _decided(encoder, assigns):
    given = itertools.cycle(assigns)
    for block in encoder.blocks:
        block._merge = lambda stream, assign, *rest, merge=block._merge: merge(stream, next(given), *rest)
    return encoder


@pytest.fixture(scope="session")
def decided():
    """`decided(encoder, assigns)`: a VideoEncoder whose merges follow `assigns`; those it returns are still its own."""
    return _decided


def _safe_embedding(recipe, frames, mask=None, dtype=torch.float32):
    from tempme_export.parity.selftest import SAFE_GAP  # takes Pillow, which the oldest set lacks

    frames, mask = torch.as_tensor(frames, dtype=dtype), None if mask is None else torch.as_tensor(mask)
    log = MergeLog()
    feature = ReferenceVideo(recipe, dtype).video_feature(frames, mask, log)
    assert all(float(step.gap.min()) >= SAFE_GAP for step in log.steps), "an unsafe decision was drawn"
    return torch.nn.functional.normalize(feature, dim=-1).numpy()


@pytest.fixture(scope="session")
def safe_embedding():
    """`safe_embedding(recipe, frames, mask, dtype)`: the reference's unit embeddings [B, E] of frames all of whose
    decisions lie SAFE_GAP or more from turning, so that no order of additions takes another: numpy, float32."""
    return _safe_embedding


def _merge_by_definition(x, size, assign, n_out):
    x, size, assign = x.double().numpy(), size.double().numpy(), assign.numpy()
    total = np.zeros((len(x), n_out))
    sums, magnitude = np.zeros((2, len(x), n_out, x.shape[-1]))
    for item in range(len(x)):
        for token, row in enumerate(assign[item]):
            total[item, row] += size[item, token]
            sums[item, row] += size[item, token] * x[item, token]
            magnitude[item, row] += size[item, token] * np.abs(x[item, token])
    means = (torch.from_numpy(part / total[..., None]) for part in (sums, magnitude))
    return *means, torch.from_numpy(total)


@pytest.fixture(scope="session")
def merge_by_definition():
    """float64 (weighted mean, weighted mean of magnitudes, sizes) of tokens that share an output row."""
    return _merge_by_definition
