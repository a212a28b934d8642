"""Matching and merging as comparisons and matrix products.

No sort, scatter, gather or data-dependent shape: a fixed sequence of standard tensor operations whose sizes
are constant apart from the batch. It is what a CPU runs and what the exported graph contains.

Sets A and B are strided slices, so only A tokens need a product: |out| x |A| instead of |out| x N. On two
CPU cores under ONNX Runtime this beat the full merge matrix at every size, and a row gather up to about
1000 tokens.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from tempme_export.kernels import SNAP_STEPS

_HIGH_STEPS = 2**11


def _start_a(n_cls: int) -> int:
    """First even position behind the class tokens."""
    return n_cls + n_cls % 2


def _start_b(n_cls: int) -> int:
    """First odd position behind the class tokens."""
    return n_cls + 1 - n_cls % 2


def _widen(x: Tensor) -> Tensor:
    """At least float32: size * x passes 65504, and bfloat16 miscounts above 256."""
    return x if x.dtype == torch.float64 else x.float()


def _cosine(metric: Tensor, n_cls: int) -> Tensor:
    """Cosine of every A token with every B token, [B, |A|, |B|]; 0 for a zero-norm token.

    Equal tokens must come out within half a snapping step of 1, which one float32 product misses where a few
    channels outweigh the rest, as in trained CLIPs. So rows are split: `high` holds 11 fractional bits, and
    sums of products of those are exact in any order; the remainder `low` weighs 2^-12 at most.
    """
    wide = _widen(metric)
    norm = torch.sqrt((wide * wide).sum(dim=-1, keepdim=True))
    unit = wide / torch.where(norm == 0, 1.0, norm)
    high = torch.round(unit * _HIGH_STEPS) / _HIGH_STEPS
    low = unit - high
    square = (high * high).sum(dim=-1) + (low * (high + unit)).sum(dim=-1)  # 1 but for the norm's rounding
    inverse = torch.rsqrt(torch.where(square == 0, 1.0, square))
    a, b = slice(_start_a(n_cls), None, 2), slice(_start_b(n_cls), None, 2)
    exact = high[:, a] @ high[:, b].transpose(1, 2)
    rest_a, rest_b = torch.cat([low[:, a], unit[:, a]], dim=-1), torch.cat([high[:, b], low[:, b]], dim=-1)
    return (exact + rest_a @ rest_b.transpose(1, 2)) * inverse[:, a].unsqueeze(2) * inverse[:, b].unsqueeze(1)


def _rank(score: Tensor) -> Tensor:
    """Place of each score [B, N] in descending stable order, by counting the ones before it."""
    n = score.shape[1]
    lower = torch.ones(n, n, dtype=torch.bool, device=score.device).tril(-1)  # [i, j]: j before i
    mine, other = score.unsqueeze(2), score.unsqueeze(1)
    return ((other > mine) | ((other == mine) & lower)).float().sum(dim=-1)


def _place_a(assign_a: Tensor, n_tokens: int, n_cls: int) -> Tensor:
    """Spread [B, |A|] over [B, N]: zero at class tokens and B."""
    a_first = n_cls % 2 == 0
    pairs = F.pad(assign_a.unsqueeze(-1), (0, 1) if a_first else (1, 0)).flatten(1)
    return F.pad(pairs, (n_cls, max(0, n_tokens - n_cls - pairs.shape[1])))[:, :n_tokens]


def match_tokens(metric: Tensor, n_cls: int, r: int) -> Tensor:
    """Say where every token goes; the contract is that of `kernels.reference.match_tokens_ref`.

    metric  [B, N, C] float16, bfloat16, float32 or float64; scores are compared in float32
    n_cls   leading tokens that never merge
    r       A tokens to merge, 1 <= r <= |A|
    Returns assign [B, N] int32 onto N - r rows.
    """
    n_tokens, device = metric.shape[1], metric.device
    scores = torch.round(_cosine(metric, n_cls).float() * SNAP_STEPS)
    n_a, n_b = scores.shape[1:]
    scores = torch.where(scores.isnan(), -torch.inf, scores)
    best_b = scores.argmax(dim=-1)
    kept = _rank(scores.amax(dim=-1)) >= r

    before = torch.ones(n_a, n_a, device=device).triu(1)  # [i, j]: i before j
    kept_before = (kept.float().unsqueeze(1) @ before).squeeze(1).int()
    first_b = n_tokens - r - n_b
    assign_a = torch.where(kept, n_cls + kept_before, first_b + best_b.int())

    position = torch.arange(n_tokens, dtype=torch.int32, device=device)
    of_b = first_b + (position - _start_b(n_cls)) // 2
    fixed = torch.where(position < n_cls, position, torch.where(position % 2 == 1, of_b, 0))
    return _place_a(assign_a, n_tokens, n_cls) + fixed


def merge_tokens(x: Tensor, size: Tensor | None, assign: Tensor, n_cls: int, r: int) -> tuple[Tensor, Tensor]:
    """Average the tokens that share an output row, weighted by their size.

    x       [B, N, D] float16, bfloat16, float32 or float64; sums in float32 or wider
    size    [B, N] float32 or wider: how many original tokens each stands for; None: all 1
    assign  [B, N] int32 onto N - r rows, from a match with the same n_cls and r
    Returns ([B, N - r, D] in x's dtype, [B, N - r] sizes). Tokens that nothing joined are bit-exact
    copies, as long as the clip is finite: NaN or infinity in one of its A tokens spreads through the products.
    """
    wide = _widen(x)
    a, b = slice(_start_a(n_cls), None, 2), slice(_start_b(n_cls), None, 2)
    x_a, x_b, row_a = wide[:, a], wide[:, b], assign[:, a]
    n_out = x.shape[1] - r
    first_b = n_out - x_b.shape[1]
    rows = torch.arange(n_out, dtype=torch.int32, device=x.device).unsqueeze(-1)
    keep = (row_a.unsqueeze(1) == rows[n_cls:first_b]).to(wide.dtype)  # [B, kept, |A|]
    join = (row_a.unsqueeze(1) == rows[first_b:]).to(wide.dtype)  # [B, |B|, |A|]

    if size is None:
        size_b = join.sum(dim=-1) + 1
        share_a, share_b = join, 1 / size_b
        size_out = F.pad(size_b, (first_b, 0)) + (rows.squeeze(-1) < first_b).to(wide.dtype)
    else:
        size_a = size[:, a].unsqueeze(-1).to(wide.dtype)
        size_b = size[:, b] + (join @ size_a).squeeze(-1)
        share_a, share_b = join * size_a.transpose(1, 2), size[:, b] / size_b
        size_out = torch.cat([size[:, :n_cls], (keep @ size_a).squeeze(-1), size_b], dim=1)
    merged_b = x_b * share_b.unsqueeze(-1) + (share_a / size_b.unsqueeze(-1)) @ x_a
    out = torch.cat([wide[:, :n_cls], keep @ x_a, merged_b], dim=1)
    return out.to(x.dtype), size_out
