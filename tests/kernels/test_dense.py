"""The CPU and ONNX body against the definition, the reference, and what any correct merge keeps."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tempme_export.kernels import dense
from tempme_export.kernels.reference import decision_gap_ref, match_tokens_ref, merge_tokens_ref

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

# Both parities of N and n_cls and their four combinations; the widths of a head and of ViT-B, and odd ones;
# |A| above, equal to and below |B|; the smallest there are.
SHAPES = [
    # N, C, n_cls
    (50, 64, 1),
    (49, 64, 1),
    (48, 768, 2),
    (47, 63, 2),
    (117, 63, 12),
    (118, 64, 12),
    (62, 768, 4),
    (33, 127, 5),
    (9, 5, 3),
    (4, 64, 2),
    (3, 1, 1),
]


def count_a(n_tokens, n_cls):
    return len(range(n_cls + n_cls % 2, n_tokens, 2))


def some_r(n_tokens, n_cls):
    """1, |A| and what lies a third and two thirds between."""
    available = count_a(n_tokens, n_cls)
    return sorted({1, max(1, available // 3), max(1, 2 * available // 3), available})


CASES = [(n, c, n_cls, r) for n, c, n_cls in SHAPES for r in some_r(n, n_cls)]
every_case = pytest.mark.parametrize("n_tokens, width, n_cls, r", CASES)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def equal(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def merge_inputs(n_tokens, width, n_cls, r, dtype, rows=2):
    """x, sizes as merges leave them (whole numbers, some large), and an assignment by x itself."""
    torch.manual_seed(42)
    x = torch.randn(rows, n_tokens, width).to(dtype)
    size = torch.randint(1, 60, (rows, n_tokens)).to(torch.promote_types(dtype, torch.float32))
    return x, size, match_tokens_ref(x, n_cls, r)


class TestMatch:
    @every_case
    @every_dtype
    def test_random(self, check_assign, check_optimal, n_tokens, width, n_cls, r, dtype):
        torch.manual_seed(42)
        metric = torch.randn(3, n_tokens, width).to(dtype)
        assign = dense.match_tokens(metric, n_cls, r)
        check_assign(assign, n_tokens, n_cls, r)
        check_optimal(metric, assign, n_cls, r)

    @every_case
    def test_the_decisions_of_the_reference(self, n_tokens, width, n_cls, r):
        torch.manual_seed(42)
        metric = torch.randn(8, n_tokens, width)
        clear = decision_gap_ref(metric, n_cls, r) > 4 * 2**-20
        assert clear.sum() >= 6, "these inputs are meant to be clear"
        equal(dense.match_tokens(metric, n_cls, r)[clear], match_tokens_ref(metric, n_cls, r)[clear])

    @settings(max_examples=250, deadline=None)
    @given(data=st.data())
    def test_ties_follow_the_definition(self, tied_cases, match_by_definition, check_assign, data):
        case = data.draw(tied_cases(DTYPES))
        assign = dense.match_tokens(case.metric, case.n_cls, case.r)
        check_assign(assign, case.n_tokens, case.n_cls, case.r)
        equal(assign, match_by_definition(case))
        equal(assign, match_tokens_ref(case.metric, case.n_cls, case.r))

    @settings(max_examples=100, deadline=None)
    @given(
        n_cls=st.integers(1, 13),
        patches=st.integers(2, 70),
        width=st.integers(1, 80),
        seed=st.integers(0, 2**32 - 1),
        data=st.data(),
    )
    def test_any_shape(self, check_assign, check_optimal, n_cls, patches, width, seed, data):
        n_tokens = n_cls + patches
        r = data.draw(st.integers(1, count_a(n_tokens, n_cls)))
        generator = torch.Generator().manual_seed(seed)
        metric = torch.randn(2, n_tokens, width, generator=generator)
        assign = dense.match_tokens(metric, n_cls, r)
        check_assign(assign, n_tokens, n_cls, r)
        check_optimal(metric, assign, n_cls, r)

    @pytest.mark.parametrize("n_cls", [1, 2])
    def test_all_equal(self, n_cls):
        # The two lowest A tokens join the first of B.
        expected = {1: [0, 3, 3, 4, 3, 5, 1, 6, 2, 7], 2: [0, 1, 4, 4, 4, 5, 2, 6, 3, 7]}[n_cls]
        torch.manual_seed(42)
        for token in (torch.ones(1, 1, 8), torch.randn(2, 1, 768), torch.zeros(1, 1, 64)):
            assign = dense.match_tokens(token.repeat(1, 10, 1), n_cls, 2)
            assert assign.tolist() == [expected] * len(token)

    # Joined clips of a frozen video. With an odd number of patches a patch meets its equal in the other set, at
    # cosine 1 but for rounding; with an even one it meets two equal strangers.
    @pytest.mark.parametrize("patches", [15, 16])
    @pytest.mark.parametrize("width", [64, 768, 1024, 1280])
    @pytest.mark.parametrize("frames", [2, 3])
    @pytest.mark.parametrize("outlier", [1.0, 60.0, 200.0])
    def test_frozen_frames_follow_the_reference(self, width, frames, patches, outlier):
        torch.manual_seed(42)
        frame = torch.randn(20, patches, width)
        frame[..., 5] *= outlier
        metric = torch.cat([torch.randn(20, frames, width), frame.repeat(1, frames, 1)], dim=1)
        for r in (1, 7 * frames // 2, 7 * frames):
            equal(dense.match_tokens(metric, frames, r), match_tokens_ref(metric, frames, r))

    def test_duplicates_that_differ_by_an_ulp_tie(self):
        torch.manual_seed(42)
        token = torch.randn(1, 1, 64)
        noise = 1 + 6e-8 * torch.randint(-2, 3, (200, 21, 64))
        exact = dense.match_tokens(token.expand(1, 21, 64), 1, 5)
        equal(dense.match_tokens(token * noise, 1, 5), exact.expand(200, -1))

    @pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 0.0])
    @pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
    @pytest.mark.parametrize("n_cls", [1, 4])
    def test_broken_tokens_stay_in_bounds_and_follow_the_reference(self, check_assign, value, share, n_cls):
        torch.manual_seed(42)
        # Well apart in the plane, so that nothing but the broken tokens is in question.
        angle = torch.rand(6, 24, 1) * 6.28
        metric = torch.cat([angle.cos(), angle.sin()], dim=-1)
        broken = torch.rand(6, 24) < share
        metric[broken] = value
        for r in some_r(24, n_cls):
            assign = dense.match_tokens(metric, n_cls, r)
            check_assign(assign, 24, n_cls, r)
            equal(assign, match_tokens_ref(metric, n_cls, r))

    def test_a_single_broken_channel_breaks_its_token_only(self):
        torch.manual_seed(42)
        metric = torch.randn(1, 21, 16)
        metric[0, 6, 3] = torch.nan
        assign = dense.match_tokens(metric, 1, 9)
        equal(assign, match_tokens_ref(metric, 1, 9))
        assert assign[0, 6] == 1, "the one A that stays"

    def test_strided_metrics(self):
        torch.manual_seed(42)
        metric = torch.randn(2, 31, 12)
        expected = dense.match_tokens(metric, 1, 7)
        wide = torch.full((2, 62, 24), 9.0)
        wide[:, ::2, ::2] = metric
        swapped = metric.transpose(0, 1).contiguous().transpose(0, 1)
        for view in (wide[:, ::2, ::2], metric.mT.contiguous().mT, swapped):
            assert not view.is_contiguous()
            equal(dense.match_tokens(view, 1, 7), expected)
        equal(dense.match_tokens(metric[:1].expand(4, -1, -1), 1, 7), expected[:1].expand(4, -1))

    def test_rows_of_the_batch_are_independent(self):
        torch.manual_seed(42)
        metric = torch.randn(7, 61, 64)
        order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
        whole = dense.match_tokens(metric, 2, 17)
        equal(dense.match_tokens(metric[order], 2, 17), whole[order])
        for i in range(7):
            equal(dense.match_tokens(metric[i : i + 1], 2, 17), whole[i : i + 1])

    def test_class_tokens_do_not_matter(self):
        torch.manual_seed(42)
        metric = torch.randn(2, 30, 16)
        expected = dense.match_tokens(metric, 4, 7)
        metric[:, :4] = torch.nan
        equal(dense.match_tokens(metric, 4, 7), expected)

    @pytest.mark.parametrize("threads", [1, 2])
    def test_twice_is_the_same(self, threads):
        torch.manual_seed(42)
        metric = torch.randn(4, 118, 768)
        torch.set_num_threads(threads)
        try:
            equal(dense.match_tokens(metric, 12, 35), dense.match_tokens(metric, 12, 35))
        finally:
            torch.set_num_threads(1)

    def test_the_input_is_left_alone(self):
        torch.manual_seed(42)
        metric = torch.randn(2, 21, 8)
        before = metric.clone()
        dense.match_tokens(metric, 1, 5)
        equal(metric, before)


class TestMerge:
    @every_case
    @every_dtype
    def test_weighted_average(self, merge_by_definition, step_error, n_tokens, width, n_cls, r, dtype):
        x, size, assign = merge_inputs(n_tokens, width, n_cls, r, dtype)
        merged, total = dense.merge_tokens(x, size, assign, n_cls, r)
        assert merged.shape == (2, n_tokens - r, width) and merged.dtype == dtype
        assert total.dtype == size.dtype
        expected, magnitude, sizes = merge_by_definition(x, size, assign, n_tokens - r)
        equal(total.double(), sizes)
        assert ((merged.double() - expected).abs() <= step_error(dtype) * magnitude).all()

    @every_case
    def test_without_sizes_every_token_counts_once(self, merge_by_definition, step_error, n_tokens, width, n_cls, r):
        x, _, assign = merge_inputs(n_tokens, width, n_cls, r, torch.float32)
        merged, total = dense.merge_tokens(x, None, assign, n_cls, r)
        expected, magnitude, sizes = merge_by_definition(x, torch.ones(2, n_tokens), assign, n_tokens - r)
        assert total.dtype == torch.float32
        equal(total.double(), sizes)
        assert ((merged.double() - expected).abs() <= step_error(x.dtype) * magnitude).all()

    @every_case
    @every_dtype
    @pytest.mark.parametrize("sized", [True, False])
    def test_unmerged_tokens_are_exact_copies(self, n_tokens, width, n_cls, r, dtype, sized):
        x, size, assign = merge_inputs(n_tokens, width, n_cls, r, dtype)
        merged, total = dense.merge_tokens(x, size if sized else None, assign, n_cls, r)
        copies = 0
        for item in range(len(x)):
            count = torch.bincount(assign[item], minlength=n_tokens - r)
            for token, row in enumerate(assign[item].tolist()):
                if count[row] == 1:
                    equal(merged[item, row], x[item, token])
                    equal(total[item, row], size[item, token] if sized else torch.ones_like(total[0, 0]))
                    copies += 1
        assert copies >= 2 * n_cls

    @settings(max_examples=100, deadline=None)
    @given(data=st.data(), seed=st.integers(0, 2**32 - 1), sized=st.booleans())
    def test_ties_merge_like_the_reference(self, tied_cases, step_error, data, seed, sized):
        case = data.draw(tied_cases())
        generator = torch.Generator().manual_seed(seed)
        assign = match_tokens_ref(case.metric, case.n_cls, case.r)
        x = torch.randn(*case.metric.shape[:2], 7, generator=generator)
        size = torch.randint(1, 99, x.shape[:2], generator=generator).float() if sized else None
        merged, total = dense.merge_tokens(x, size, assign, case.n_cls, case.r)
        weights = torch.ones(x.shape[:2]) if size is None else size
        expected, sizes = merge_tokens_ref(x, weights, assign, case.n_tokens - case.r)
        equal(total, sizes)
        torch.testing.assert_close(merged, expected, rtol=0, atol=step_error(x.dtype) * x.abs().max().item())

    @pytest.mark.parametrize("n_tokens, width, n_cls", SHAPES)
    def test_conservation(self, step_error, n_tokens, width, n_cls):
        r = count_a(n_tokens, n_cls)
        x, size, assign = merge_inputs(n_tokens, width, n_cls, r, torch.float32)
        merged, total = dense.merge_tokens(x, size, assign, n_cls, r)
        equal(total.sum(dim=1), size.sum(dim=1))
        before, after = ((t * s.unsqueeze(-1)).double() for t, s in ((x, size), (merged, total)))
        error = (after.sum(dim=1) - before.sum(dim=1)).abs()
        assert (error <= step_error(x.dtype) * before.abs().sum(dim=1)).all()

    def test_sizes_add_up_over_many_merges(self):
        torch.manual_seed(42)
        x, size = torch.randn(2, 400, 8), None
        while x.shape[1] > 7:
            r = count_a(x.shape[1], 3)
            x, size = dense.merge_tokens(x, size, dense.match_tokens(x, 3, r), 3, r)
        assert size.sum(dim=1).tolist() == [400, 400]
        assert size[:, :3].tolist() == [[1, 1, 1]] * 2

    def test_everything_into_one(self, step_error):
        torch.manual_seed(42)
        x = torch.randn(1, 41, 16)
        x[:, 1:] = x[:, 1:2]
        assign = dense.match_tokens(x, 1, 20)
        merged, total = dense.merge_tokens(x, None, assign, 1, 20)
        assert total.tolist() == [[1, 21] + [1] * 19]
        torch.testing.assert_close(merged, x[:, :21], rtol=step_error(x.dtype), atol=0)

    @every_dtype
    def test_large_values_and_sizes(self, step_error, dtype):
        # 700 tokens worth 100.5 each: the sum passes 65504, and 700 is beyond bfloat16's whole numbers.
        x = torch.full((1, 4, 2), 100.5).to(dtype)
        size = torch.tensor([[1.0, 400.0, 300.0, 1.0]], dtype=torch.promote_types(dtype, torch.float32))
        merged, total = dense.merge_tokens(x, size, torch.tensor([[0, 1, 1, 2]], dtype=torch.int32), 1, 1)
        assert total.tolist() == [[1, 700, 1]]
        torch.testing.assert_close(merged, x[:, :3], rtol=step_error(dtype), atol=0)

    def test_strided_inputs(self, merge_by_definition, step_error):
        x, size, assign = merge_inputs(31, 12, 1, 7, torch.float32)
        expected, magnitude, sizes = merge_by_definition(x, size, assign, 24)
        wide = torch.full((2, 62, 24), torch.nan)
        wide[:, ::2, ::2] = x
        padded = torch.full((2, 40), torch.nan)
        padded[:, 5:36] = size
        columns = assign.t().contiguous().t()
        merged, total = dense.merge_tokens(wide[:, ::2, ::2], padded[:, 5:36], columns, 1, 7)
        assert not columns.is_contiguous()
        assert ((merged.double() - expected).abs() <= step_error(torch.float32) * magnitude).all()
        equal(total.double(), sizes)

    def test_rows_of_the_batch_are_independent(self):
        x, size, assign = merge_inputs(61, 64, 2, 17, torch.float32, rows=5)
        order = torch.tensor([3, 0, 1, 4, 2])
        whole = dense.merge_tokens(x, size, assign, 2, 17)
        permuted = dense.merge_tokens(x[order], size[order], assign[order], 2, 17)
        for part, expected in zip(permuted, whole, strict=True):
            equal(part, expected[order])

    def test_twice_is_the_same(self):
        inputs = merge_inputs(118, 768, 12, 35, torch.float32)
        for one, other in zip(dense.merge_tokens(*inputs, 12, 35), dense.merge_tokens(*inputs, 12, 35), strict=True):
            equal(one, other)

    def test_the_inputs_are_left_alone(self):
        inputs = merge_inputs(21, 8, 1, 5, torch.float32)
        before = [tensor.clone() for tensor in inputs]
        dense.merge_tokens(*inputs, 1, 5)
        for tensor, expected in zip(inputs, before, strict=True):
            equal(tensor, expected)
