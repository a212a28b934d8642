"""Residual add and LayerNorm in one pass: what stands where nothing merges."""

import triton
import triton.language as tl

from tempme_export.kernels.jit.common import rounded
from tempme_export.kernels.jit.merge import store_normed


@triton.jit
def add_norm_kernel(
    x,
    delta,
    weight,
    bias,
    n_tokens,
    n_rows,
    stride_clip,
    stride_token,
    stride_channel,
    delta_clip,
    delta_token,
    delta_channel,
    out,
    normed,
    WIDTH: tl.constexpr,
    EPS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """x, delta [clips, n_tokens, WIDTH]; writes out = x + delta and normed, both contiguous, n_rows rows in all.

    None leaves a step out: delta, out.
    """
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    clip, token, channel = row // n_tokens, row % n_tokens, tl.arange(0, BLOCK_D)
    mask = (row < n_rows)[:, None] & (channel < WIDTH)[None, :]
    at = (clip * stride_clip + token * stride_token)[:, None] + (channel * stride_channel)[None, :]
    value = tl.load(x + at, mask, other=0.0).to(tl.float32)
    if delta is not None:
        at = (clip * delta_clip + token * delta_token)[:, None] + (channel * delta_channel)[None, :]
        value += tl.load(delta + at, mask, other=0.0).to(tl.float32)
    at = row[:, None] * WIDTH + channel[None, :]
    value = rounded(value, normed.dtype.element_ty)
    if out is not None:
        tl.store(out + at, value, mask)
    store_normed(value.to(tl.float32), weight, bias, normed, at, mask, EPS, WIDTH, BLOCK_D)
