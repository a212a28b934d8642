"""Launchers of the match kernels: which tokens merge, and where every token goes."""

import torch
from torch import Tensor

from tempme_export.kernels.launch import (
    MatchConfig,
    check_counts,
    check_rows,
    launch,
    power_of_two,
    tiles,
)


def match_parts(
    metric: Tensor, delta: Tensor | None, factor: int, n_cls: int, r: int, config: MatchConfig | None
) -> Tensor:
    """metric [clips, parts, tokens, C], delta [clips, tokens, C] or None -> assign [clips / factor, N] int32."""
    clips, _, tokens, width = metric.shape
    n_tokens = tokens * factor
    n_a = check_counts(n_tokens, n_cls, r)
    plain = delta is None and factor == 1
    config = config or tiles().match(n_a, width, clips // factor, plain)
    if not config.resident:
        high, low, scale = split_rows(metric, delta)
        best, best_b = score_rows(high, low, scale, factor, n_cls, config)
        return select_rows(best, best_b, n_tokens, n_cls, r, config)
    if not plain or width > config.block_c or n_a > config.block_a:
        raise ValueError(
            f"{config} takes one tensor, unjoined, of at most block_c channels and block_a A tokens; "
            f"found width {width}, |A| = {n_a}, factor {factor}. Set resident=False."
        )
    return _match_resident(metric, n_cls, r, config)


def _match_resident(metric: Tensor, n_cls: int, r: int, config: MatchConfig) -> Tensor:
    from tempme_export.kernels.jit.match import match_keys_kernel

    items, n_parts, n_tokens, width = metric.shape
    assign = torch.empty(items, n_tokens, dtype=torch.int32, device=metric.device)
    launch(
        match_keys_kernel,
        (items,),
        metric.device,
        *(metric, n_tokens, n_cls, r, *metric.stride(), assign),
        PARTS=n_parts,
        WIDTH=width,
        BLOCK_A=config.block_a,
        BLOCK_B=config.block_b,
        BLOCK_C=config.block_c,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    return assign


def split_rows(metric: Tensor, delta: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """metric [clips, parts, tokens, C], delta [clips, tokens, C] or None -> unit rows of their sum.

    Returns high and low [clips, tokens, C] float16 and scale [clips, tokens] float32: a row is
    (high + low / 2^12) * scale.
    """
    from tempme_export.kernels.jit.match import split_rows_kernel

    clips, n_parts, tokens, width = metric.shape
    n_rows = clips * tokens
    high, low = (torch.empty(clips, tokens, width, dtype=torch.float16, device=metric.device) for _ in range(2))
    scale = torch.empty(clips, tokens, dtype=torch.float32, device=metric.device)
    rows = tiles().rows(width, 1)
    launch(
        split_rows_kernel,
        (-(-n_rows // rows.block_rows),),
        metric.device,
        *(metric, delta, tokens, n_rows, *metric.stride()),
        *((0, 0, 0) if delta is None else delta.stride()),
        *(high, low, scale),
        PARTS=n_parts,
        WIDTH=width,
        BLOCK_ROWS=rows.block_rows,
        BLOCK_D=power_of_two(width),
        num_warps=rows.num_warps,
    )
    return high, low, scale


def score_rows(
    high: Tensor, low: Tensor, scale: Tensor, factor: int, n_cls: int, config: MatchConfig
) -> tuple[Tensor, Tensor]:
    """Rows as `split_rows` returns them, of clips of which `factor` are joined -> the best partner of each A token.

    Returns its snapped score [clips / factor, |A|] float32 and its place in B, int32.
    """
    from tempme_export.kernels.jit.match import score_rows_kernel

    clips, tokens, width = high.shape
    items, n_tokens = clips // factor, tokens * factor
    n_a = check_counts(n_tokens, n_cls, 1)
    best = torch.empty(items, n_a, dtype=torch.float32, device=high.device)
    best_b = torch.empty(items, n_a, dtype=torch.int32, device=high.device)
    launch(
        score_rows_kernel,
        (items, -(-n_a // config.block_a)),
        high.device,
        *(high, low, scale, n_tokens, n_cls, best, best_b),
        WIDTH=width,
        FACTOR=factor,
        BLOCK_A=config.block_a,
        BLOCK_B=config.block_b,
        BLOCK_C=config.block_c,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    return best, best_b


def select_rows(best: Tensor, best_b: Tensor, n_tokens: int, n_cls: int, r: int, config: MatchConfig) -> Tensor:
    """Scores and partners [items, |A|] as `score_rows` returns them -> assign [items, n_tokens] int32."""
    from tempme_export.kernels.jit.match import select_rows_kernel

    items, _ = best.shape
    assign = torch.empty(items, n_tokens, dtype=torch.int32, device=best.device)
    launch(
        select_rows_kernel,
        (items,),
        best.device,
        *(best, best_b, n_tokens, n_cls, r, assign),
        BLOCK=config.block_b,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    return assign


def match_tokens(metric: Tensor, n_cls: int, r: int, config: MatchConfig | None = None) -> Tensor:
    """Say where every token goes; the contract is that of `kernels.reference.match_tokens_ref`.

    metric  [B, N, C] float16, bfloat16 or float32, any strides
    Returns assign [B, N] int32 onto N - r rows. Raises ValueError for what the kernels cannot take.
    """
    check_rows("metric", metric)
    return match_parts(metric.unsqueeze(1), None, 1, n_cls, r, config)


def match_keys(qkv: Tensor, heads: int, n_cls: int, r: int, config: MatchConfig | None = None) -> Tensor:
    """Match by the mean over heads of the keys (spec section 3, rule 3), read in place.

    qkv     [B, N, 3 * D] float16, bfloat16 or float32: queries, keys and values, head by head
    Returns assign [B, N] int32 onto N - r rows. Raises ValueError for what the kernels cannot take.
    """
    check_rows("qkv", qkv)
    if heads < 1 or qkv.shape[2] % (3 * heads):
        raise ValueError(f"qkv of width {qkv.shape[2]} does not hold queries, keys and values of {heads} heads.")
    keys = qkv.unflatten(-1, (3, heads, -1))[:, :, 1].transpose(1, 2)
    return match_parts(keys, None, 1, n_cls, r, config)


def match_clips(
    x: Tensor, delta: Tensor | None, factor: int, n_cls: int, r: int, config: MatchConfig | None = None
) -> Tensor:
    """Match the tokens of `factor` adjacent clips, joined, by x + delta (spec section 3, rule 1).

    x, delta  [B * factor, n, D] float16, bfloat16 or float32, any strides; delta None: nothing to add
    n_cls     class tokens of a joined clip
    Returns assign [B, n * factor] int32. Raises ValueError for what the kernels cannot take.
    """
    check_rows("x", x)
    if delta is not None:
        check_rows("delta", delta, like=x)
    if factor < 1 or x.shape[0] % factor or n_cls % factor:
        raise ValueError(f"{x.shape[0]} clips with {n_cls} class tokens when joined: not multiples of {factor}.")
    return match_parts(x.unsqueeze(1), delta, factor, n_cls, r, config)
