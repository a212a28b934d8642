"""Merging in C++ with its fusions: against float64, and what any correct merge keeps."""

import pytest
import torch

from tempme_export.kernels import dense_block
from tempme_export.kernels.reference import match_tokens_ref, merge_tokens_ref

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# Clips joined or not, both parities, widths on either side of sixteen sums, more rows than a block of 32; r = 1, |A|.
SHAPES = [
    # items, factor, tokens, D, n_cls, r
    (3, 1, 50, 64, 1, 24),
    (2, 1, 49, 768, 1, 7),
    (2, 2, 48, 80, 2, 14),
    (1, 3, 39, 127, 12, 1),
    (2, 4, 5, 3, 4, 2),
    (1, 2, 31, 16, 4, 29),
    (2, 1, 3, 1, 1, 1),
]
every_shape = pytest.mark.parametrize("items, factor, tokens, width, n_cls, r", SHAPES)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
# Largest error beside float64, in units of the largest value: half a step of the precision, and float32's own sums.
ERROR = {torch.float32: 2e-6, torch.float16: 2**-11 + 2e-6, torch.bfloat16: 2**-8 + 2e-6}


def draw(*shape, seed=42):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def draw_sizes(*shape):
    """Sizes as merges leave them: whole numbers, some large."""
    return torch.randint(1, 60, shape, generator=torch.Generator().manual_seed(3)).float()


