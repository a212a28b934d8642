"""Matching in C++: decisions equal the reference's, at every level, order and precision."""

import pytest
import torch

from tempme_export.kernels import dense_block
from tempme_export.kernels.reference import match_tokens_ref, scores_ref

# Both parities of N and n_cls; widths of a head, of a block and odd ones; |A| above, equal to and below |B|, and either
# side of a panel of 16 B tokens and of a block of 32; r = 1, |A| and between.
SHAPES = [
    # items, N, heads, C, n_cls, r
    (3, 50, 2, 64, 1, 2),
    (2, 49, 3, 5, 1, 24),
    (2, 197, 12, 64, 1, 10),
    (1, 107, 1, 127, 12, 10),
    (2, 66, 2, 16, 1, 32),
    (3, 33, 1, 7, 5, 14),
    (2, 9, 1, 3, 3, 3),
    (2, 4, 1, 64, 2, 1),
    (1, 3, 1, 1, 1, 1),
]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
every_shape = pytest.mark.parametrize("items, n_tokens, heads, width, n_cls, r", SHAPES)


def draw(*shape, seed=42):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def equal(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def mean_key(keys, heads):
    return keys.double().unflatten(-1, (heads, -1)).mean(dim=2)


class TestKeys:
    @every_shape
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_the_reference_decides_the_same(self, core, items, n_tokens, heads, width, n_cls, r, dtype):
        keys = draw(items, n_tokens, heads * width).to(dtype)
        expected = match_tokens_ref(mean_key(keys, heads), n_cls, r)
        for level in core.levels:
            equal(core.match_keys(keys, heads, n_cls, r, level), expected)

    @pytest.mark.parametrize("n_tokens, n_cls", [(50, 1), (37, 2), (90, 5)])
    @pytest.mark.parametrize("seed", range(4))
    def test_ties(self, core, n_tokens, n_cls, seed):
        """Few different tokens, so that most scores tie: the lower B wins, and the lower A merges first. A few channels
        outweigh the rest, as in trained CLIPs."""
        kinds = draw(5, 32, seed=seed) * torch.tensor([30.0, 1.0]).repeat_interleave(16)
        chosen = torch.randint(5, (3, n_tokens), generator=torch.Generator().manual_seed(seed))
        keys = kinds[chosen]
        n_a = (n_tokens + 1) // 2 - (n_cls + 1) // 2
        for r in (1, n_a // 2, n_a):
            expected = match_tokens_ref(keys, n_cls, r)
            for level in core.levels:
                equal(core.match_keys(keys, 1, n_cls, r, level), expected)

    @pytest.mark.parametrize("fill", [0.0, 1.0, -3.5, 1e-30, 1e30])
    def test_a_frozen_or_black_clip(self, core, fill):
        keys = torch.full((2, 37, 16), fill)
        equal(core.match_keys(keys, 2, 1, 7), match_tokens_ref(mean_key(keys, 2), 1, 7))

    def test_zero_norm_is_similar_to_nothing(self, core):
        keys = -draw(1, 20, 8).abs()
        keys[0, ::2] = draw(1, 8).abs()  # A against B: negative throughout
        keys[0, 5] = 0
        assign = core.match_keys(keys, 1, 0, 3)
        equal(assign, match_tokens_ref(keys, 0, 3))
        assert (assign[0, [0, 2, 4]] == 7 + 2).all(), "0 is more than any of the rest"

    @pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
    @pytest.mark.parametrize("tokens", [(4,), (5,), (4, 5, 30), range(1, 50)], ids=["A", "B", "some", "all"])
    def test_nan_ranks_last_and_stays_in_its_item(self, core, value, tokens):
        keys = draw(3, 50, 2 * 8)
        spoilt = keys.clone()
        spoilt[1, list(tokens), 3] = value
        found = core.match_keys(spoilt, 2, 1, 6)
        expected = match_tokens_ref(mean_key(spoilt, 2), 1, 6)
        equal(found, expected)
        clean = core.match_keys(keys, 2, 1, 6)
        equal(found[[0, 2]], clean[[0, 2]])
        assert found.min() == 0 and found.max() == 50 - 6 - 1

    @pytest.mark.parametrize("n_tokens, n_cls", [(7, 1), (12, 5), (1, 1), (2, 2)])
    def test_nothing_to_merge_is_the_identity(self, core, n_tokens, n_cls):
        keys = draw(2, n_tokens, 4)
        equal(core.match_keys(keys, 1, n_cls, 0), match_tokens_ref(keys, n_cls, 0))

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_no_item_and_no_thread_changes_another(self, core, dtype):
        keys = draw(5, 107, 3 * 20).to(dtype)
        whole = core.match_keys(keys, 3, 4, 19)
        equal(core.match_keys(keys, 3, 4, 19, order="threads"), whole)
        for i in range(5):
            equal(core.match_keys(keys[i : i + 1].contiguous(), 3, 4, 19), whole[i : i + 1])
        order = torch.tensor([3, 0, 4, 1, 2])
        equal(core.match_keys(keys[order].contiguous(), 3, 4, 19), whole[order])


class TestRows:
    @pytest.mark.parametrize(
        "items, factor, tokens, width, n_cls, r",
        [(2, 2, 48, 64, 2, 14), (1, 3, 62, 96, 12, 50), (3, 1, 261, 8, 1, 30), (2, 4, 5, 3, 4, 2), (1, 2, 9, 17, 2, 8)],
    )
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_joined_clips_decide_as_the_reference(self, core, items, factor, tokens, width, n_cls, r, dtype):
        x, delta = draw(items * factor, tokens, width).to(dtype), draw(items * factor, tokens, width, seed=1).to(dtype)
        x[0, -1], delta[0, -1] = 0, 0
        metric = dense_block.join_clips(x.float() + delta.float(), factor, n_cls)
        expected = match_tokens_ref(metric, n_cls, r)
        scores = (scores_ref(metric, n_cls) * 2**20).max(dim=-1)
        for level in core.levels:
            rows = core.split_rows(x, delta, level=level)
            best, best_b = core.score_rows(rows, factor, n_cls, level)
            equal(core.select_rows(best, best_b, tokens * factor, n_cls, r, level), expected)
            assert (best - scores.values).abs().max() <= 1, "a snapping step"
            equal(best_b, scores.indices.int())

    def test_equal_tokens_of_different_clips_tie(self, core):
        """A frozen film: every clip shows the same, and only the rule decides."""
        x = draw(1, 50, 64).repeat(6, 1, 1)
        for factor, r in ((2, 14), (3, 31), (6, 90)):
            best, best_b = core.score_rows(core.split_rows(x), factor, factor)
            found = core.select_rows(best, best_b, 50 * factor, factor, r)
            equal(found, match_tokens_ref(dense_block.join_clips(x, factor, factor), factor, r))
            assert (best <= 2**20).all() and (best == 2**20).any()

    @pytest.mark.parametrize("width", [3, 64, 200])
    def test_what_a_split_stands_for(self, core, width):
        x = draw(2, 9, 2 * width) * 1e-3
        x[0, 0] = 0
        high, low, scale = core.split_rows(x, heads=2)
        metric = mean_key(x, 2)
        unit = metric / metric.norm(dim=-1, keepdim=True).clamp_min(1e-300)
        assert ((high * 2**11).frac() == 0).all() and low.abs().max() <= 1
        found = (high.double() + low.double() / 2**12) * scale.double().unsqueeze(-1)
        torch.testing.assert_close(found, unit, rtol=0, atol=2**-23)
        assert scale[0, 0] == 0 and (high[0, 0] == 0).all() and (low[0, 0] == 0).all()

    def test_levels_and_threads_write_the_same_bits(self, core):
        x, delta = draw(4, 107, 96), draw(4, 107, 96, seed=1)
        rows = core.split_rows(x, delta, level=0)
        best = core.score_rows(rows, 2, 4, level=0)
        assign = core.select_rows(*best, 214, 4, 40, level=0)
        for level in core.levels:
            for order in ("backwards", "threads"):
                again = core.split_rows(x, delta, level=level, order=order)
                scored = core.score_rows(again, 2, 4, level, order)
                made = (*again, *scored, core.select_rows(*scored, 214, 4, 40, level, order))
                for mine, first in zip(made, (*rows, *best, assign), strict=True):
                    equal(mine, first)


@pytest.mark.parametrize(
    ("n_cls", "r", "words"), [(1, 25, "r is more"), (-1, 2, "counts"), (51, 0, "counts"), (1, -1, "r is more")]
)
def test_counts_that_cannot_be_are_refused(core, n_cls, r, words):
    with pytest.raises(ValueError, match=words):
        core.match_keys(draw(2, 50, 8), 2, n_cls, r)


def test_delta_is_no_matter_of_heads(core):
    with pytest.raises(ValueError, match="one head"):
        core.split_rows(draw(2, 50, 8), draw(2, 50, 8), heads=2)


def test_rows_wider_than_a_threads_stack_are_refused(core):
    with pytest.raises(ValueError, match="8192"):
        core.match_keys(draw(1, 3, 8193), 1, 1, 1)
    equal(core.match_keys(draw(1, 3, 8192), 1, 1, 1), match_tokens_ref(draw(1, 3, 8192), 1, 1))
