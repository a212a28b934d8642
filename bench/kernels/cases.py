"""The calls of an encoder in which tokens merge, block by block: inputs, bytes, and the same in plain PyTorch.

A call counts +1 where it is there because tokens merge, and -1 where it is what would run in its place without: the
add + LayerNorm of the same tokens, and attention alone. Their signed sum is what merging costs a block.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tempme_export.bench.kernels import traffic
from tempme_export.encoder import ops
from tempme_export.encoder.schedule import BlockSchedule, Schedule
from tempme_export.kernels import dense, dense_block
from tempme_export.kernels.reference import match_tokens_ref, merge_tokens_ref

Inputs = tuple[Any, ...]


@dataclass(frozen=True)
class KernelCall:
    """One call of an operator in one block.

    sign     +1 or -1, see above
    shape    of the tokens, in words
    n_bytes  by the formula of `traffic`
    draw     a device -> tensors and numbers that `run` and `plain` take
    plain    the definition of `kernels.reference` and plain PyTorch around it, as it runs eagerly
    """

    block: int
    name: str
    sign: int
    shape: str
    n_bytes: int
    draw: Callable[[torch.device], Inputs]
    run: Callable[..., object]
    plain: Callable[..., object]


def plain_attention_match(qkv: Tensor, bias: Tensor | None, heads: int, n_cls: int, r: int) -> tuple[Tensor, Tensor]:
    """Attention with its logits materialised, and the reference's match by the keys' mean over heads."""
    keys = qkv.unflatten(-1, (3, heads, -1))[:, :, 1]
    return dense_block.attention(qkv, bias, heads), match_tokens_ref(keys.mean(dim=2), n_cls, r)


def plain_match_clips(x: Tensor, delta: Tensor | None, factor: int, n_cls: int, r: int) -> Tensor:
    """Residual add, joining, and the reference's match."""
    return match_tokens_ref(dense_block.join_clips(x if delta is None else x + delta, factor, n_cls), n_cls, r)


