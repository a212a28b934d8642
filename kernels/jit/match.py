"""Matching: cosine similarity streamed with a running arg-max, then stable ranking by counting.

Scores are never stored. Equal tokens must score exactly alike whatever sums them, closer than half a snapping
step of 2^-20, which one float32 sum misses where a few channels outweigh the rest. So each unit row is written
as high + low / 2^12, both float16: products of `high` (11 fractional bits) sum exactly in a float32
accumulator, those of `low` weigh too little to matter, and scores are divided by the norm of what was written.
"""

import triton
import triton.language as tl

from tempme_export.kernels.jit.common import locate, sets

_HIGH_STEP, _HIGH_STEPS = tl.constexpr(2.0**-11), tl.constexpr(2.0**11)
_LOW_STEP, _LOW_STEPS = tl.constexpr(2.0**-12), tl.constexpr(2.0**12)
_SNAP_STEPS = tl.constexpr(2.0**20)
_ROUND = tl.constexpr(1.5 * 2.0**23)  # added and taken away, it rounds |value| < 2^22 to the nearest even integer
_LAST = tl.constexpr(2**31 - 1)


@triton.jit
def _load_metric(
    metric,
    delta,
    clip,
    token,
    valid,
    stride_clip,
    stride_part,
    stride_token,
    stride_channel,
    delta_clip,
    delta_token,
    delta_channel,
    PARTS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Rows [T, BLOCK_C] of the metric in float32: summed over its parts (heads), plus `delta` if given."""
    channel = tl.arange(0, BLOCK_C)
    mask = valid[:, None] & (channel < WIDTH)[None, :]
    rows = metric + (clip * stride_clip + token * stride_token)[:, None] + (channel * stride_channel)[None, :]
    value = tl.load(rows, mask, other=0.0).to(tl.float32)
    for part in tl.static_range(1, PARTS):
        value += tl.load(rows + part * stride_part, mask, other=0.0).to(tl.float32)
    if delta is not None:
        rows = delta + (clip * delta_clip + token * delta_token)[:, None] + (channel * delta_channel)[None, :]
        value += tl.load(rows, mask, other=0.0).to(tl.float32)
    return value


@triton.jit
def _inverse_root(square):
    """1 / sqrt, and 0 for a zero-norm row, whose similarity to all is 0."""
    root = tl.sqrt_rn(tl.where(square == 0, 1.0, square))
    return tl.where(square == 0, 0.0, tl.math.div_rn(1.0, root))


@triton.jit
def _sum_of(high, low):
    return (high.to(tl.float32) + low.to(tl.float32) * _LOW_STEP).to(tl.float16)


@triton.jit
def _split(value):
    """Rows -> high and low float16 of their unit vectors, and one over the norm of what these stand for."""
    unit = value * _inverse_root(tl.sum(value * value, axis=1))[:, None]
    high = ((unit * _HIGH_STEPS + _ROUND) - _ROUND) * _HIGH_STEP
    low = ((unit - high) * _LOW_STEPS).to(tl.float16)
    rest = low.to(tl.float32) * _LOW_STEP
    square = tl.sum(high * high, axis=1)
    high = high.to(tl.float16)
    square += tl.sum(rest * (high.to(tl.float32) + _sum_of(high, low).to(tl.float32)), axis=1)
    return high, low, _inverse_root(square)


@triton.jit
def _add_products(exact, rest, high_a, low_a, high_b, low_b):
    exact = tl.dot(high_a, tl.trans(high_b), exact)
    rest = tl.dot(high_a, tl.trans(low_b), rest)
    return exact, tl.dot(low_a, tl.trans(_sum_of(high_b, low_b)), rest)


@triton.jit
def _take_best(best, best_b, exact, rest, scale_a, scale_b, b, n_b):
    """Carry on the running arg-max over B, in whole snapping steps; among equals the lowest B stays."""
    score = (exact + rest * _LOW_STEP) * scale_a[:, None] * scale_b[None, :]
    score = (score * _SNAP_STEPS + _ROUND) - _ROUND
    score = tl.where((score == score) & (b < n_b)[None, :], score, float("-inf"))
    tile_best = tl.max(score, axis=1)
    tile_b = tl.min(tl.where(score == tile_best[:, None], b[None, :], _LAST), axis=1)
    return tl.maximum(best, tile_best), tl.where(tile_best > best, tile_b, best_b)


@triton.jit
def _store_fixed(assign, n_tokens, n_cls, r, BLOCK: tl.constexpr):
    """The output rows of class tokens and B, which no score changes."""
    _, _, start_b, n_b, row_b = sets(n_tokens, n_cls, r)
    for first in range(0, tl.maximum(n_cls, n_b), BLOCK):
        i = first + tl.arange(0, BLOCK)
        tl.store(assign + i, i, i < n_cls)
        tl.store(assign + start_b + 2 * i, row_b + i, i < n_b)


@triton.jit
def _comes_before(other, j, mine, a, n_a):
    """[A, J]: whether j is merged before a."""
    other, mine = other[None, :], mine[:, None]
    before = (other > mine) | ((other == mine) & (j[None, :] < a[:, None]))
    return (before & (j < n_a)[None, :]).to(tl.int32)


@triton.jit
def match_item(
    metric,
    item,
    n_tokens,
    n_cls,
    r,
    stride_item,
    stride_part,
    stride_token,
    stride_channel,
    assign,
    PARTS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_A: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Match and select one item whose metric rows fit a tile: WIDTH <= BLOCK_C, |A| <= BLOCK_A."""
    assign += item * n_tokens
    start_a, n_a, start_b, n_b, row_b = sets(n_tokens, n_cls, r)
    a = tl.arange(0, BLOCK_A)
    value_a = _load_metric(
        metric, None, item, start_a + 2 * a, a < n_a, stride_item, stride_part, stride_token, stride_channel,
        0, 0, 0, PARTS, WIDTH, BLOCK_C,
    )  # fmt: skip
    high_a, low_a, scale_a = _split(value_a)
    best = tl.full([BLOCK_A], float("-inf"), tl.float32)
    best_b = tl.zeros([BLOCK_A], tl.int32)
    for first_b in tl.range(0, n_b, BLOCK_B, num_stages=1):  # buffers for 12 heads would fill shared memory
        b = first_b + tl.arange(0, BLOCK_B)
        value_b = _load_metric(
            metric, None, item, start_b + 2 * b, b < n_b, stride_item, stride_part, stride_token, stride_channel,
            0, 0, 0, PARTS, WIDTH, BLOCK_C,
        )  # fmt: skip
        high_b, low_b, scale_b = _split(value_b)
        exact = tl.zeros([BLOCK_A, BLOCK_B], tl.float32)
        exact, rest = _add_products(exact, exact, high_a, low_a, high_b, low_b)
        best, best_b = _take_best(best, best_b, exact, rest, scale_a, scale_b, b, n_b)

    rank = tl.sum(_comes_before(best, a, best, a, n_a), axis=1)
    kept = (rank >= r).to(tl.int32)
    kept_before = tl.cumsum(kept, axis=0) - kept
    row = tl.where(kept == 1, n_cls + kept_before, row_b + best_b)
    tl.store(assign + start_a + 2 * a, row, a < n_a)
    _store_fixed(assign, n_tokens, n_cls, r, BLOCK_A)


@triton.jit
def match_keys_kernel(
    metric,
    n_tokens,
    n_cls,
    r,
    stride_item,
    stride_part,
    stride_token,
    stride_channel,
    assign,
    PARTS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_A: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One program per item; metric [items, PARTS, n_tokens, WIDTH], writes assign [items, n_tokens]."""
    match_item(
        metric, tl.program_id(0).to(tl.int64), n_tokens, n_cls, r, stride_item, stride_part, stride_token,
        stride_channel, assign, PARTS, WIDTH, BLOCK_A, BLOCK_B, BLOCK_C,
    )  # fmt: skip


@triton.jit
def split_rows_kernel(
    metric,
    delta,
    tokens,
    n_rows,
    stride_clip,
    stride_part,
    stride_token,
    stride_channel,
    delta_clip,
    delta_token,
    delta_channel,
    high,
    low,
    scale,
    PARTS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Unit rows in two float16 parts, for metrics that `score_rows_kernel` streams; n_rows = clips * tokens.

    metric [clips, PARTS, tokens, WIDTH], delta [clips, tokens, WIDTH] or None; writes high, low [n_rows, WIDTH] and
    scale [n_rows].
    """
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    valid = row < n_rows
    value = _load_metric(
        metric, delta, row // tokens, row % tokens, valid, stride_clip, stride_part, stride_token, stride_channel,
        delta_clip, delta_token, delta_channel, PARTS, WIDTH, BLOCK_D,
    )  # fmt: skip
    of_high, of_low, of_scale = _split(value)
    channel = tl.arange(0, BLOCK_D)
    at = row[:, None] * WIDTH + channel[None, :]
    mask = valid[:, None] & (channel < WIDTH)[None, :]
    tl.store(high + at, of_high, mask)
    tl.store(low + at, of_low, mask)
    tl.store(scale + row, of_scale, valid)


@triton.jit
def score_rows_kernel(
    high,
    low,
    scale,
    n_tokens,
    n_cls,
    best,
    best_b,
    WIDTH: tl.constexpr,
    FACTOR: tl.constexpr,
    BLOCK_A: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The best score and partner of BLOCK_A A tokens of one item per program.

    high, low, scale from `split_rows_kernel`; writes best [items, |A|] float32 and best_b [items, |A|] int32.
    """
    item, first_a = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK_A
    start_a, n_a, start_b, n_b, _ = sets(n_tokens, n_cls, 0)
    tokens = n_tokens // FACTOR
    a, channel = first_a + tl.arange(0, BLOCK_A), tl.arange(0, BLOCK_C)
    clip_a, inside_a = locate(item, start_a + 2 * a, n_tokens, n_cls, FACTOR)
    row_of_a = clip_a * tokens + inside_a
    scale_a = tl.load(scale + row_of_a, a < n_a, other=0.0)
    top = tl.full([BLOCK_A], float("-inf"), tl.float32)
    top_b = tl.zeros([BLOCK_A], tl.int32)
    for first_b in range(0, n_b, BLOCK_B):
        b = first_b + tl.arange(0, BLOCK_B)
        clip_b, inside_b = locate(item, start_b + 2 * b, n_tokens, n_cls, FACTOR)
        row_of_b = clip_b * tokens + inside_b
        exact = tl.zeros([BLOCK_A, BLOCK_B], tl.float32)
        rest = tl.zeros([BLOCK_A, BLOCK_B], tl.float32)
        for first in range(0, WIDTH, BLOCK_C):
            at_a = (row_of_a * WIDTH)[:, None] + (first + channel)[None, :]
            at_b = (row_of_b * WIDTH)[:, None] + (first + channel)[None, :]
            mask_a = (a < n_a)[:, None] & (first + channel < WIDTH)[None, :]
            mask_b = (b < n_b)[:, None] & (first + channel < WIDTH)[None, :]
            high_a, low_a = tl.load(high + at_a, mask_a, other=0.0), tl.load(low + at_a, mask_a, other=0.0)
            high_b, low_b = tl.load(high + at_b, mask_b, other=0.0), tl.load(low + at_b, mask_b, other=0.0)
            exact, rest = _add_products(exact, rest, high_a, low_a, high_b, low_b)
        scale_b = tl.load(scale + row_of_b, b < n_b, other=0.0)
        top, top_b = _take_best(top, top_b, exact, rest, scale_a, scale_b, b, n_b)
    tl.store(best + item * n_a + a, top, a < n_a)
    tl.store(best_b + item * n_a + a, top_b, a < n_a)


@triton.jit
def select_rows_kernel(best, best_b, n_tokens, n_cls, r, assign, BLOCK: tl.constexpr):
    """Rank the A tokens of one item per program, and write assign [items, n_tokens].

    best, best_b from `score_rows_kernel`.
    """
    item = tl.program_id(0).to(tl.int64)
    start_a, n_a, _, _, row_b = sets(n_tokens, n_cls, r)
    best, best_b, assign = best + item * n_a, best_b + item * n_a, assign + item * n_tokens
    n_kept = 0
    for first in range(0, n_a, BLOCK):
        a = first + tl.arange(0, BLOCK)
        mine = tl.load(best + a, a < n_a, other=float("-inf"))
        rank = tl.zeros([BLOCK], tl.int32)
        for first_other in range(0, n_a, BLOCK):
            j = first_other + tl.arange(0, BLOCK)
            other = tl.load(best + j, j < n_a, other=float("-inf"))
            rank += tl.sum(_comes_before(other, j, mine, a, n_a), axis=1)
        kept = ((rank >= r) & (a < n_a)).to(tl.int32)
        kept_before = n_kept + tl.cumsum(kept, axis=0) - kept
        partner = tl.load(best_b + a, a < n_a, other=0)
        row = tl.where(kept == 1, n_cls + kept_before, row_b + partner)
        tl.store(assign + start_a + 2 * a, row, a < n_a)
        n_kept += tl.sum(kept, axis=0)
    _store_fixed(assign, n_tokens, n_cls, r, BLOCK)