def equal(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def close(found, expected, dtype):
    assert found.isfinite().all()
    assert (found.double() - expected).abs().max() <= ERROR[dtype] * expected.abs().max().clamp_min(1)


def step(items, factor, tokens, width, n_cls, r, dtype, sized, positions):
    """What goes into a merge, and in float32 the tokens that it merges."""
    clips = items * factor
    x, delta = draw(clips, tokens, width).to(dtype), draw(clips, tokens, width, seed=1).to(dtype)
    size = draw_sizes(clips, tokens) if sized else None
    position = draw(positions, width, seed=2).to(dtype) if positions else None
    norm = draw(width, seed=4) + 1, draw(width, seed=5)
    placed = x.float() + delta.float()
    if positions:
        placed = (placed.reshape(-1, positions, tokens, width) + position.float().unsqueeze(1)).flatten(0, 1)
    joined = dense_block.join_clips(placed, factor, n_cls)
    assign = match_tokens_ref(joined, n_cls, r)
    sizes = torch.ones(items, tokens * factor) if size is None else dense_block.join_clips(size, factor, n_cls)
    return (x, delta, size, assign, position, norm, factor, n_cls, r), joined, sizes


@every_shape
@every_dtype
@pytest.mark.parametrize("sized, placed", [(False, False), (True, False), (False, True), (True, True)])
def test_weighted_average_norm_and_exact_copies(core, items, factor, tokens, width, n_cls, r, dtype, sized, placed):
    given, joined, sizes = step(items, factor, tokens, width, n_cls, r, dtype, sized, items * factor * placed)
    merged, normed, total, log_total = core.merge_norm(*given)
    n_out, assign = tokens * factor - r, given[3]
    expected, expected_sizes = merge_tokens_ref(joined.double(), sizes.double(), assign, n_out)
    close(merged, expected, dtype)
    equal(total.double(), expected_sizes)
    torch.testing.assert_close(log_total, expected_sizes.log().float(), rtol=2e-7, atol=0)
    weight, bias = (one.double() for one in given[5])
    wide = merged.double()
    deviation = (wide.var(dim=-1, correction=0, keepdim=True) + 1e-5).sqrt()
    close(normed, (wide - wide.mean(dim=-1, keepdim=True)) / deviation * weight + bias, dtype)
    for item in range(items):
        alone = torch.bincount(assign[item], minlength=n_out)[assign[item]] == 1
        equal(merged[item][assign[item][alone]], joined[item][alone].to(dtype))


@every_dtype
def test_levels_threads_and_neighbours_change_no_bit(core, dtype):
    given, _, _ = step(3, 2, 48, 72, 2, 14, dtype, sized=True, positions=6)
    first = core.merge_norm(*given, level=0)
    for level in core.levels:
        for order in ("backwards", "threads"):
            for mine, other in zip(core.merge_norm(*given, level=level, order=order), first, strict=True):
                equal(mine, other)
    x, delta, size, assign, position, *rest = given
    for i in range(3):
        clips = slice(2 * i, 2 * i + 2)
        alone = core.merge_norm(x[clips], delta[clips], size[clips], assign[i : i + 1], position[clips], *rest)
        for mine, other in zip(alone, first, strict=True):
            equal(mine, other[i : i + 1])


@every_dtype
def test_any_bits_are_copied(core, dtype):
    """Every float16 and bfloat16, and float32 of every exponent: infinities, subnormals, both zeros; NaN stays one."""
    short = torch.arange(-(2**15), 2**15, dtype=torch.int16)
    bits = short if dtype != torch.float32 else (short.int() << 16) + 12345
    x = bits.view(dtype).reshape(1, 512, 128)
    delta = torch.full_like(x, -0.0)  # x + -0.0 is x
    order = torch.arange(512, dtype=torch.int32).unsqueeze(0)
    norm = torch.ones(128), torch.zeros(128)
    merged, *_ = core.merge_norm(x, delta, None, order, None, norm, 1, 512, 0)
    equal(merged, x)


@every_dtype
def test_rounding_is_to_nearest_even(core, dtype):
    """The mean of two neighbouring numbers lies between them: a tie, of every exponent."""
    lower = torch.arange(1, 2**15 - 2**10, dtype=torch.int16)
    if dtype == torch.float32:
        lower = (lower.int() << 16) + 3
    a, b = (bits.view(dtype) for bits in (lower, lower + 1))
    keep = a.isfinite() & b.isfinite() & (a.float() + b.float()).isfinite()
    pairs = torch.stack([a[keep], b[keep]]).unsqueeze(0)[..., :8192].contiguous()
    width = pairs.shape[-1]
    assign, norm = torch.zeros(1, 2, dtype=torch.int32), (torch.ones(width), torch.zeros(width))
    merged, *_ = core.merge_norm(pairs, torch.full_like(pairs, -0.0), None, assign, None, norm, 1, 0, 1)
    equal(merged[0, 0], ((pairs[0, 0].float() + pairs[0, 1].float()) / 2).to(dtype))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_in_its_row(core, value):
    given, _, _ = step(2, 1, 50, 20, 1, 7, torch.float32, sized=True, positions=0)
    clean = core.merge_norm(*given)
    x = given[0].clone()
    x[1, 8, 5] = value
    row = int(given[3][1, 8])
    for mine, other in zip(core.merge_norm(x, *given[1:]), clean, strict=True):
        kept = torch.ones(mine.shape[:2], dtype=torch.bool)
        kept[1, row] = False
        equal(mine[kept], other[kept])
        if mine.ndim == 3:
            assert not mine[1, row].isfinite().all()


def test_large_half_values_do_not_overflow_in_between(core):
    x = torch.full((1, 4, 8), 60000.0, dtype=torch.float16)
    assign, norm = torch.tensor([[0, 0, 0, 1]], dtype=torch.int32), (torch.ones(8), torch.zeros(8))
    size = torch.tensor([[300.0, 4000.0, 7.0, 1.0]])
    merged, _, total, _ = core.merge_norm(x, torch.zeros_like(x), size, assign, None, norm, 1, 0, 2)
    equal(merged, torch.full((1, 2, 8), 60000.0, dtype=torch.float16))
    equal(total, torch.tensor([[4307.0, 1.0]]))


@pytest.mark.parametrize(("row", "said"), [(99, "not there"), (-1, "not there"), (0, "without a token")])
def test_an_assignment_of_no_match_is_refused(core, row, said):
    """Before anything is written out of bounds, or a row is left as it was."""
    x, norm = draw(1, 9, 4), (torch.ones(4), torch.zeros(4))
    assign = match_tokens_ref(x, 1, 2)
    alone = [i for i in range(1, 9) if (assign[0] == assign[0, i]).sum() == 1]
    assign[0, alone[0]] = row
    with pytest.raises(ValueError, match=said):
        core.merge_norm(x, torch.zeros_like(x), None, assign, None, norm, 1, 1, 2)


def test_an_assignment_beyond_the_rows_is_refused_where_every_row_has_a_token(core):
    x, norm = draw(1, 9, 4), (torch.ones(4), torch.zeros(4))
    assign = match_tokens_ref(x, 1, 2)
    shared = next(i for i in range(1, 9) if (assign[0] == assign[0, i]).sum() > 1)
    assign[0, shared] = 7
    with pytest.raises(ValueError, match="not there"):
        core.merge_norm(x, torch.zeros_like(x), None, assign, None, norm, 1, 1, 2)
