"""Merging: every output row gathers its own token and those that joined it. No atomics, sums in float32.

Weights are size / total, so a token that nothing joined has weight 1 exactly and is copied bit for bit.
"""

import triton
import triton.language as tl

from tempme_export.kernels.jit.common import locate, rounded, sets

_NONE = tl.constexpr(2**31 - 1)


@triton.jit
def _load_size(size, item, token, mask, n_tokens, n_cls, size_clip, size_token, FACTOR: tl.constexpr):
    if size is None:
        return tl.where(mask, 1.0, 0.0)
    else:
        clip, inside = locate(item, token, n_tokens, n_cls, FACTOR)
        return tl.load(size + clip * size_clip + inside * size_token, mask, other=0.0)


@triton.jit
def _load_tokens(
    x,
    delta,
    position,
    item,
    token,
    mask,
    n_tokens,
    n_cls,
    n_positions,
    stride_clip,
    stride_token,
    stride_channel,
    delta_clip,
    delta_token,
    delta_channel,
    WIDTH: tl.constexpr,
    FACTOR: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Tokens [T, BLOCK_D] of a joined clip in float32: x, plus `delta` and the clip position if given."""
    channel = tl.arange(0, BLOCK_D)
    mask = mask[:, None] & (channel < WIDTH)[None, :]
    clip, inside = locate(item, token, n_tokens, n_cls, FACTOR)
    at = (clip * stride_clip + inside * stride_token)[:, None] + (channel * stride_channel)[None, :]
    value = tl.load(x + at, mask, other=0.0).to(tl.float32)
    if delta is not None:
        at = (clip * delta_clip + inside * delta_token)[:, None] + (channel * delta_channel)[None, :]
        value += tl.load(delta + at, mask, other=0.0).to(tl.float32)
    if position is not None:
        at = ((clip % n_positions) * WIDTH)[:, None] + channel[None, :]
        value += tl.load(position + at, mask, other=0.0).to(tl.float32)
    return value


@triton.jit
def store_normed(value, weight, bias, normed, at, mask, EPS: tl.constexpr, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr):
    """LayerNorm of rows [T, BLOCK_D] in float32, zero beyond WIDTH, stored at `normed + at`."""
    channel = tl.arange(0, BLOCK_D)
    inside = channel < WIDTH
    mean = tl.sum(value, axis=1) / WIDTH
    centred = tl.where(inside[None, :], value - mean[:, None], 0.0)
    deviation = tl.sqrt_rn(tl.sum(centred * centred, axis=1) / WIDTH + EPS)
    scale = tl.load(weight + channel, inside, other=0.0).to(tl.float32)[None, :]
    shift = tl.load(bias + channel, inside, other=0.0).to(tl.float32)[None, :]
    value = centred * tl.math.div_rn(1.0, deviation)[:, None] * scale + shift
    tl.store(normed + at, rounded(value, normed.dtype.element_ty), mask)


@triton.jit
def merge_kernel(
    x,
    delta,
    size,
    assign,
    position,
    weight,
    bias,
    n_tokens,
    n_cls,
    r,
    n_positions,
    stride_clip,
    stride_token,
    stride_channel,
    delta_clip,
    delta_token,
    delta_channel,
    size_clip,
    size_token,
    out,
    normed,
    size_out,
    log_size,
    WIDTH: tl.constexpr,
    FACTOR: tl.constexpr,
    EPS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_A: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Merge BLOCK_ROWS output rows of one item per program.

    x, delta [clips, tokens, WIDTH], size [clips, tokens], assign [items, n_tokens], position [n_positions, WIDTH],
    weight, bias [WIDTH]; writes out, normed [items, n_tokens - r, WIDTH] and size_out, log_size [items, n_tokens - r].
    None leaves a step out: delta, size (all 1), position, the LayerNorm (weight, bias, normed), log_size.
    """
    item = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    start_a, n_a, start_b, _, row_b = sets(n_tokens, n_cls, r)
    n_out = n_tokens - r
    assign += item * n_tokens

    is_kept = (row >= n_cls) & (row < row_b)
    source = tl.where(row < n_cls, row, start_b + 2 * (row - row_b))
    total = _load_size(size, item, source, (row < n_out) & ~is_kept, n_tokens, n_cls, size_clip, size_token, FACTOR)
    source = tl.where(is_kept, -1, source)
    for first in range(0, n_a, BLOCK_A):
        a = first + tl.arange(0, BLOCK_A)
        token = start_a + 2 * a
        goes = tl.load(assign + token, a < n_a, other=-1)[None, :] == row[:, None]
        sizes = _load_size(size, item, token, a < n_a, n_tokens, n_cls, size_clip, size_token, FACTOR)
        total += tl.sum(tl.where(goes, sizes[None, :], 0.0), axis=1)
        found = tl.max(tl.where(goes & is_kept[:, None], token[None, :], -1), axis=1)
        source = tl.maximum(source, found)

    valid = (row < n_out) & (source >= 0)
    total = tl.where(valid, total, 1.0)
    share = tl.math.div_rn(_load_size(size, item, source, valid, n_tokens, n_cls, size_clip, size_token, FACTOR), total)
    value = share[:, None] * _load_tokens(
        x, delta, position, item, source, valid, n_tokens, n_cls, n_positions, stride_clip, stride_token,
        stride_channel, delta_clip, delta_token, delta_channel, WIDTH, FACTOR, BLOCK_D,
    )  # fmt: skip
    for first in range(0, n_a, BLOCK_A):
        a = first + tl.arange(0, BLOCK_A)
        token = start_a + 2 * a
        goes = tl.load(assign + token, a < n_a, other=-1)[None, :] == row[:, None]
        joins = goes & ~is_kept[:, None]
        last = tl.full([BLOCK_ROWS], -1, tl.int32)
        for _ in range(tl.max(tl.sum(joins.to(tl.int32), axis=1), axis=0)):
            waiting = joins & (token[None, :] > last[:, None])
            last = tl.min(tl.where(waiting, token[None, :], _NONE), axis=1)
            valid = last < _NONE
            share = tl.math.div_rn(
                _load_size(size, item, last, valid, n_tokens, n_cls, size_clip, size_token, FACTOR), total
            )
            joined = _load_tokens(
                x, delta, position, item, last, valid, n_tokens, n_cls, n_positions, stride_clip, stride_token,
                stride_channel, delta_clip, delta_token, delta_channel, WIDTH, FACTOR, BLOCK_D,
            )  # fmt: skip
            value += tl.where(valid[:, None], share[:, None] * joined, 0.0)

    channel = tl.arange(0, BLOCK_D)
    mask = (row < n_out)[:, None] & (channel < WIDTH)[None, :]
    at = (item * n_out + row)[:, None] * WIDTH + channel[None, :]
    value = rounded(value, out.dtype.element_ty)
    tl.store(out + at, value, mask)
    tl.store(size_out + item * n_out + row, total, row < n_out)
    if log_size is not None:
        tl.store(log_size + item * n_out + row, tl.log(total), row < n_out)
    if normed is not None:
        store_normed(value.to(tl.float32), weight, bias, normed, at, mask, EPS, WIDTH, BLOCK_D)
