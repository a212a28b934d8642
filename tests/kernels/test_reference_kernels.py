"""The reference against the words of the spec, in whole numbers where there are ties."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tempme_export.kernels import SNAP_STEPS
from tempme_export.kernels.reference import (
    decision_gap_ref,
    match_tokens_ref,
    merge_tokens_ref,
    scores_ref,
    split_ab,
)

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

# Both parities of N and n_cls, r = 1 and r = |A|; the widths of a head and of ViT-B, and odd ones.
SHAPES = [
    # N, C, n_cls, r
    (50, 64, 1, 2),
    (49, 64, 1, 24),
    (48, 768, 2, 23),
    (117, 63, 12, 1),
    (118, 64, 12, 53),
    (62, 768, 4, 29),
    (9, 5, 3, 3),
    (4, 64, 2, 1),
    (3, 1, 1, 1),
]


def test_split_ab():
    for n_cls, a, b in ((1, [2, 4, 6], [1, 3, 5]), (2, [2, 4, 6], [3, 5]), (3, [4, 6], [3, 5])):
        set_a, set_b = split_ab(7, n_cls)
        assert (set_a.tolist(), set_b.tolist()) == (a, b)


def test_scores_are_snapped_half_to_even():
    steps = torch.tensor([0.5, 1.5, 2.5, 2.75, -0.5, 700_000.3])
    cosine = (steps / SNAP_STEPS).double()
    metric = torch.zeros(6, 3, 2, dtype=torch.float64)
    metric[:, 1, 0] = 1
    metric[:, 2] = torch.stack([cosine, (1 - cosine**2).sqrt()], dim=-1)
    scores = scores_ref(metric, 1)[:, 0, 0] * SNAP_STEPS
    assert scores.dtype == torch.float32
    assert scores.tolist() == [0, 2, 2, 3, 0, 700_000]


@pytest.mark.parametrize("n_tokens, width, n_cls, r", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_random(check_assign, check_optimal, n_tokens, width, n_cls, r, dtype):
    torch.manual_seed(42)
    metric = torch.randn(3, n_tokens, width).to(dtype)
    assign = match_tokens_ref(metric, n_cls, r)
    check_assign(assign, n_tokens, n_cls, r)
    check_optimal(metric, assign, n_cls, r)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_ties_follow_the_definition(tied_cases, match_by_definition, check_assign, data):
    case = data.draw(tied_cases(DTYPES))
    assign = match_tokens_ref(case.metric, case.n_cls, case.r)
    check_assign(assign, case.n_tokens, case.n_cls, case.r)
    torch.testing.assert_close(assign, match_by_definition(case), rtol=0, atol=0)


@pytest.mark.parametrize("n_cls", [1, 2])
def test_all_equal(n_cls):
    assign = match_tokens_ref(torch.ones(2, 10, 8), n_cls, 2)
    # The two lowest A tokens join the first of B.
    expected = {1: [0, 3, 3, 4, 3, 5, 1, 6, 2, 7], 2: [0, 1, 4, 4, 4, 5, 2, 6, 3, 7]}[n_cls]
    assert assign.tolist() == [expected, expected]


def test_r_zero_is_the_identity():
    assign = match_tokens_ref(torch.randn(2, 7, 4), 1, 0)
    assert assign.dtype == torch.int32 and assign.tolist() == [list(range(7))] * 2
    x, size = torch.randn(2, 7, 5), torch.rand(2, 7) + 1
    merged, total = merge_tokens_ref(x, size, assign, 7)
    torch.testing.assert_close(total, size, rtol=0, atol=0)
    torch.testing.assert_close(merged, x, rtol=torch.finfo(torch.float32).eps, atol=0)  # times a size, divided by it


@pytest.mark.parametrize("scale", [1.0, 1 + 1e-6, 1e-3, 1e4])
def test_scale_of_the_metric_does_not_matter(scale):
    torch.manual_seed(42)
    metric = torch.randn(4, 31, 16)
    assert (decision_gap_ref(metric, 1, 7) > 1e-5).all()
    torch.testing.assert_close(match_tokens_ref(metric * scale, 1, 7), match_tokens_ref(metric, 1, 7))


def test_duplicates_that_differ_by_an_ulp_tie():
    torch.manual_seed(42)
    token = torch.randn(1, 1, 64)
    noise = 1 + 6e-8 * torch.randint(-2, 3, (200, 21, 64))
    exact = match_tokens_ref(token.expand(1, 21, 64), 1, 5)
    torch.testing.assert_close(match_tokens_ref(token * noise, 1, 5), exact.expand(200, -1), rtol=0, atol=0)


class TestDegenerate:
    def test_zero_norm_scores_zero(self):
        metric = torch.tensor([[[9.0, 9], [1, 0], [0, 0], [-1, 0], [-1, -1]]])
        scores = scores_ref(metric, 1)[0]
        assert scores[0].tolist() == [0, 0], "the zero token, against both"
        assert scores[1].tolist() == pytest.approx([-(0.5**0.5), 0.5**0.5], abs=0.5001 / SNAP_STEPS)
        assert match_tokens_ref(metric, 1, 1).tolist() == [[0, 2, 1, 3, 3]]

    def test_zero_beats_negative(self):
        metric = torch.tensor([[[9.0, 9], [1, 0], [-1, 0], [0, 0], [0, 0]]])
        # Token 2 is opposite to token 1 and indifferent to token 3; token 4 is indifferent to both.
        assert match_tokens_ref(metric, 1, 2).tolist() == [[0, 1, 2, 2, 1]]

    def test_nan_ranks_below_every_number(self):
        metric = torch.tensor([[[9.0, 9], [1, 0], [torch.nan, 0], [-1, 0], [-1, 0.01], [0, 1], [1, 0.01]]])
        assert scores_ref(metric, 1)[0, 0].tolist() == [-torch.inf] * 3
        assert match_tokens_ref(metric, 1, 2).tolist() == [[0, 2, 1, 3, 3, 4, 2]]

    def test_nan_in_set_b_is_never_chosen_first(self):
        metric = torch.tensor([[[9.0, 9], [torch.nan, 0], [1, 0], [-1, 0]]])
        assert match_tokens_ref(metric, 1, 1).tolist() == [[0, 1, 2, 2]]

    @pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
    @pytest.mark.parametrize("r", [1, 4, 9])
    def test_everything_broken_stays_in_bounds(self, check_assign, value, r):
        metric = torch.full((2, 20, 8), value)
        assign = match_tokens_ref(metric, 1, r)
        check_assign(assign, 20, 1, r)
        assert assign[0, 2] == 20 - r - 10, "the first A joins the first B"


class TestDecisionGap:
    def metric(self, *cosines):
        """One class token, then B, A, B, A, ... at these cosines to one direction, in the plane."""
        cosine = torch.tensor(cosines, dtype=torch.float64)
        return torch.stack([cosine, (1 - cosine**2).sqrt()], dim=-1)[None]

    def test_of_the_choice_of_b(self):
        metric = self.metric(0, 1.0, 1.0, 0.75)
        # A (token 2) sees B at 1 and 0.75.
        torch.testing.assert_close(decision_gap_ref(metric, 1, 1), torch.tensor([0.25]), rtol=0, atol=0)

    def test_of_who_merges(self):
        metric = self.metric(0, 1.0, 0.9, -1.0, 0.5)
        expected = torch.tensor([0.9 - 0.5])
        torch.testing.assert_close(decision_gap_ref(metric, 1, 1), expected, rtol=0, atol=1.0001 / SNAP_STEPS)

    def test_no_choice(self):
        assert decision_gap_ref(self.metric(0, 1.0, 0.9), 1, 1).tolist() == [torch.inf]

    def test_exact_ties_are_decided_by_the_rule(self):
        assert decision_gap_ref(torch.ones(3, 10, 4), 1, 2).tolist() == [torch.inf] * 3
        metric = self.metric(0, 1.0, 1.0, 1.0, 0.5)
        expected = torch.tensor([0.5])  # token 2 merges before token 4
        torch.testing.assert_close(decision_gap_ref(metric, 1, 1), expected, rtol=0, atol=0)


class TestMerge:
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("n_tokens, width, n_cls, r", SHAPES)
    def test_weighted_average(self, merge_by_definition, step_error, n_tokens, width, n_cls, r, dtype):
        torch.manual_seed(42)
        x = torch.randn(2, n_tokens, width).to(dtype)
        size = torch.randint(1, 60, (2, n_tokens)).to(torch.promote_types(dtype, torch.float32))
        assign = match_tokens_ref(x, n_cls, r)
        merged, total = merge_tokens_ref(x, size, assign, n_tokens - r)
        assert merged.dtype == dtype and total.dtype == size.dtype
        expected, magnitude, sizes = merge_by_definition(x, size, assign, n_tokens - r)
        torch.testing.assert_close(total.double(), sizes, rtol=0, atol=0)
        assert ((merged.double() - expected).abs() <= step_error(dtype) * magnitude).all()

    def test_conservation(self, sum_error):
        torch.manual_seed(42)
        x, size = torch.randn(2, 118, 64).double(), torch.randint(1, 9, (2, 118)).double()
        merged, total = merge_tokens_ref(x, size, match_tokens_ref(x, 12, 35), 83)
        torch.testing.assert_close(total.sum(1), size.sum(1), rtol=0, atol=0)
        before, after = ((t * s.unsqueeze(-1)).sum(1) for t, s in ((x, size), (merged, total)))
        magnitude = (x.abs() * size.unsqueeze(-1)).sum(1)  # a token is summed with what joins it, then with the rest
        assert ((after - before).abs() <= 2 * sum_error(118, torch.float64) * magnitude).all()

    def test_large_values_in_half_precision(self):
        # 700 tokens worth 100.5 each: the sum passes 65504, and 700 is beyond bfloat16's whole numbers.
        x = torch.full((1, 4, 2), 100.5, dtype=torch.float16)
        size = torch.tensor([[1.0, 400.0, 300.0, 1.0]])
        merged, total = merge_tokens_ref(x, size, torch.tensor([[0, 1, 1, 2]], dtype=torch.int32), 3)
        assert total.tolist() == [[1, 700, 1]] and (merged == 100.5).all()


def test_memory_is_poisoned_in_these_tests():
    assert torch.empty(3).isnan().all() and torch.zeros(2).new_empty(2, 2).isnan().all()
    assert (torch.empty_like(torch.zeros(2, dtype=torch.int32)).abs() > 1000).all()
