"""Launchers of the merge, with its optional fusions, and of add + LayerNorm."""

import torch
from torch import Tensor

from tempme_export.kernels.dense_block import EPS
from tempme_export.kernels.launch import (
    RowsConfig,
    check_counts,
    check_rows,
    check_tensor,
    launch,
    power_of_two,
    tiles,
)


def _check_norm(norm: tuple[Tensor, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    weight, bias = (
        check_tensor(name, p, x.shape[2:], None, x) for name, p in zip(("weight", "bias"), norm, strict=True)
    )
    return weight.contiguous(), bias.contiguous()


def _merge(
    x: Tensor,
    delta: Tensor | None,
    size: Tensor | None,
    assign: Tensor,
    position: Tensor | None,
    norm: tuple[Tensor, Tensor] | None,
    factor: int,
    n_cls: int,
    r: int,
    config: RowsConfig | None,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    from tempme_export.kernels.jit.merge import merge_kernel

    check_rows("x", x)
    if delta is not None:
        check_rows("delta", delta, like=x)
    clips, tokens, width = x.shape
    if factor < 1 or clips % factor or n_cls % factor:
        raise ValueError(f"{clips} clips with {n_cls} class tokens when joined: not multiples of {factor}.")
    items, n_tokens = clips // factor, tokens * factor
    n_a = check_counts(n_tokens, n_cls, r)
    assign = check_tensor("assign", assign, (items, n_tokens), torch.int32, x).contiguous()
    if size is not None:
        check_tensor("size", size, (clips, tokens), torch.float32, x)
    n_positions = 1
    if position is not None:
        n_positions = position.shape[0] if position.ndim else 0
        position = check_tensor("position", position, (n_positions, width), None, x).contiguous()
        if n_positions < 1 or clips % n_positions:
            raise ValueError(f"position has {n_positions} rows for {clips} clips: expected a divisor.")
    weight = bias = normed = log_size = None
    n_out = n_tokens - r
    if norm is not None:
        weight, bias = _check_norm(norm, x)
        normed = torch.empty(items, n_out, width, dtype=x.dtype, device=x.device)
        log_size = torch.empty(items, n_out, dtype=torch.float32, device=x.device)
    out = torch.empty(items, n_out, width, dtype=x.dtype, device=x.device)
    size_out = torch.empty(items, n_out, dtype=torch.float32, device=x.device)

    config = config or tiles().rows(width, n_a)
    launch(
        merge_kernel,
        (items, -(-n_out // config.block_rows)),
        x.device,
        *(x, delta, size, assign, position, weight, bias),
        *(n_tokens, n_cls, r, n_positions, *x.stride()),
        *((0, 0, 0) if delta is None else delta.stride()),
        *((0, 0) if size is None else size.stride()),
        *(out, normed, size_out, log_size),
        WIDTH=width,
        FACTOR=factor,
        EPS=EPS,
        BLOCK_ROWS=config.block_rows,
        BLOCK_A=config.block_a,
        BLOCK_D=power_of_two(width),
        num_warps=config.num_warps,
    )
    return out, normed, size_out, log_size


def merge_tokens(
    x: Tensor, size: Tensor | None, assign: Tensor, n_cls: int, r: int, config: RowsConfig | None = None
) -> tuple[Tensor, Tensor]:
    """Average the tokens that share an output row, weighted by their size.

    x       [B, N, D] float16, bfloat16 or float32, any strides; sums in float32
    size    [B, N] float32; None: all 1
    assign  [B, N] int32 onto N - r rows, from a match with the same n_cls and r
    Returns ([B, N - r, D] in x's dtype, [B, N - r] float32 sizes); tokens that nothing joined are bit-exact copies.
    Raises ValueError for what the kernels cannot take.
    """
    out, _, size_out, _ = _merge(x, None, size, assign, None, None, 1, n_cls, r, config)
    return out, size_out


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
    config: RowsConfig | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Residual add, clip positions, joining of clips, merge, LayerNorm and log of the sizes in one pass.

    x, delta      [B * factor, n, D], any strides; delta None: nothing to add
    size          [B * factor, n] float32; None: all 1
    assign        [B, n * factor] int32 from a match with the same factor, n_cls and r
    position      [P, D], row c % P for input clip c, added to all its tokens; None: nothing
    weight, bias  [D] of the LayerNorm
    Returns merged [B, N - r, D], its LayerNorm, sizes [B, N - r] float32 and their logarithms, N = n * factor.
    Raises ValueError for what the kernels cannot take.
    """
    out, normed, size_out, log_size = _merge(x, delta, size, assign, position, (weight, bias), factor, n_cls, r, config)
    assert normed is not None and log_size is not None, "the LayerNorm was asked for"
    return out, normed, size_out, log_size


def _add_norm(
    x: Tensor, delta: Tensor | None, weight: Tensor, bias: Tensor, config: RowsConfig | None
) -> tuple[Tensor | None, Tensor]:
    from tempme_export.kernels.jit.norm import add_norm_kernel

    check_rows("x", x)
    clips, n_tokens, width = x.shape
    weight, bias = _check_norm((weight, bias), x)
    normed = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    out = None
    if delta is not None:
        check_rows("delta", delta, like=x)
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    n_rows = clips * n_tokens
    config = config or tiles().rows(width, 1)
    launch(
        add_norm_kernel,
        (-(-n_rows // config.block_rows),),
        x.device,
        *(x, delta, weight, bias, n_tokens, n_rows, *x.stride()),
        *((0, 0, 0) if delta is None else delta.stride()),
        *(out, normed),
        WIDTH=width,
        EPS=EPS,
        BLOCK_ROWS=config.block_rows,
        BLOCK_D=power_of_two(width),
        num_warps=config.num_warps,
    )
    return out, normed


def add_norm(
    x: Tensor, delta: Tensor, weight: Tensor, bias: Tensor, config: RowsConfig | None = None
) -> tuple[Tensor, Tensor]:
    """x + delta and its LayerNorm: two [B, N, D] in x's dtype. Any strides; raises ValueError as `merge_norm`."""
    out, normed = _add_norm(x, delta, weight, bias, config)
    assert out is not None, "there was something to add"
    return out, normed


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, config: RowsConfig | None = None) -> Tensor:
    """LayerNorm of [B, N, D] with float32 statistics, in x's dtype. Any strides; raises ValueError as `merge_norm`."""
    return _add_norm(x, None, weight, bias, config)[1]
