"""The only door from model to kernels: torch.library operators `tempme::match_tokens` and `tempme::merge_tokens`.

Inference only: no gradient is registered, so backward through them raises.
"""

import torch
from torch import Tensor

from tempme_export.kernels import dense
from tempme_export.schedule import count_a


def _check_merge_count(n_tokens: int, n_cls: int, r: int) -> None:
    available = count_a(n_tokens, n_cls)
    if not 1 <= r <= available or n_tokens - n_cls - available < 1:
        raise ValueError(
            f"r = {r} of {n_tokens} tokens with {n_cls} class tokens: expected 1 <= r <= |A| = {available} "
            f"and |B| >= 1. Skip the merge when there is nothing to merge."
        )


@torch.library.custom_op("tempme::match_tokens", mutates_args=())
def match_tokens(metric: Tensor, n_cls: int, r: int) -> Tensor:
    """Choose the r tokens of set A nearest to some token of set B (spec section 4).

    metric  [B, N, C] float16, bfloat16, float32 or float64; scores are compared in float32
    n_cls   leading tokens that never merge
    r       tokens to merge, 1 <= r <= |A|
    Returns assign [B, N] int32: the output row of every token, out of N - r.
    Raises ValueError for shapes or an r that cannot be.
    """
    if metric.ndim != 3 or not metric.is_floating_point():
        raise ValueError(f"metric must be floating [B, N, C], found {metric.dtype} {tuple(metric.shape)}.")
    _check_merge_count(metric.shape[1], n_cls, r)
    return dense.match_tokens(metric, n_cls, r)


@match_tokens.register_fake
def _(metric: Tensor, n_cls: int, r: int) -> Tensor:
    _check_merge_count(metric.shape[1], n_cls, r)
    return metric.new_empty(metric.shape[:2], dtype=torch.int32)


@torch.library.custom_op("tempme::merge_tokens", mutates_args=())
def merge_tokens(x: Tensor, size: Tensor | None, assign: Tensor, n_cls: int, r: int) -> tuple[Tensor, Tensor]:
    """Average the tokens that share an output row, weighted by size (spec section 4).

    x       [B, N, D] float16, bfloat16, float32 or float64; sums in float32 or wider
    size    [B, N] float32 (float64 with a float64 x); None: every token stands for itself
    assign  [B, N] int32 from `match_tokens` with the same n_cls and r
    Returns ([B, N - r, D] in x's dtype, [B, N - r] sizes).
    Raises ValueError for shapes that do not belong together.
    """
    if x.ndim != 3 or not x.is_floating_point():
        raise ValueError(f"x must be floating [B, N, D], found {x.dtype} {tuple(x.shape)}.")
    for name, tensor in (("size", size), ("assign", assign)):
        if tensor is not None and tensor.shape != x.shape[:2]:
            raise ValueError(f"{name} must be {tuple(x.shape[:2])} like x, found {tuple(tensor.shape)}.")
    if assign.dtype != torch.int32:
        raise ValueError(f"assign must be int32 as match_tokens returns it, found {assign.dtype}.")
    _check_merge_count(x.shape[1], n_cls, r)
    return dense.merge_tokens(x, size, assign, n_cls, r)


@merge_tokens.register_fake
def _(x: Tensor, size: Tensor | None, assign: Tensor, n_cls: int, r: int) -> tuple[Tensor, Tensor]:
    rows, tokens, width = x.shape
    _check_merge_count(tokens, n_cls, r)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.new_empty(rows, tokens - r, width), x.new_empty(rows, tokens - r, dtype=wide)
