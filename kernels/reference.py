"""The reference: matching and merging written as plainly as spec section 4 reads.

Sorts, gathers and scatters; any floating dtype. Slow and allowed to be. The canonical result of a match
is `assign` [B, N] int32: for every input token the output row it goes to.
"""

import torch
from torch import Tensor

from tempme_export.kernels import SNAP_STEPS


def split_ab(n_tokens: int, n_cls: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Absolute positions of sets A (even) and B (odd), patch tokens only: two int64 vectors."""
    patches = torch.arange(n_cls, n_tokens, device=device)
    return patches[patches % 2 == 0], patches[patches % 2 == 1]


def scores_ref(metric: Tensor, n_cls: int) -> Tensor:
    """Snapped cosine similarity of every A token with every B token.

    metric  [B, N, C], any floating dtype
    Returns [B, |A|, |B|] float32 multiples of 2^-20; 0 for a zero-norm token, -inf where NaN was met.
    """
    index_a, index_b = split_ab(metric.shape[1], n_cls, metric.device)
    wide = metric.double()  # so that equal tokens tie: float32 sums can err by half a snapping step
    norm = wide.norm(dim=-1, keepdim=True)
    unit = torch.where(norm == 0, 0.0, wide / norm)
    scores = unit[:, index_a] @ unit[:, index_b].transpose(1, 2)
    snapped = torch.round(scores.float() * SNAP_STEPS) / SNAP_STEPS
    return snapped.masked_fill(snapped.isnan(), -torch.inf)


def match_tokens_ref(metric: Tensor, n_cls: int, r: int) -> Tensor:
    """Choose the r A tokens nearest to some B token, and say where every token goes.

    metric  [B, N, C], any floating dtype
    n_cls   leading tokens that never merge
    r       A tokens to merge, at most |A|; |B| is at least 1 when r > 0
    Returns assign [B, N] int32 onto N - r rows: class tokens, kept A in rising order, then all of B.
    r = 0 is the identity.

    Among equal best scores the lower B wins; among equal A's the lower A merges first.
    """
    n_rows, n_tokens, device = metric.shape[0], metric.shape[1], metric.device
    if r == 0:
        return torch.arange(n_tokens, dtype=torch.int32, device=device).repeat(n_rows, 1)
    index_a, index_b = split_ab(n_tokens, n_cls, device)
    first_b = n_tokens - r - len(index_b)
    assign = torch.empty(n_rows, n_tokens, dtype=torch.int64, device=device)
    assign[:, :n_cls] = torch.arange(n_cls, device=device)
    assign[:, index_b] = first_b + torch.arange(len(index_b), device=device)
    best_score, best_b = scores_ref(metric, n_cls).max(dim=-1)
    order = best_score.argsort(dim=-1, descending=True, stable=True)
    merged, kept = order[:, :r], order[:, r:].sort(dim=-1).values
    assign.scatter_(1, index_a[merged], first_b + best_b.gather(1, merged))
    assign.scatter_(1, index_a[kept], (n_cls + torch.arange(kept.shape[1], device=device)).expand_as(kept))
    return assign.to(torch.int32)


def decision_gap_ref(metric: Tensor, n_cls: int, r: int) -> Tensor:
    """Smallest score difference on which the match of each item depends: [B] float32.

    How far the best score of a merged A token lies above the next different one, and how far the r-th best
    score lies from its nearest different neighbours that could change places with it. Exact ties do not
    count, the rule decides them; infinite where nothing else was to decide.
    """
    scores = scores_ref(metric, n_cls)
    best = scores.amax(dim=-1)
    ranked = best.sort(dim=-1, descending=True, stable=True)
    runner_up = scores.masked_fill(scores == best.unsqueeze(-1), -torch.inf).amax(dim=-1)
    gaps = [(best - runner_up).gather(1, ranked.indices[:, :r])]
    if r < best.shape[1]:
        last = ranked.values[:, r - 1 : r]
        tied = last == ranked.values[:, r : r + 1]
        gaps.append((last - best).masked_fill(best >= last, torch.inf))
        gaps.append((best - last).masked_fill((best <= last) | ~tied, torch.inf))
    gap = torch.cat(gaps, dim=1)
    return gap.masked_fill(~(gap > 0), torch.inf).amin(dim=1).cpu()


def merge_tokens_ref(x: Tensor, size: Tensor, assign: Tensor, n_out: int) -> tuple[Tensor, Tensor]:
    """Average the tokens that share an output row, weighted by their size.

    x       [B, N, D], any floating dtype
    size    [B, N]: how many original tokens each stands for
    assign  [B, N] int32 onto n_out rows
    Returns ([B, n_out, D] in x's dtype, [B, n_out] in size's dtype); sums in float32 or wider.
    """
    wide = x if x.dtype == torch.float64 else x.float()
    row = assign.long()
    total = torch.zeros(len(x), n_out, dtype=size.dtype, device=x.device).scatter_add_(1, row, size)
    weighted = wide * size.unsqueeze(-1)
    merged = torch.zeros(len(x), n_out, x.shape[-1], dtype=wide.dtype, device=x.device)
    merged.scatter_add_(1, row.unsqueeze(-1).expand_as(wide), weighted)
    return (merged / total.unsqueeze(-1)).to(x.dtype), total
