"""The merge kernel with its fusions, and add + LayerNorm, against float64 and what any correct merge keeps."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tempme_export.kernels import launch, merge
from tempme_export.kernels.launch import RowsConfig
from tempme_export.kernels.reference import match_tokens_ref, merge_tokens_ref

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# Both parities of N and n_cls and their four combinations; the widths of a head, of ViT-B, L and H, and odd ones;
# |A| above, equal to and below |B|; the smallest there are. r = 1, |A| and between.
SHAPES = [
    # N, D, n_cls, r
    (50, 64, 1, 24),
    (49, 64, 1, 7),
    (48, 768, 2, 5),
    (47, 80, 2, 22),
    (117, 63, 12, 1),
    (118, 64, 12, 53),
    (62, 768, 4, 29),
    (33, 127, 5, 14),
    (20, 1024, 3, 4),
    (21, 1280, 1, 9),
    (9, 5, 3, 3),
    (4, 64, 2, 1),
    (3, 1, 1, 1),
]
every_shape = pytest.mark.parametrize("n_tokens, width, n_cls, r", SHAPES)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def equal(found, expected):
    torch.testing.assert_close(found.cpu(), expected.cpu(), rtol=0, atol=0, equal_nan=True)


def draw(*shape, dtype=torch.float32, seed=42):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def draw_sizes(*shape, seed=42):
    """Sizes as merges leave them: whole numbers, some large."""
    return torch.randint(1, 60, shape, generator=torch.Generator().manual_seed(seed)).float()


def merged_by_reference(x, size, assign, n_out):
    """float64 of what the reference makes of these numbers."""
    size = torch.ones(x.shape[:2]) if size is None else size
    return merge_tokens_ref(x.double(), size.double(), assign, n_out)


class TestTokens:
    @every_shape
    @pytest.mark.parametrize("dtype, sized", [(torch.float32, False), *((dtype, True) for dtype in DTYPES)], ids=str)
    def test_weighted_average_and_exact_copies(
        self, device, some_assign, check_close, n_tokens, width, n_cls, r, dtype, sized
    ):
        x, assign = draw(2, n_tokens, width, dtype=dtype), some_assign(2, n_tokens, n_cls, r)
        size = draw_sizes(2, n_tokens) if sized else None
        merged, total = merge.merge_tokens(
            x.to(device), size.to(device) if sized else None, assign.to(device), n_cls, r
        )
        expected, sizes = merged_by_reference(x, size, assign, n_tokens - r)
        assert merged.dtype == dtype and total.dtype == torch.float32
        equal(total.double(), sizes)
        check_close(merged, expected)
        copies = 0
        for item in range(2):
            count = torch.bincount(assign[item], minlength=n_tokens - r)
            alone = count[assign[item]] == 1
            equal(merged[item].cpu()[assign[item][alone]], x[item][alone])
            copies += int(alone.sum())
        assert copies >= 2 * n_cls

    @every_dtype
    def test_any_bits_are_copied(self, device, some_assign, dtype):
        """Every float16 and bfloat16, and float32 of every exponent: infinities, subnormals, both zeros."""
        short = torch.arange(-(2**15), 2**15, dtype=torch.int16)
        bits = short if dtype != torch.float32 else (short.int() << 16) + 12345
        x = bits.view(dtype).reshape(1, 512, 128)
        if launch.interpreting() and dtype == torch.bfloat16:
            x = torch.where(x.abs() < torch.finfo(dtype).tiny, 0, x)  # which the interpreter reads wrongly
        assign = some_assign(1, 512, 512 - 4, 1)
        merged, _ = merge.merge_tokens(x.to(device), None, assign.to(device), 508, 1)
        assert torch.bincount(assign[0])[:508].max() == 1
        equal(merged[0, :508], x[0, :508])

    @pytest.mark.parametrize("n_tokens, width, n_cls", [(50, 64, 1), (117, 80, 12), (33, 127, 5)])
    def test_conservation(self, device, step_error, n_tokens, width, n_cls):
        r = (n_tokens + 1) // 2 - (n_cls + 1) // 2
        x, size = draw(2, n_tokens, width), draw_sizes(2, n_tokens)
        assign = match_tokens_ref(x, n_cls, r)
        merged, total = merge.merge_tokens(x.to(device), size.to(device), assign.to(device), n_cls, r)
        equal(total.sum(dim=1), size.sum(dim=1))
        before, after = ((t * s.unsqueeze(-1)).double().cpu() for t, s in ((x, size), (merged, total)))
        error = (after.sum(dim=1) - before.sum(dim=1)).abs()
        assert (error <= step_error(x.dtype) * before.abs().sum(dim=1)).all()

    def test_sizes_add_up_over_many_merges(self, device):
        x, size = draw(2, 200, 16), None
        while x.shape[1] > 7:
            r = (x.shape[1] + 1) // 2 - 2
            assign = match_tokens_ref(x.cpu(), 3, r)
            x, size = merge.merge_tokens(x.to(device), size, assign.to(device), 3, r)
        assert size.sum(dim=1).tolist() == [200, 200]
        assert size[:, :3].tolist() == [[1, 1, 1]] * 2

    def test_everything_into_one(self, device, check_close):
        x, assign = draw(1, 41, 16), torch.zeros(1, 41, dtype=torch.int32)
        assign[:, 1::2] = torch.arange(1, 21)
        assign[:, 2::2] = 1
        merged, total = merge.merge_tokens(x.to(device), None, assign.to(device), 1, 20)
        assert total.tolist() == [[1, 21] + [1] * 19]
        expected = x[0, [1, *range(2, 41, 2)]].double().mean(dim=0)
        check_close(merged[0, 1], expected)

    @every_dtype
    def test_large_values_and_sizes(self, device, step_error, dtype):
        # 700 tokens worth 100.5 each: the sum passes 65504, and 700 is beyond bfloat16's whole numbers.
        x = torch.full((1, 4, 2), 100.5).to(dtype)
        size, assign = torch.tensor([[1.0, 400.0, 300.0, 1.0]]), torch.tensor([[0, 1, 1, 2]], dtype=torch.int32)
        merged, total = merge.merge_tokens(x.to(device), size.to(device), assign.to(device), 1, 1)
        assert total.tolist() == [[1, 700, 1]]
        equal(merged[:, ::2], x[:, ::2][:, :2])
        torch.testing.assert_close(merged.cpu(), x[:, :3], rtol=step_error(dtype), atol=0)

    @pytest.mark.parametrize("value", [torch.nan, torch.inf])
    @pytest.mark.parametrize("token", [0, 3, 6, 7, 20])
    def test_a_broken_token_stays_in_its_row(self, device, some_assign, value, token):
        x, size, assign = draw(1, 21, 16), draw_sizes(1, 21), some_assign(1, 21, 1, 6)
        clean, _ = merge.merge_tokens(x.to(device), size.to(device), assign.to(device), 1, 6)
        x[0, token, 3] = value
        merged, _ = merge.merge_tokens(x.to(device), size.to(device), assign.to(device), 1, 6)
        changed = (merged != clean)[0].cpu().nonzero().tolist()
        assert changed == [[int(assign[0, token]), 3]]

    @settings(max_examples=20, deadline=None, derandomize=True)
    @given(
        n_cls=st.integers(1, 13),
        patches=st.integers(2, 60),
        width=st.sampled_from([1, 5, 16, 33, 80]),
        seed=st.integers(0, 2**31 - 1),
        sized=st.booleans(),
        dtype=st.sampled_from(DTYPES),
        data=st.data(),
    )
    def test_any_shape(
        self, device, some_assign, merge_by_definition, step_error, n_cls, patches, width, seed, sized, dtype, data
    ):
        n_tokens = n_cls + patches
        r = data.draw(st.integers(1, (n_tokens + 1) // 2 - (n_cls + 1) // 2))
        x, size = draw(2, n_tokens, width, dtype=dtype, seed=seed), draw_sizes(2, n_tokens, seed=seed)
        assign = some_assign(2, n_tokens, n_cls, r, seed)
        merged, total = merge.merge_tokens(
            x.to(device), size.to(device) if sized else None, assign.to(device), n_cls, r
        )
        weights = size if sized else torch.ones(2, n_tokens)
        expected, magnitude, sizes = merge_by_definition(x, weights, assign, n_tokens - r)
        equal(total.double(), sizes)
        assert ((merged.cpu().double() - expected).abs() <= step_error(dtype) * magnitude).all()

    def test_strided_inputs(self, device, some_assign):
        x, size, assign = draw(2, 31, 12), draw_sizes(2, 31), some_assign(2, 31, 1, 7)
        expected = merge.merge_tokens(x.to(device), size.to(device), assign.to(device), 1, 7)
        wide = torch.full((2, 62, 24), torch.nan)
        wide[:, ::2, ::2] = x
        padded = torch.full((2, 40), torch.nan)
        padded[:, 5:36] = size
        columns = assign.t().contiguous().to(device).t()
        assert not columns.is_contiguous()
        views = [
            (wide.to(device)[:, ::2, ::2], padded.to(device)[:, 5:36]),
            (x.mT.contiguous().to(device).mT, size.t().contiguous().to(device).t()),
            (x.transpose(0, 1).contiguous().to(device).transpose(0, 1), size.to(device)),
        ]
        for view, sizes in views:
            for part, whole in zip(merge.merge_tokens(view, sizes, columns, 1, 7), expected, strict=True):
                equal(part, whole)

    def test_expanded_inputs(self, device, some_assign):
        x, size, assign = draw(1, 31, 12), draw_sizes(1, 1), some_assign(1, 31, 1, 7)
        spread = [t.to(device).expand(3, 31, *t.shape[2:]) for t in (x, size)]
        found = merge.merge_tokens(*spread, assign.to(device).expand(3, -1), 1, 7)
        for part, whole in zip(
            found,
            merge.merge_tokens(*(t.contiguous() for t in spread), assign.repeat(3, 1).to(device), 1, 7),
            strict=True,
        ):
            equal(part, whole)
        assert found[1].sum(dim=1).tolist() == [31 * size.item()] * 3

    def test_rows_of_the_batch_are_independent(self, device, some_assign):
        x, size, assign = (t.to(device) for t in (draw(5, 61, 64), draw_sizes(5, 61), some_assign(5, 61, 2, 17)))
        order = torch.tensor([3, 0, 1, 4, 2], device=device)
        whole = merge.merge_tokens(x, size, assign, 2, 17)
        permuted = merge.merge_tokens(x[order], size[order], assign[order], 2, 17)
        for part, expected in zip(permuted, whole, strict=True):
            equal(part, expected[order])

    def test_twice_is_the_same_and_the_inputs_stay(self, device, some_assign):
        inputs = [t.to(device) for t in (draw(2, 118, 768), draw_sizes(2, 118), some_assign(2, 118, 12, 35))]
        before = [tensor.clone() for tensor in inputs]
        for one, other in zip(merge.merge_tokens(*inputs, 12, 35), merge.merge_tokens(*inputs, 12, 35), strict=True):
            equal(one, other)
        for tensor, expected in zip(inputs, before, strict=True):
            equal(tensor, expected)

    def test_an_empty_batch(self, device):
        assign = torch.zeros(0, 21, dtype=torch.int32, device=device)
        merged, total = merge.merge_tokens(torch.zeros(0, 21, 4, device=device), None, assign, 2, 5)
        assert merged.shape == (0, 16, 4) and total.shape == (0, 16)

    @pytest.mark.parametrize("r", [0, -1, 24, 49])
    def test_r_beyond_what_there_is_to_merge(self, device, r):
        assign = torch.zeros(1, 49, dtype=torch.int32, device=device)
        with pytest.raises(ValueError, match=rf"r = {r} of 49 tokens .*\|A\| = 23"):
            merge.merge_tokens(draw(1, 49, 64).to(device), None, assign, 3, r)


class TestNorm:
    @pytest.fixture
    def composed(self, joined):
        """The merge part of merge_norm in float64: (merged, sizes), step by step as the spec tells."""

        def compose(x, delta, size, assign, position, factor, n_cls, r):
            x = x.double()
            if delta is not None:
                x = x + delta.double()
            if position is not None:
                x = torch.stack([clip + position[c % len(position)].double() for c, clip in enumerate(x)])
            size = torch.ones(x.shape[:2]) if size is None else size
            n_out = x.shape[1] * factor - r
            return merge_tokens_ref(joined(x, factor, n_cls), joined(size.double(), factor, n_cls), assign, n_out)

        return compose

    # Every step alone and all together, and all together in every shape and dtype.
    @pytest.mark.parametrize(
        "tokens, width, factor, n_cls, r, dtype, has",
        [(23, 80, 2, 2, 14, torch.float32, has) for has in ("", "delta", "size", "position")]
        + [(16, 64, 3, 12, 9, dtype, has) for dtype in DTYPES[1:] for has in ("", "delta")]
        + [
            (*shape, dtype, "delta size position")
            for shape in (
                (50, 64, 1, 1, 7),
                (25, 80, 2, 2, 14),
                (23, 64, 3, 12, 9),
                (9, 768, 3, 3, 9),
                (11, 1280, 2, 4, 8),
            )
            for dtype in DTYPES
        ],
    )
    def test_everything_in_one_pass(
        self,
        device,
        some_assign,
        check_close,
        norm_by_definition,
        composed,
        tokens,
        width,
        factor,
        n_cls,
        r,
        dtype,
        has,
    ):
        clips = 2 * factor
        x = draw(clips, tokens, width, dtype=dtype)
        delta = draw(clips, tokens, width, dtype=dtype, seed=7) if "delta" in has else None
        size = draw_sizes(clips, tokens) if "size" in has else None
        position = draw(factor, width, dtype=dtype, seed=8) if "position" in has else None
        weight, bias = draw(width, seed=9), draw(width, seed=10)
        assign = some_assign(clips // factor, tokens * factor, n_cls, r)
        tensors = [None if t is None else t.to(device) for t in (x, delta, size, assign, position, weight, bias)]
        merged, normed, total, log_size = merge.merge_norm(*tensors, factor, n_cls, r)
        expected, sizes = composed(x, delta, size, assign, position, factor, n_cls, r)
        assert merged.dtype == normed.dtype == dtype and total.dtype == log_size.dtype == torch.float32
        check_close(merged, expected)
        equal(total.double(), sizes)
        torch.testing.assert_close(log_size.cpu().double(), sizes.log(), rtol=2e-6, atol=0)
        check_close(normed, norm_by_definition(merged, weight, bias))

    def test_the_rest_is_as_merge_tokens_gives_it(self, device, some_assign):
        x, size, assign = (t.to(device) for t in (draw(2, 50, 64), draw_sizes(2, 50), some_assign(2, 50, 1, 7)))
        ones = torch.ones(64, device=device)
        merged, _, total, _ = merge.merge_norm(x, None, size, assign, None, ones, ones, 1, 1, 7)
        for part, expected in zip((merged, total), merge.merge_tokens(x, size, assign, 1, 7), strict=True):
            equal(part, expected)

    @every_dtype
    def test_unmerged_tokens_are_rounded_sums(self, device, some_assign, joined, dtype):
        x, delta = draw(2, 20, 64, dtype=dtype), draw(2, 20, 64, dtype=dtype, seed=7)
        assign, ones = some_assign(1, 40, 2, 9), torch.ones(64, device=device)
        merged = merge.merge_norm(x.to(device), delta.to(device), None, assign.to(device), None, ones, ones, 2, 2, 9)[0]
        alone = torch.bincount(assign[0])[assign[0]] == 1
        total = joined((x.float() + delta.float()).to(dtype), 2, 2)
        assert alone.sum() >= 15
        equal(merged[0].cpu()[assign[0][alone]], total[0][alone])

    # A different row of positions for every clip of a video; the next video starts again.
    @pytest.mark.parametrize("n_positions", [1, 2, 3, 6])
    @pytest.mark.parametrize("factor", [1, 2, 3])
    def test_clip_positions_go_round(self, device, some_assign, check_close, composed, factor, n_positions):
        x, position = draw(6, 9, 16), 10 * draw(n_positions, 16, seed=7)
        assign, ones = some_assign(6 // factor, 9 * factor, factor, 3), torch.ones(16, device=device)
        merged = merge.merge_norm(
            x.to(device), None, None, assign.to(device), position.to(device), ones, ones, factor, factor, 3
        )[0]
        check_close(merged, composed(x, None, None, assign, position, factor, factor, 3)[0])

    def test_strides(self, device, some_assign, check_close):
        shape, assign = (4, 15, 24), some_assign(2, 30, 2, 9).to(device)
        x, delta, size = draw(*shape), draw(*shape, seed=7), draw_sizes(4, 15)
        weight, bias, position = draw(24, seed=8), draw(24, seed=9), draw(2, 24, seed=10)
        tensors = [t.to(device) for t in (x, delta, size)]
        rest = [t.to(device) for t in (position, weight, bias)]
        expected = merge.merge_norm(*tensors, assign, *rest, 2, 2, 9)
        wide = torch.full((4, 30, 60), torch.nan)
        wide[:, ::2, 3:51:2] = x
        strided = [
            wide.to(device)[:, ::2, 3:51:2],
            delta.mT.contiguous().to(device).mT,
            size.t().contiguous().to(device).t(),
        ]
        loose = [torch.stack([t, t], dim=-1)[..., 0] for t in rest]
        assert not any(t.is_contiguous() for t in (*strided, *loose))
        found = merge.merge_norm(*strided, assign, *loose, 2, 2, 9)
        for k in (0, 2, 3):
            equal(found[k], expected[k])
        check_close(found[1], expected[1].double())  # a GPU sums other layouts in another order

    @pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
    def test_half_precision_parameters(self, device, some_assign, check_close, norm_by_definition, dtype):
        x, assign = draw(2, 20, 64, dtype=dtype), some_assign(2, 20, 1, 4)
        weight, bias = draw(64, dtype=dtype, seed=7), draw(64, dtype=dtype, seed=8)
        tensors = [t.to(device) for t in (assign, weight, bias)]
        merged, normed, _, _ = merge.merge_norm(x.to(device), None, None, tensors[0], None, *tensors[1:], 1, 1, 4)
        check_close(normed, norm_by_definition(merged, weight, bias))

    @pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
    def test_the_norm_is_that_of_the_rounded_sum(self, device, check_close, norm_by_definition, dtype):
        # Neighbours of this dtype: their mean, and their sum with 1, lies half a step off, and steps are all there is.
        low, step = (2048.0, 2.0) if dtype == torch.float16 else (256.0, 2.0)
        x = low + step * torch.randint(0, 3, (1, 4, 64), generator=torch.Generator().manual_seed(42)).to(dtype)
        delta, ones, none = torch.ones_like(x), torch.ones(64), torch.zeros(64)
        assign = torch.tensor([[0, 1, 1, 2]], dtype=torch.int32)
        tensors = [t.to(device) for t in (x, delta, assign, ones, none)]
        merged, normed, _, _ = merge.merge_norm(tensors[0], None, None, tensors[2], None, *tensors[3:], 1, 1, 1)
        assert (merged[0, 1].cpu().double() != x[0, 1:3].double().mean(dim=0)).any(), "rounded"
        check_close(normed, norm_by_definition(merged, ones, none))
        out, normed = merge.add_norm(tensors[0], tensors[1], *tensors[3:])
        assert (out.cpu().double() != x.double() + 1).all(), "rounded"
        check_close(normed, norm_by_definition(out, ones, none))

    def test_a_constant_row_becomes_the_bias(self, device, some_assign):
        x, assign, bias = torch.full((1, 10, 64), 3.0), some_assign(1, 10, 1, 2), draw(64)
        weight = torch.ones(64, device=device)
        normed = merge.merge_norm(x.to(device), None, None, assign.to(device), None, weight, bias.to(device), 1, 1, 2)[
            1
        ]
        equal(normed, bias.expand(1, 8, 64))

    def test_twice_is_the_same(self, device, some_assign):
        x, assign = draw(4, 25, 768).to(device), some_assign(2, 50, 2, 15).to(device)
        weight = draw(768, seed=7).to(device)
        one, other = (merge.merge_norm(x, x, None, assign, None, weight, weight, 2, 2, 15) for _ in range(2))
        for part, expected in zip(one, other, strict=True):
            equal(part, expected)


class TestTiles:
    # 39 rows, |A| = 25: no multiple of any block, several of each.
    @pytest.mark.parametrize(
        "config",
        [RowsConfig(1, 64, 1), RowsConfig(4, 16, 4), RowsConfig(16, 32, 4), RowsConfig(32, 16, 4)],
        ids=lambda c: f"{c.block_rows}-{c.block_a}",
    )
    def test_do_not_matter(self, device, some_assign, check_close, config):
        n_tokens, n_cls, r = 53, 3, 14
        x, size, assign = draw(1, n_tokens, 80), draw_sizes(1, n_tokens), some_assign(1, n_tokens, n_cls, r)
        merged, total = merge.merge_tokens(x.to(device), size.to(device), assign.to(device), n_cls, r, config)
        expected, sizes = merged_by_reference(x, size, assign, n_tokens - r)
        check_close(merged, expected)
        equal(total.double(), sizes)

    @pytest.mark.parametrize("width", [64, 1280])
    def test_that_ship(self, device, shipped_tiles, some_assign, check_close, norm_by_definition, width):
        x, size, assign = draw(1, 21, width), draw_sizes(1, 21), some_assign(1, 21, 1, 7)
        weight, bias = draw(width, seed=7), draw(width, seed=8)
        tensors = [t.to(device) for t in (size, assign, weight, bias)]
        merged, normed, total, _ = merge.merge_norm(x.to(device), None, *tensors[:2], None, *tensors[2:], 1, 1, 7)
        expected, sizes = merged_by_reference(x, size, assign, 14)
        check_close(merged, expected)
        equal(total.double(), sizes)
        check_close(normed, norm_by_definition(merged, weight, bias))
        check_close(merge.layer_norm(*(t.to(device) for t in (x, weight, bias))), norm_by_definition(x, weight, bias))


class TestAddNorm:
    @every_dtype
    @pytest.mark.parametrize(
        "rows, n_tokens, width", [(1, 1, 1), (3, 7, 80), (2, 50, 64), (2, 9, 768), (1, 65, 1024), (2, 3, 1280)]
    )
    def test_the_sum_and_its_norm(self, device, check_close, norm_by_definition, rows, n_tokens, width, dtype):
        x, delta = draw(rows, n_tokens, width, dtype=dtype), draw(rows, n_tokens, width, dtype=dtype, seed=7)
        weight, bias = draw(width, seed=8), draw(width, seed=9)
        out, normed = merge.add_norm(*(t.to(device) for t in (x, delta, weight, bias)))
        assert out.dtype == normed.dtype == dtype
        equal(out, (x.float() + delta.float()).to(dtype))
        check_close(normed, norm_by_definition(out, weight, bias))
        normed = merge.layer_norm(*(t.to(device) for t in (x, weight, bias)))
        assert normed.dtype == dtype
        check_close(normed, norm_by_definition(x, weight, bias))

    @pytest.mark.parametrize("mean", [0, 500, -4000])
    def test_statistics_stand_a_large_mean(self, device, check_close, norm_by_definition, mean):
        # Whole numbers around a mean that is exact (1024 divides exactly): only the mean of squares would lose them.
        half = draw(2, 5, 512).mul(8).round()
        x, weight, bias = mean + torch.cat([half, -half], dim=-1), torch.ones(1024), torch.zeros(1024)
        found = merge.layer_norm(*(t.to(device) for t in (x, weight, bias)))
        check_close(found, norm_by_definition(x, weight, bias))

    def test_strides(self, device, check_close):
        x, delta = draw(3, 8, 24), draw(3, 8, 24, seed=7)
        weight, bias = draw(24, seed=8).to(device), draw(24, seed=9).to(device)
        wide = torch.full((3, 16, 60), torch.nan)
        wide[:, ::2, 3:51:2] = x
        strided = wide.to(device)[:, ::2, 3:51:2]
        others = [delta.mT.contiguous().to(device).mT, delta.transpose(0, 1).contiguous().to(device).transpose(0, 1)]
        others.append(delta[:, :1].to(device).expand(-1, 8, -1))
        for other in others:
            total, normed = merge.add_norm(x.to(device), other.contiguous(), weight, bias)
            out, found = merge.add_norm(strided, other, weight, bias)
            equal(out, total)
            check_close(found, normed.double())  # a GPU sums other layouts in another order
        found = merge.layer_norm(strided[:, :2], weight, bias)
        check_close(found, merge.layer_norm(x.to(device), weight, bias)[:, :2].double())

    def test_a_broken_row_stays_alone(self, device):
        x = draw(2, 5, 80)
        x[1, 2, 7] = torch.nan
        weight = torch.ones(80, device=device)
        for part in merge.add_norm(x.to(device), x.to(device), weight, weight):
            broken = part.isnan().any(dim=-1).nonzero().tolist()
            assert broken == [[1, 2]]

    @pytest.mark.parametrize("rows", [1, 4, 32])
    def test_tiles_do_not_matter(self, device, check_close, norm_by_definition, rows):
        x, delta, weight = draw(3, 15, 80).to(device), draw(3, 15, 80, seed=7).to(device), draw(80, seed=8).to(device)
        config = RowsConfig(rows, 16, num_warps=1)
        found, expected = merge.add_norm(x, delta, weight, weight, config), merge.add_norm(x, delta, weight, weight)
        equal(found[0], expected[0])
        for _, normed in (found, expected):
            check_close(normed, norm_by_definition(expected[0], weight, weight))

    def test_nothing_in_nothing_out(self, device):
        weight = torch.ones(8, device=device)
        for shape in ((0, 5, 8), (2, 0, 8)):
            x = torch.zeros(shape, device=device)
            assert [part.shape for part in merge.add_norm(x, x, weight, weight)] == [shape, shape]
            assert merge.layer_norm(x, weight, weight).shape == shape
