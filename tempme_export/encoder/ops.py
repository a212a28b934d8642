"""The only door from model to kernels: torch.library operators in the namespace `tempme`.

Triton on a GPU, where tracing compilers see the kernels themselves; the dense forms in torch elsewhere, and in
float64. Inference only: no gradient is registered, so backward through them raises.
"""

import functools
import importlib.util

import torch
from torch import Tensor

from tempme_export.kernels import attention as attention_launcher
from tempme_export.kernels import dense, dense_block, launch
from tempme_export.kernels import match as match_launcher
from tempme_export.kernels import merge as merge_launcher
from tempme_export.kernels.dense_block import join_clips as join_clips


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _by_triton(x: Tensor) -> bool:
    return x.is_cuda and x.dtype in launch.DTYPES and _has_triton()


def _check_tokens(name: str, x: Tensor) -> None:
    if x.ndim != 3 or not x.is_floating_point():
        raise ValueError(f"{name} must be floating [B, N, D], found {x.dtype} {tuple(x.shape)}.")


def _check_like(x: Tensor, **others: Tensor | None) -> None:
    for name, tensor in others.items():
        like = x.shape if name == "delta" else x.shape[:2]
        if tensor is not None and tensor.shape != like:
            raise ValueError(f"{name} must be {tuple(like)} like x, found {tuple(tensor.shape)}.")


def _check_heads(qkv: Tensor, heads: int) -> None:
    _check_tokens("qkv", qkv)
    if heads < 1 or qkv.shape[2] % (3 * heads):
        raise ValueError(f"qkv of width {qkv.shape[2]} does not hold queries, keys and values of {heads} heads.")


def _check_clips(x: Tensor, factor: int, n_cls: int, r: int) -> None:
    _check_tokens("x", x)
    if factor < 1 or n_cls % factor:
        raise ValueError(f"{n_cls} class tokens of a joined clip: not a multiple of the factor {factor}.")
    launch.check_counts(x.shape[1] * factor, n_cls, r)


def _check_assign(assign: Tensor) -> None:
    if assign.dtype != torch.int32:
        raise ValueError(f"assign must be int32 as the match operators return it, found {assign.dtype}.")


@torch.library.triton_op("tempme::match_tokens", mutates_args=())
def match_tokens(metric: Tensor, n_cls: int, r: int) -> Tensor:
    """Choose the r tokens of set A nearest to some token of set B (spec section 4).

    metric  [B, N, C] float16, bfloat16, float32 or float64; scores are compared in float32
    n_cls   leading tokens that never merge
    r       tokens to merge, 1 <= r <= |A|
    Returns assign [B, N] int32: the output row of every token, out of N - r.
    Raises ValueError for shapes or an r that cannot be.
    """
    _check_tokens("metric", metric)
    launch.check_counts(metric.shape[1], n_cls, r)
    form = match_launcher if _by_triton(metric) else dense
    return form.match_tokens(metric, n_cls, r)


@torch.library.triton_op("tempme::match_keys", mutates_args=())
def match_keys(qkv: Tensor, heads: int, n_cls: int, r: int) -> Tensor:
    """`match_tokens` by the mean over heads of the keys (spec section 3, rule 3).

    qkv  [B, N, 3 * D] float16, bfloat16, float32 or float64: queries, keys and values, head by head
    Returns assign [B, N] int32. Raises ValueError for shapes or an r that cannot be.
    """
    _check_heads(qkv, heads)
    launch.check_counts(qkv.shape[1], n_cls, r)
    form = match_launcher if _by_triton(qkv) else dense_block
    return form.match_keys(qkv, heads, n_cls, r)


@torch.library.triton_op("tempme::match_clips", mutates_args=())
def match_clips(x: Tensor, delta: Tensor | None, factor: int, n_cls: int, r: int) -> Tensor:
    """`match_tokens` over `factor` adjacent clips, joined, by x + delta (spec section 3, rule 1).

    x, delta  [B * factor, n, D] float16, bfloat16, float32 or float64; delta None: nothing to add
    n_cls     class tokens of a joined clip
    Returns assign [B, n * factor] int32. Raises ValueError for shapes or an r that cannot be.
    """
    _check_clips(x, factor, n_cls, r)
    _check_like(x, delta=delta)
    form = match_launcher if _by_triton(x) else dense_block
    return form.match_clips(x, delta, factor, n_cls, r)


