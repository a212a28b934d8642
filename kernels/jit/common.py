"""Shared parts of the kernels: places of tokens, the two sets, stores."""

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def operand(value):
    """A factor of a dot product. The interpreter multiplies bfloat16 wrongly, so there it is widened."""
    if INTERPRETED and value.dtype == tl.bfloat16:
        return value.to(tl.float32)
    else:
        return value


@triton.jit
def rounded(value, dtype: tl.constexpr):
    """`value` in `dtype`, to nearest even; the interpreter alone would truncate to bfloat16."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = value.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return tl.where(value == value, bits, 0x7FC0).to(tl.int16).to(tl.bfloat16, bitcast=True)
    else:
        return value.to(dtype)


@triton.jit
def sets(n_tokens, n_cls, r):
    """First A token, |A|, first B token, |B| and the first output row of B (spec section 4)."""
    n_a = (n_tokens + 1) // 2 - (n_cls + 1) // 2
    n_b = n_tokens // 2 - n_cls // 2
    return n_cls + n_cls % 2, n_a, n_cls + 1 - n_cls % 2, n_b, n_tokens - r - n_b


@triton.jit
def locate(item, token, n_tokens, n_cls, FACTOR: tl.constexpr):
    """Input clip and position in it of token `token` of joined clip `item` (spec section 3, rule 1).

    FACTOR adjacent clips are joined by index arithmetic alone: their class tokens first, then their patches.
    """
    if FACTOR == 1:
        return item + token * 0, token
    else:
        cls_in = n_cls // FACTOR
        patches_in = n_tokens // FACTOR - cls_in
        patch, some = token - n_cls, tl.maximum(cls_in, 1)  # no class token: a divisor that is not used
        clip = tl.where(token < n_cls, token // some, patch // patches_in)
        inside = tl.where(token < n_cls, token % some, cls_in + patch % patches_in)
        return item * FACTOR + clip, inside
