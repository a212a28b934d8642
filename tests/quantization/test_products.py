"""Ranges of 8 bits against their definition in numpy's float64, and what is seen of a product's input."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tempme_export.encoder.model import Linear, TextEncoder, VideoEncoder
from tempme_export.parity.selftest import draw_token_ids
from tempme_export.quantization.products import (
    ActivationStats,
    Range,
    hooked,
    observe,
    products,
    watch,
)

ENDS = st.floats(-1e3, 1e3).map(lambda x: round(x, 6))  # ends of 1e-39 have no steps in float32


def draw(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Small(nn.Module):
    """Two products around an activation."""

    def __init__(self):
        super().__init__()
        self.first = Linear(draw(0, 5, 3), draw(1, 5))
        self.last = Linear(draw(2, 2, 5))

    def forward(self, x):
        return self.last(torch.relu(self.first(x)))


class TestRange:
    @settings(max_examples=60, deadline=None)
    @given(ENDS, ENDS)
    def test_holds_zero_and_both_ends(self, a, b):
        found = Range.of(min(a, b), max(a, b))
        assert found.lowest <= 0 <= found.highest and found.lowest < found.highest
        assert found.lowest <= min(a, b) and max(a, b) <= found.highest
        assert found.scale > 0 and 0 <= found.zero_point <= 255
        assert float(found.rounded(torch.zeros(1))) == 0

    def test_is_no_wider_than_it_must(self):
        assert Range.of(-1.0, 2.0) == Range(-1.0, 2.0)
        assert Range.of(1.0, 2.0) == Range(0.0, 2.0)
        assert Range.of(-2.0, -1.0) == Range(-2.0, 0.0)
        assert Range.of(0.0, 0.0) == Range(0.0, 1.0)

    @settings(max_examples=60, deadline=None)
    @given(st.floats(-50, -0.01), st.floats(0.01, 50), st.integers(0, 2**32 - 1))
    def test_rounds_to_the_nearest_of_256_and_cuts_off(self, lowest, highest, seed):
        one = Range.of(lowest, highest)
        x = np.random.default_rng(seed).uniform(2 * lowest, 2 * highest, 257).astype(np.float32)
        found = one.rounded(torch.from_numpy(x)).numpy().astype(np.float64)
        steps = found / one.scale + one.zero_point
        np.testing.assert_allclose(steps, np.rint(steps), atol=1e-3)
        assert len(np.unique(np.rint(steps))) > 50 and np.rint(steps).min() >= 0 and np.rint(steps).max() <= 255
        exact = (np.clip(np.rint(x / one.scale) + one.zero_point, 0, 255) - one.zero_point) * one.scale
        assert np.abs(found - exact).max() <= 1.001 * one.scale, "a tie may go either way"
        assert (np.abs(found - exact) > 1e-3 * one.scale).mean() < 0.01
        np.testing.assert_array_equal(one.rounded(torch.from_numpy(found.astype(np.float32))).numpy(), found)

    def test_zero_point_by_hand(self):
        one = Range(-1.0, 4.1)  # a step is 0.02
        assert one.scale == pytest.approx(0.02) and one.zero_point == 50
        x = torch.tensor([-1.0, -9.0, 0.009, 0.011, 4.1, 9.0])
        torch.testing.assert_close(one.rounded(x), torch.tensor([-1.0, -1.0, 0.0, 0.02, 4.1, 4.1]))


class TestActivationStats:
    def test_is_of_all_rows_of_all_calls(self):
        tower = Small()
        calls = [draw(10, 1, 4, 3), draw(11, 2, 3, 3), draw(12, 1, 1, 3)]
        given = []  # computed again, in products of other sizes, it may differ in the last bit
        watching = tower.last.register_forward_pre_hook(lambda module, args: given.append(args[0].flatten(0, -2)))
        seen = observe(tower, calls)
        watching.remove()
        assert list(seen) == ["first", "last"] == list(products(tower))
        rows, hidden = torch.cat([call.flatten(0, -2) for call in calls]), torch.cat(given)
        for name, expected in (("first", rows), ("last", hidden)):
            found = seen[name]
            assert found.rows == 11
            assert torch.equal(found.lowest, expected.amin(dim=0))
            assert torch.equal(found.highest, expected.amax(dim=0))
            torch.testing.assert_close(found.mean, expected.double().mean(dim=0))
            assert torch.equal(found.largest, expected.abs().amax(dim=0))
            scatter = torch.cov(expected.double().T, correction=0) * 11
            torch.testing.assert_close(found.scatter, scatter.float(), rtol=1e-5, atol=1e-5)

    def test_scatter_is_not_drowned_by_a_large_mean(self):
        """Outlier channels are large in every token, by nearly as much."""
        rows = draw(13, 900, 4) + torch.tensor([3e3, 0.0, -1e3, 0.0])
        parts = [ActivationStats.of(part) for part in rows.split([500, 1, 399])]
        found = parts[0].joined(parts[1]).joined(parts[2]).scatter
        expected = torch.cov(rows.double().T, correction=0) * 900
        torch.testing.assert_close(found, expected.float(), rtol=1e-3, atol=0.5)

    def test_divided(self):
        one = ActivationStats(
            torch.tensor([-4.0, 1.0]),
            torch.tensor([2.0, 3.0]),
            torch.tensor([8.0, 4.0]).double(),
            torch.tensor([[8.0, 2.0], [2.0, 1.0]]),
            4,
        )
        found = one.divided(torch.tensor([2.0, 0.5]))
        assert found.lowest.tolist() == [-2, 2] and found.highest.tolist() == [1, 6]
        assert found.mean.tolist() == [1, 2] and found.largest.tolist() == [2, 6] and found.rows == 4
        assert found.scatter.tolist() == [[2, 2], [2, 4]]

    @pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan, 1e30])
    def test_is_not_finite(self, value):
        """1e30 is, and its square is not."""
        rows = draw(10, 4, 3)
        assert ActivationStats.of(rows).is_finite
        rows[2, 0] = value
        assert not ActivationStats.of(rows).is_finite


class TestWatch:
    def test_of_texts_only_what_an_embedding_depends_on(self, plain_recipe):
        """Other padding behind the end token, which is the largest id: nothing that is seen may change."""
        encoder = TextEncoder(plain_recipe).eval()
        ids = torch.from_numpy(draw_token_ids(plain_recipe, 5))
        ends = ids.argmax(dim=-1, keepdim=True)
        behind = torch.arange(ids.shape[1]) > ends
        assert behind.any() and not behind.all(), "some padding"
        other = torch.where(behind, (ids + 7) % 11, ids)
        assert not torch.equal(other, ids) and torch.equal(other.argmax(dim=-1, keepdim=True), ends)
        expected, found = observe(encoder, [ids]), observe(encoder, [other])
        for name, one in expected.items():
            assert one.rows == (len(ids) if name == "text_projection" else int((~behind).sum())), name
            torch.testing.assert_close(found[name].scatter, one.scatter, msg=name)
            torch.testing.assert_close(found[name].highest, one.highest, msg=name)

    def test_of_videos_everything(self, plain_recipe, video_calls):
        encoder, calls, rows = VideoEncoder(plain_recipe).eval(), video_calls(plain_recipe)[:2], {}
        watch(encoder, calls, lambda name, x: rows.setdefault(name, []).append(x.shape))
        assert rows.keys() == products(encoder).keys() and all(len(shapes) == 2 for shapes in rows.values())
        frames, tokens = plain_recipe.schedule.frames, plain_recipe.schedule.tokens_per_frame
        assert rows["blocks.0.attn.in_proj"][0] == (frames * tokens, plain_recipe.backbone.width)


class TestHooks:
    def test_may_give_another_input(self):
        tower, x = Small(), draw(20, 4, 3)
        with hooked(tower, lambda name, given: given * 0 if name == "last" else None):
            assert torch.equal(tower(x), torch.zeros(4, 2))
        assert not torch.equal(tower(x), torch.zeros(4, 2))

    def test_are_gone_after_an_error(self):
        tower, seen = Small(), []
        with pytest.raises(RuntimeError, match="enough"), hooked(tower, lambda name, x: seen.append(name)):
            tower(draw(21, 1, 3))
            raise RuntimeError("enough")
        tower(draw(21, 1, 3))
        assert seen == ["first", "last"]