@torch.library.triton_op("tempme::merge_tokens", mutates_args=())
def merge_tokens(x: Tensor, size: Tensor | None, assign: Tensor, n_cls: int, r: int) -> tuple[Tensor, Tensor]:
    """Average the tokens that share an output row, weighted by size (spec section 4).

    x       [B, N, D] float16, bfloat16, float32 or float64; sums in float32 or wider
    size    [B, N] float32 (float64 with a float64 x); None: every token stands for itself
    assign  [B, N] int32 from `match_tokens` with the same n_cls and r
    Returns ([B, N - r, D] in x's dtype, [B, N - r] sizes).
    Raises ValueError for shapes that do not belong together.
    """
    _check_tokens("x", x)
    _check_like(x, size=size, assign=assign)
    _check_assign(assign)
    launch.check_counts(x.shape[1], n_cls, r)
    form = merge_launcher if _by_triton(x) else dense
    return form.merge_tokens(x, size, assign, n_cls, r)


@torch.library.triton_op("tempme::merge_norm", mutates_args=())
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
    """Everything between two matrix products where tokens merge: add, positions, joining, merge, LayerNorm.

    x, delta      [B * factor, n, D] float16, bfloat16, float32 or float64; delta None: nothing to add
    size          [B * factor, n] float32 (float64 with a float64 x); None: every token stands for itself
    assign        [B, n * factor] int32 from a match with the same factor, n_cls and r
    position      [P, D], row c % P for input clip c, added to all its tokens; None: nothing
    weight, bias  [D] of the LayerNorm, float32 or wider
    Returns merged [B, N - r, D], its LayerNorm, sizes [B, N - r] and their logarithms, N = n * factor.
    Raises ValueError for shapes that do not belong together.
    """
    _check_clips(x, factor, n_cls, r)
    _check_like(x, delta=delta, size=size)
    _check_assign(assign)
    form = merge_launcher if _by_triton(x) else dense_block
    return form.merge_norm(x, delta, size, assign, position, weight, bias, factor, n_cls, r)


@torch.library.triton_op("tempme::add_norm", mutates_args=())
def add_norm(x: Tensor, delta: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """x + delta and its LayerNorm.

    x, delta      [B, N, D] float16, bfloat16, float32 or float64
    weight, bias  [D], float32 or wider
    Returns two [B, N, D] in x's dtype. Raises ValueError for shapes that do not belong together.
    """
    _check_tokens("x", x)
    _check_like(x, delta=delta)
    form = merge_launcher if _by_triton(x) else dense_block
    return form.add_norm(x, delta, weight, bias)


@torch.library.triton_op("tempme::layer_norm", mutates_args=())
def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """LayerNorm with float32 statistics.

    x [B, N, D], weight and bias [D] as in `add_norm`. Returns [B, N, D] in x's dtype.
    """
    _check_tokens("x", x)
    form = merge_launcher if _by_triton(x) else dense_block
    return form.layer_norm(x, weight, bias)


@torch.library.triton_op("tempme::attention", mutates_args=())
def attention(qkv: Tensor, bias: Tensor | None, heads: int) -> Tensor:
    """softmax(q k^T + bias of the key) v, head by head; the query scale is in the weights already.

    qkv   [B, N, 3 * D] float16, bfloat16, float32 or float64: queries, keys and values, head by head
    bias  [B, N] float32 or wider, the logarithm of each key's size; None: nothing
    Returns [B, N, D] in qkv's dtype; logits and softmax in float32 or wider. Raises ValueError for shapes.
    """
    _check_heads(qkv, heads)
    _check_like(qkv, bias=bias)
    form = attention_launcher if _by_triton(qkv) else dense_block
    return form.attention(qkv, bias, heads)


@torch.library.triton_op("tempme::attention_match", mutates_args=())
def attention_match(qkv: Tensor, bias: Tensor | None, heads: int, n_cls: int, r: int) -> tuple[Tensor, Tensor]:
    """`attention` and `match_keys` of the same qkv, side by side: the keys are read once.

    Arguments as theirs. Returns [B, N, D] in qkv's dtype and assign [B, N] int32. Raises ValueError as they do.
    """
    _check_heads(qkv, heads)
    _check_like(qkv, bias=bias)
    launch.check_counts(qkv.shape[1], n_cls, r)
    form = attention_launcher if _by_triton(qkv) else dense_block
    return form.attention_match(qkv, bias, heads, n_cls, r)


# What each operator is where no operator of ours exists: an ONNX graph, a compiled package for a CPU.
DENSE_FORMS = {
    torch.ops.tempme.match_tokens.default: dense.match_tokens,
    torch.ops.tempme.match_keys.default: dense_block.match_keys,
    torch.ops.tempme.match_clips.default: dense_block.match_clips,
    torch.ops.tempme.merge_tokens.default: dense.merge_tokens,
    torch.ops.tempme.merge_norm.default: dense_block.merge_norm,
    torch.ops.tempme.add_norm.default: dense_block.add_norm,
    torch.ops.tempme.layer_norm.default: dense_block.layer_norm,
    torch.ops.tempme.attention.default: dense_block.attention,
    torch.ops.tempme.attention_match.default: dense_block.attention_match,
}
