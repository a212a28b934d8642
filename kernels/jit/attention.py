"""Attention on packed qkv with a bias per key, the log of its size: softmax(q k^T + bias) v, online in float32."""

import triton
import triton.language as tl

from tempme_export.kernels.jit.common import operand, rounded
from tempme_export.kernels.jit.match import match_item

_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _attend(
    qkv,
    bias,
    item,
    head,
    first_query,
    n_tokens,
    n_heads,
    stride_item,
    stride_token,
    stride_channel,
    out,
    HEAD_WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """BLOCK_M queries of one head of one item; the query scale is in the weights already."""
    width = n_heads * HEAD_WIDTH
    channel, query = tl.arange(0, BLOCK_D), first_query + tl.arange(0, BLOCK_M)
    inside = channel < HEAD_WIDTH
    base = qkv + item * stride_item + head * HEAD_WIDTH * stride_channel
    columns = (channel * stride_channel)[None, :]
    asked = (query < n_tokens)[:, None] & inside[None, :]
    q = operand(tl.load(base + (query * stride_token)[:, None] + columns, asked, other=0.0))

    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    value = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for first in range(0, n_tokens, BLOCK_N):
        key = first + tl.arange(0, BLOCK_N)
        mask = (key < n_tokens)[:, None] & inside[None, :]
        rows = base + (key * stride_token)[:, None] + columns
        k = operand(tl.load(rows + width * stride_channel, mask, other=0.0))
        v = operand(tl.load(rows + 2 * width * stride_channel, mask, other=0.0))
        logit = tl.dot(q, tl.trans(k), input_precision="ieee") * _LOG2_E
        if bias is not None:
            of_key = tl.load(bias + item * n_tokens + key, key < n_tokens, other=0.0)
            logit += (of_key * _LOG2_E)[None, :]
        logit = tl.where((key < n_tokens)[None, :], logit, float("-inf"))
        new_top = tl.maximum(top, tl.max(logit, axis=1))
        weight = tl.exp2(logit - new_top[:, None])
        fade = tl.exp2(top - new_top)
        total = total * fade + tl.sum(weight, axis=1)
        weight = operand(rounded(weight, qkv.dtype.element_ty))
        value = value * fade[:, None] + tl.dot(weight, v, input_precision="ieee")
        top = new_top

    value = value / total[:, None]
    at = (item * n_tokens + query)[:, None] * width + head * HEAD_WIDTH + channel[None, :]
    tl.store(out + at, rounded(value, out.dtype.element_ty), asked)


@triton.jit
def attention_kernel(
    qkv,
    bias,
    n_tokens,
    n_heads,
    stride_item,
    stride_token,
    stride_channel,
    out,
    HEAD_WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """BLOCK_M queries of one head of one item per program.

    qkv [items, n_tokens, 3 * n_heads * HEAD_WIDTH], bias [items, n_tokens] float32 or None;
    writes out [items, n_tokens, n_heads * HEAD_WIDTH].
    """
    item, head = (tl.program_id(0) // n_heads).to(tl.int64), tl.program_id(0) % n_heads
    _attend(
        qkv, bias, item, head, tl.program_id(1) * BLOCK_M, n_tokens, n_heads, stride_item, stride_token,
        stride_channel, out, HEAD_WIDTH, BLOCK_M, BLOCK_N, BLOCK_D,
    )  # fmt: skip


@triton.jit
def attention_match_kernel(
    qkv,
    bias,
    n_tokens,
    n_cls,
    r,
    stride_item,
    stride_token,
    stride_channel,
    out,
    assign,
    HEADS: tl.constexpr,
    HEAD_WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_A: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """Programs of `attention_kernel` and, first of each item's, one of `match_keys_kernel`.

    Matching alone waits for memory most of its time; beside the item's attention its keys are in the cache and
    its time is hidden. Arguments as there; |A| <= BLOCK_A.
    """
    tiles = tl.cdiv(n_tokens, BLOCK_M)
    item, slot = (tl.program_id(0) // (HEADS * tiles + 1)).to(tl.int64), tl.program_id(0) % (HEADS * tiles + 1)
    if slot == 0:
        keys = qkv + HEADS * HEAD_WIDTH * stride_channel
        match_item(
            keys, item, n_tokens, n_cls, r, stride_item, HEAD_WIDTH * stride_channel, stride_token, stride_channel,
            assign, HEADS, HEAD_WIDTH, BLOCK_A, BLOCK_B, BLOCK_D,
        )  # fmt: skip
    else:
        head, tile = (slot - 1) % HEADS, (slot - 1) // HEADS
        _attend(
            qkv, bias, item, head, tile * BLOCK_M, n_tokens, HEADS, stride_item, stride_token, stride_channel, out,
            HEAD_WIDTH, BLOCK_M, BLOCK_N, BLOCK_D,
        )  # fmt: skip
