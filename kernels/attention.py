"""Launchers of the attention with a bias per key, alone and with the match by keys beside it."""

import torch
from torch import Tensor

from tempme_export.kernels.launch import (
    AttentionConfig,
    check_counts,
    check_rows,
    check_tensor,
    launch,
    match_overlaps_attention,
    power_of_two,
    tiles,
)
from tempme_export.kernels.match import match_keys


def _check(qkv: Tensor, bias: Tensor | None, heads: int) -> Tensor | None:
    check_rows("qkv", qkv)
    if heads < 1 or qkv.shape[2] % (3 * heads):
        raise ValueError(f"qkv of width {qkv.shape[2]} does not hold queries, keys and values of {heads} heads.")
    return None if bias is None else check_tensor("bias", bias, qkv.shape[:2], torch.float32, qkv).contiguous()


def attention(qkv: Tensor, bias: Tensor | None, heads: int, config: AttentionConfig | None = None) -> Tensor:
    """softmax(q k^T + bias of the key) v, head by head; the query scale is in the weights already.

    qkv   [B, N, 3 * D] float16, bfloat16 or float32, any strides: queries, keys and values, head by head
    bias  [B, N] float32, added to every query's and head's logit of the key; None: nothing
    Returns [B, N, D] in qkv's dtype; logits and softmax in float32. Raises ValueError for what it cannot take.
    """
    from tempme_export.kernels.jit.attention import attention_kernel

    bias = _check(qkv, bias, heads)
    items, n_tokens, width = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    out = torch.empty(items, n_tokens, width, dtype=qkv.dtype, device=qkv.device)
    config = config or tiles().attention(n_tokens, qkv.dtype)
    launch(
        attention_kernel,
        (items * heads, -(-n_tokens // config.block_m)),
        qkv.device,
        *(qkv, bias, n_tokens, heads, *qkv.stride(), out),
        HEAD_WIDTH=width // heads,
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        BLOCK_D=power_of_two(width // heads, 16),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    return out


def attention_match(
    qkv: Tensor, bias: Tensor | None, heads: int, n_cls: int, r: int, config: AttentionConfig | None = None
) -> tuple[Tensor, Tensor]:
    """`attention` and `kernels.match.match_keys` of one qkv, in one launch where the A tokens fit a tile.

    Arguments and results as there: ([B, N, D], assign [B, N] int32). Raises ValueError for what they cannot take.
    """
    from tempme_export.kernels.jit.attention import attention_match_kernel

    bias = _check(qkv, bias, heads)
    items, n_tokens, width = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    n_a = check_counts(n_tokens, n_cls, r)
    if not match_overlaps_attention(n_a, width // heads):
        return attention(qkv, bias, heads, config), match_keys(qkv, heads, n_cls, r)
    out = torch.empty(items, n_tokens, width, dtype=qkv.dtype, device=qkv.device)
    assign = torch.empty(items, n_tokens, dtype=torch.int32, device=qkv.device)
    config = config or tiles().attention(n_tokens, qkv.dtype)
    parts = -(-n_tokens // config.block_m)
    launch(
        attention_match_kernel,
        (items * (heads * parts + 1),),
        qkv.device,
        *(qkv, bias, n_tokens, n_cls, r, *qkv.stride(), out, assign),
        HEADS=heads,
        HEAD_WIDTH=width // heads,
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        BLOCK_D=power_of_two(width // heads, 16),
        BLOCK_A=power_of_two(n_a, 16),
        BLOCK_B=32,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    return out, assign
