"""The fused steps of a block as compositions of standard tensor operations: what a CPU runs and a graph contains."""

import torch
import torch.nn.functional as F
from torch import Tensor

from tempme_export.kernels.dense import match_tokens, merge_tokens

EPS = 1e-5  # of every LayerNorm in CLIP


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def join_clips(x: Tensor, factor: int, n_cls: int) -> Tensor:
    """[B * factor, n, ...] -> [B, factor * n, ...], the n_cls class tokens first (spec section 3, rule 1)."""
    if factor == 1:
        return x
    rest, cls = x.shape[2:], n_cls // factor
    clips = x.reshape(-1, factor, x.shape[1], *rest)
    joined = [clips[:, :, :cls].reshape(-1, n_cls, *rest)]
    joined.append(clips[:, :, cls:].reshape(-1, factor * (x.shape[1] - cls), *rest))
    return torch.cat(joined, dim=1)


def match_keys(qkv: Tensor, heads: int, n_cls: int, r: int) -> Tensor:
    """As `kernels.match.match_keys`, of any floating dtype."""
    keys = qkv.unflatten(-1, (3, heads, -1))[:, :, 1]
    return match_tokens(keys.mean(dim=2, dtype=_wide(qkv.dtype)), n_cls, r)


def match_clips(x: Tensor, delta: Tensor | None, factor: int, n_cls: int, r: int) -> Tensor:
    """As `kernels.match.match_clips`, of any floating dtype."""
    return match_tokens(join_clips(x if delta is None else x + delta, factor, n_cls), n_cls, r)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """LayerNorm of [..., D] with statistics in the dtype of its parameters, float32 or wider, in x's dtype."""
    return F.layer_norm(x.to(weight.dtype), weight.shape, weight, bias, EPS).to(x.dtype)


def add_norm(x: Tensor, delta: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """As `kernels.merge.add_norm`, of any floating dtype."""
    x = x + delta
    return x, layer_norm(x, weight, bias)


def merge_norm(
    x: Tensor,
    delta: Tensor | None,
    size: Tensor | None,
    assign: Tensor,
    position: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    factor: int,
    n_cls: int,
    r: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `kernels.merge.merge_norm`, of any floating dtype."""
    if delta is not None:
        x = x + delta
    if position is not None:
        x = (x.reshape(-1, len(position), *x.shape[1:]) + position.unsqueeze(1)).flatten(0, 1)
    size = None if size is None else join_clips(size, factor, n_cls)
    x, size = merge_tokens(join_clips(x, factor, n_cls), size, assign, n_cls, r)
    return x, layer_norm(x, weight, bias), size, size.log()


def attention(qkv: Tensor, bias: Tensor | None, heads: int) -> Tensor:
    """As `kernels.attention.attention`, of any floating dtype: MatMul, Add, Softmax, MatMul, which compilers fuse."""
    n, width = qkv.shape[1], qkv.shape[2] // 3
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    logits = (q @ k.transpose(-1, -2)).to(_wide(qkv.dtype))
    if bias is not None:
        logits = logits + bias[:, None, None, :]
    out = logits.softmax(dim=-1).to(qkv.dtype) @ v
    return out.transpose(1, 2).reshape(-1, n, width)


def attention_match(qkv: Tensor, bias: Tensor | None, heads: int, n_cls: int, r: int) -> tuple[Tensor, Tensor]:
    """As `kernels.attention.attention_match`, of any floating dtype."""
    return attention(qkv, bias, heads), match_keys(qkv, heads, n_cls, r)