def plain_merge_norm(
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
    """Residual add, clip positions, joining, the reference's merge, LayerNorm and the logarithm of the sizes."""
    if delta is not None:
        x = x + delta
    if position is not None:
        x = (x.unflatten(0, (-1, len(position))) + position.unsqueeze(1)).flatten(0, 1)
    if size is None:
        size = torch.ones(x.shape[:2], device=x.device)
    x, size = dense_block.join_clips(x, factor, n_cls), dense_block.join_clips(size, factor, n_cls)
    x, size = merge_tokens_ref(x, size, assign, x.shape[1] - r)
    return x, dense_block.layer_norm(x, weight, bias), size, size.log()


def _generator(device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(0)


def _draw(
    device: torch.device, dtype: torch.dtype, *shapes: tuple[int, ...], wide: tuple[tuple[int, ...], ...] = ()
) -> list[Tensor]:
    """Normal values: one tensor in `dtype` per shape, then one in float32 for each of `wide`."""
    generator = _generator(device)
    drawn = [torch.randn(shape, generator=generator, device=device).to(dtype) for shape in shapes]
    return drawn + [torch.randn(shape, generator=generator, device=device) for shape in wide]


def _sizes(device: torch.device, rows: int, tokens: int) -> Tensor:
    return torch.randint(1, 9, (rows, tokens), generator=_generator(device), device=device).float()


class _Calls:
    """The calls of one block, for `rows` joined clips of `width` channels."""

    def __init__(self, block: BlockSchedule, batch: int, width: int, heads: int, dtype: torch.dtype) -> None:
        self.block, self.rows, self.width, self.heads, self.dtype = block, batch * block.clips, width, heads, dtype
        self.e = dtype.itemsize

    def _call(
        self,
        name: str,
        sign: int,
        shape: tuple[int, ...],
        n_bytes: int,
        draw: Callable[[torch.device], Inputs],
        plain: Callable[..., object],
    ) -> KernelCall:
        words = " x ".join(map(str, shape))
        return KernelCall(self.block.index, name, sign, words, n_bytes, draw, getattr(ops, name), plain)

    def _add_norm(self, sign: int, rows: int, tokens: int) -> KernelCall:
        shape, width, dtype = (rows, tokens, self.width), self.width, self.dtype

        def draw(device: torch.device) -> Inputs:
            return tuple(_draw(device, dtype, shape, shape, wide=((width,), (width,))))

        n_bytes = traffic.add_norm(rows, tokens, width, self.e)
        return self._call("add_norm", sign, shape, n_bytes, draw, dense_block.add_norm)

    def across(self, *, delta: bool, size: bool, position: bool) -> Iterator[KernelCall]:
        """Joining clips and merging across them, instead of the add + LayerNorm that enters a block."""
        block, rows, width, dtype = self.block, self.rows, self.width, self.dtype
        factor, n_cls, r = block.factor, block.n_cls, block.r_cross
        clips, tokens, n_tokens = rows * factor, block.tokens_in, block.tokens_in * factor
        shape = (clips, tokens, width)
        positions = block.clips_in if position else 0

        def draw(device: torch.device) -> Inputs:
            x, added = _draw(device, dtype, shape, shape)
            return x, added if delta else None, factor, n_cls, r

        def draw_merge(device: torch.device) -> Inputs:
            x, added, *_ = draw(device)
            place, weight, bias = _draw(device, dtype, (block.clips_in, width), wide=((width,), (width,)))
            assign = dense_block.match_clips(x, added if delta else None, factor, n_cls, r)
            sizes = _sizes(device, clips, tokens) if size else None
            return x, added, sizes, assign, place if position else None, weight, bias, factor, n_cls, r

        n_bytes = traffic.match_clips(rows, n_tokens, width, self.e, delta=delta)
        yield self._call("match_clips", 1, shape, n_bytes, draw, plain_match_clips)
        n_bytes = traffic.merge_norm(rows, n_tokens, width, self.e, r, delta=delta, size=size, positions=positions)
        yield self._call("merge_norm", 1, shape, n_bytes, draw_merge, plain_merge_norm)
        yield self._add_norm(-1, clips, tokens)

    def within(self, *, size: bool, bias: bool) -> Iterator[KernelCall]:
        """Merging within clips, instead of attention alone and the add + LayerNorm behind it."""
        block, rows, width, heads, dtype = self.block, self.rows, self.width, self.heads, self.dtype
        tokens, n_cls, r = block.tokens_attention, block.n_cls, block.r_intra
        shape, packed = (rows, tokens, width), (rows, tokens, 3 * width)

        def draw_attention(device: torch.device) -> Inputs:
            (qkv,) = _draw(device, dtype, packed)
            qkv[..., :width] *= (width // heads) ** -0.5
            return qkv, _sizes(device, rows, tokens).log() if bias else None, heads

        def draw_match(device: torch.device) -> Inputs:
            return *draw_attention(device), n_cls, r

        def draw_merge(device: torch.device) -> Inputs:
            x, delta, weight, shift = _draw(device, dtype, shape, shape, wide=((width,), (width,)))
            assign = dense.match_tokens(x, n_cls, r)
            sizes = _sizes(device, rows, tokens) if size else None
            return x, delta, sizes, assign, None, weight, shift, 1, n_cls, r

        n_bytes = traffic.attention_match(rows, tokens, width, self.e, bias=bias)
        yield self._call("attention_match", 1, packed, n_bytes, draw_match, plain_attention_match)
        n_bytes = traffic.merge_norm(rows, tokens, width, self.e, r, delta=True, size=size)
        yield self._call("merge_norm", 1, shape, n_bytes, draw_merge, plain_merge_norm)
        n_bytes = traffic.attention(rows, tokens, width, self.e, bias=bias)
        yield self._call("attention", -1, packed, n_bytes, draw_attention, dense_block.attention)
        yield self._add_norm(-1, rows, tokens)


def kernel_calls(
    schedule: Schedule,
    width: int,
    heads: int,
    batch: int,
    dtype: torch.dtype,
    *,
    size_bias: bool = True,
    clip_position: bool = True,
) -> list[KernelCall]:
    """Every call that counts, in the order in which the encoder makes them.

    width, heads  of the backbone
    batch         videos per call
    dtype         of the tokens
    """
    calls: list[KernelCall] = []
    merged = False
    for block in schedule.blocks:
        of_block = _Calls(block, batch, width, heads, dtype)
        if block.r_cross:
            calls += of_block.across(delta=block.index > 0, size=merged, position=clip_position)
            merged = True
        if block.r_intra:
            calls += of_block.within(size=merged, bias=merged and size_bias)
            merged = True
    return calls
