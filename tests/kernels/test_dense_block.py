"""The fused steps' compositions for the CPU and ONNX against the reference and float64, step by step."""

import pytest
import torch

from tempme_export.kernels import dense, dense_block
from tempme_export.kernels.reference import decision_gap_ref, match_tokens_ref, merge_tokens_ref

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def equal(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.fixture
def close(step_error):
    """Asserts that every row [..., D] is a float64 result but for the rounding of one step."""

    def check(found, expected):
        assert found.shape == expected.shape and expected.dtype == torch.float64
        error = (found.double() - expected).norm(dim=-1)
        assert (error <= step_error(found.dtype) * expected.norm(dim=-1)).all()

    return check


def draw(*shape, dtype=torch.float32, seed=42):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def draw_sizes(*shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(42)
    return torch.randint(1, 60, shape, generator=generator).to(torch.promote_types(dtype, torch.float32))


def joined(x, factor, n_cls):
    """Class tokens clip by clip, then patches clip by clip (spec section 3), one token at a time."""
    each, rows = n_cls // factor, []
    for first in range(0, len(x), factor):
        tokens = [x[first + c, i] for c in range(factor) for i in range(each)]
        tokens += [x[first + c, i] for c in range(factor) for i in range(each, x.shape[1])]
        rows.append(torch.stack(tokens))
    return torch.stack(rows)


def normed(x, weight, bias):
    x = x.double()
    centred = x - x.mean(dim=-1, keepdim=True)
    return centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt() * weight.double() + bias.double()


def parameters(width, dtype):
    wide = torch.promote_types(dtype, torch.float32)
    return draw(width, dtype=wide, seed=8), draw(width, dtype=wide, seed=9)


@pytest.mark.parametrize("factor, n_cls", [(1, 2), (2, 2), (2, 6), (3, 3), (3, 12)])
def test_join_clips(factor, n_cls):
    x = draw(6, 13, 4)
    equal(dense_block.join_clips(x, factor, n_cls), joined(x, factor, n_cls))
    equal(dense_block.join_clips(x[..., 0], factor, n_cls), joined(x[..., 0], factor, n_cls))
    strided = x.transpose(0, 1).contiguous().transpose(0, 1)
    equal(dense_block.join_clips(strided, factor, n_cls), joined(x, factor, n_cls))


@every_dtype
@pytest.mark.parametrize(
    "n_tokens, heads, head_width, n_cls, r", [(21, 1, 64, 1, 5), (50, 12, 64, 2, 24), (33, 2, 80, 4, 7)]
)
def test_match_keys(check_assign, n_tokens, heads, head_width, n_cls, r, dtype):
    qkv = draw(3, n_tokens, 3 * heads * head_width, dtype=dtype)
    keys = qkv.double()[..., heads * head_width : 2 * heads * head_width].unflatten(-1, (heads, head_width)).mean(dim=2)
    assign = dense_block.match_keys(qkv, heads, n_cls, r)
    check_assign(assign, n_tokens, n_cls, r)
    clear = decision_gap_ref(keys, n_cls, r) > 4 * 2**-20
    assert clear.sum() >= 2, "these inputs are meant to be clear"
    equal(assign[clear], match_tokens_ref(keys, n_cls, r)[clear])


@every_dtype
@pytest.mark.parametrize("factor, n_cls, r", [(1, 1, 5), (2, 2, 17), (2, 6, 4), (3, 3, 9)])
@pytest.mark.parametrize("with_delta", [True, False], ids=["delta", "alone"])
def test_match_clips(check_assign, factor, n_cls, r, with_delta, dtype):
    x, delta = draw(3 * factor, 20, 64, dtype=dtype), draw(3 * factor, 20, 64, dtype=dtype, seed=7)
    metric = joined(x + delta if with_delta else x, factor, n_cls)
    assign = dense_block.match_clips(x, delta if with_delta else None, factor, n_cls, r)
    check_assign(assign, 20 * factor, n_cls, r)
    clear = decision_gap_ref(metric, n_cls, r) > 4 * 2**-20
    assert clear.sum() >= 2, "these inputs are meant to be clear"
    equal(assign[clear], match_tokens_ref(metric, n_cls, r)[clear])


@every_dtype
@pytest.mark.parametrize("width", [64, 80, 768])
def test_layer_norm_and_add_norm(close, width, dtype):
    x, delta = draw(2, 9, width, dtype=dtype), draw(2, 9, width, dtype=dtype, seed=7)
    weight, bias = parameters(width, dtype)
    found = dense_block.layer_norm(x, weight, bias)
    assert found.dtype == dtype
    close(found, normed(x, weight, bias))
    total, found = dense_block.add_norm(x, delta, weight, bias)
    equal(total, x + delta)
    assert found.dtype == dtype
    close(found, normed(total, weight, bias))


@every_dtype
@pytest.mark.parametrize("factor, n_cls, r", [(1, 1, 5), (2, 2, 17), (3, 6, 9)])
@pytest.mark.parametrize("has", ["", "delta", "size", "position", "delta size position"], ids=lambda h: h or "x")
def test_merge_norm(close, factor, n_cls, r, has, dtype):
    clips, tokens, width = 2 * factor, 20, 80
    x = draw(clips, tokens, width, dtype=dtype)
    delta = draw(clips, tokens, width, dtype=dtype, seed=7) if "delta" in has else None
    size = draw_sizes(clips, tokens, dtype=dtype) if "size" in has else None
    position = draw(factor, width, dtype=dtype, seed=10) if "position" in has else None
    weight, bias = parameters(width, dtype)
    assign = match_tokens_ref(joined(x, factor, n_cls), n_cls, r)
    merged, norm, total, log_size = dense_block.merge_norm(
        x, delta, size, assign, position, weight, bias, factor, n_cls, r
    )
    rows = x.double()
    if delta is not None:
        rows = rows + delta.double()
    if position is not None:
        rows = torch.stack([clip + position[c % factor].double() for c, clip in enumerate(rows)])
    sizes = torch.ones(clips, tokens, dtype=torch.float64) if size is None else size.double()
    expected, sizes = merge_tokens_ref(
        joined(rows, factor, n_cls), joined(sizes, factor, n_cls), assign, tokens * factor - r
    )
    assert merged.dtype == norm.dtype == dtype
    assert total.dtype == log_size.dtype == torch.promote_types(dtype, torch.float32)
    close(merged, expected)
    equal(total.double(), sizes)
    equal(log_size, total.log())
    close(norm, normed(merged, weight, bias))


@pytest.mark.parametrize("n_positions", [1, 2, 3, 6])
@pytest.mark.parametrize("factor", [1, 2, 3])
def test_clip_positions_go_round(factor, n_positions):
    x, position = draw(6, 9, 16, dtype=torch.float64), draw(n_positions, 16, dtype=torch.float64, seed=7)
    weight, bias = parameters(16, torch.float64)
    moved = torch.stack([clip + position[c % n_positions] for c, clip in enumerate(x)])
    assign = match_tokens_ref(joined(x, factor, factor), factor, 3)
    found, expected = (
        dense_block.merge_norm(rows, None, None, assign, given, weight, bias, factor, factor, 3)
        for rows, given in ((x, position), (moved, None))
    )
    for one, other in zip(found, expected, strict=True):
        equal(one, other)


@every_dtype
@pytest.mark.parametrize("biased", [True, False], ids=["bias", "alone"])
@pytest.mark.parametrize("n_tokens, heads, head_width", [(1, 1, 64), (21, 2, 80), (50, 12, 64)])
def test_attention(close, n_tokens, heads, head_width, dtype, biased):
    qkv = draw(2, n_tokens, 3, heads * head_width)
    qkv[:, :, 0] *= head_width**-0.5
    qkv = qkv.flatten(2).to(dtype)
    bias = draw_sizes(2, n_tokens, dtype=dtype).log() if biased else None
    parts = qkv.double().split(heads * head_width, dim=-1)
    expected = torch.empty_like(parts[0])
    for head in range(heads):
        q, k, v = (part[..., head * head_width : (head + 1) * head_width] for part in parts)
        logits = q @ k.transpose(1, 2) + (0 if bias is None else bias.double().unsqueeze(1))
        share = (logits - logits.amax(dim=-1, keepdim=True)).exp()
        expected[..., head * head_width : (head + 1) * head_width] = share / share.sum(dim=-1, keepdim=True) @ v
    found = dense_block.attention(qkv, bias, heads)
    assert found.dtype == dtype
    close(found, expected)


@every_dtype
def test_attention_match(dtype):
    qkv, bias = draw(2, 21, 3 * 128, dtype=dtype), draw_sizes(2, 21, dtype=dtype).log()
    found, assign = dense_block.attention_match(qkv, bias, 2, 1, 5)
    equal(found, dense_block.attention(qkv, bias, 2))
    equal(assign, dense_block.match_keys(qkv, 2, 1, 5))


def test_one_clip_without_anything_is_merge_tokens():
    x, assign = draw(2, 21, 16), match_tokens_ref(draw(2, 21, 16), 1, 5)
    weight, bias = parameters(16, torch.float32)
    merged, _, total, _ = dense_block.merge_norm(x, None, None, assign, None, weight, bias, 1, 1, 5)
    for one, other in zip((merged, total), dense.merge_tokens(x, None, assign, 1, 5), strict=True):
        equal(one, other)
