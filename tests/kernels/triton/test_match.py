"""The match kernels against the reference, the definition, and what any correct match keeps."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tempme_export.kernels import launch, match
from tempme_export.kernels.launch import MatchConfig
from tempme_export.kernels.reference import decision_gap_ref, match_tokens_ref

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
STREAMED = MatchConfig(False, 32, 32, 64, num_warps=4, num_stages=2)

# Both parities of N and n_cls and their four combinations; the widths of a head, of ViT-B, L and H, and odd ones;
# |A| above, equal to and below |B|, on a block's edge (16, 32, 64) and beside it; the smallest there are.
SHAPES = [
    # N, C, n_cls
    (50, 64, 1),
    (49, 64, 1),
    (33, 64, 2),
    (66, 64, 2),
    (129, 64, 1),
    (118, 64, 12),
    (47, 63, 2),
    (33, 127, 5),
    (48, 80, 2),
    (62, 768, 4),
    (117, 768, 12),
    (35, 1024, 3),
    (34, 1280, 1),
    (300, 64, 1),
    (9, 5, 3),
    (4, 64, 2),
    (3, 1, 1),
]


def count_a(n_tokens, n_cls):
    return len(range(n_cls + n_cls % 2, n_tokens, 2))


def some_r(n_tokens, n_cls):
    """1, |A| and what lies between."""
    available = count_a(n_tokens, n_cls)
    return sorted({1, max(1, 2 * available // 5), available})


CASES = [(*shape, r, torch.float32) for shape in SHAPES for r in some_r(shape[0], shape[2])]
CASES += [(n, c, n_cls, n // 6 + 1, dtype) for n, c, n_cls in SHAPES[:-3] for dtype in DTYPES[1:]]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def equal(found, expected):
    torch.testing.assert_close(found.cpu(), expected.cpu(), rtol=0, atol=0)


def draw(*shape, dtype=torch.float32, seed=42):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.fixture(scope="session")
def check(check_assign, check_optimal):
    """Asserts that an assignment is one, is optimal, and is the reference's where that is clear; counts the latter."""

    def check(assign, metric, n_cls, r):
        assign, metric = assign.cpu(), metric.cpu()
        check_assign(assign, metric.shape[1], n_cls, r)
        check_optimal(metric, assign, n_cls, r)
        clear = decision_gap_ref(metric, n_cls, r) > 4 * 2**-20
        equal(assign[clear], match_tokens_ref(metric, n_cls, r)[clear])
        return int(clear.sum())

    return check


class TestTokens:
    @pytest.mark.parametrize("n_tokens, width, n_cls, r, dtype", CASES)
    def test_random(self, device, check, n_tokens, width, n_cls, r, dtype):
        metric = draw(2, n_tokens, width, dtype=dtype)
        check(match.match_tokens(metric.to(device), n_cls, r), metric, n_cls, r)

    @pytest.mark.parametrize("width", [64, 80, 768])
    def test_the_decisions_of_the_reference(self, device, check, width):
        metric = draw(6, 61, width)
        assert check(match.match_tokens(metric.to(device), 2, 17), metric, 2, 17) >= 5, "these are meant to be clear"

    @settings(max_examples=30, deadline=None, derandomize=True)
    @given(data=st.data(), streamed=st.booleans())
    def test_ties_follow_the_definition(self, device, tied_cases, match_by_definition, check_assign, data, streamed):
        case = data.draw(tied_cases(DTYPES))
        config = STREAMED if streamed else None
        assign = match.match_tokens(case.metric.to(device), case.n_cls, case.r, config).cpu()
        check_assign(assign, case.n_tokens, case.n_cls, case.r)
        equal(assign, match_by_definition(case))
        equal(assign, match_tokens_ref(case.metric, case.n_cls, case.r))

    @settings(max_examples=25, deadline=None, derandomize=True)
    @given(
        n_cls=st.integers(1, 13),
        patches=st.integers(2, 70),
        width=st.sampled_from([1, 5, 16, 31, 64, 65, 80]),
        seed=st.integers(0, 2**32 - 1),
        data=st.data(),
    )
    def test_any_shape(self, device, check, n_cls, patches, width, seed, data):
        n_tokens = n_cls + patches
        r = data.draw(st.integers(1, count_a(n_tokens, n_cls)))
        metric = draw(2, n_tokens, width, seed=seed)
        check(match.match_tokens(metric.to(device), n_cls, r), metric, n_cls, r)

    @pytest.mark.parametrize("n_cls", [1, 2])
    @pytest.mark.parametrize("config", [None, STREAMED], ids=["default", "streamed"])
    def test_all_equal(self, device, n_cls, config):
        # The two lowest A tokens join the first of B.
        expected = {1: [0, 3, 3, 4, 3, 5, 1, 6, 2, 7], 2: [0, 1, 4, 4, 4, 5, 2, 6, 3, 7]}[n_cls]
        for token in (torch.ones(1, 1, 8), draw(2, 1, 64), draw(2, 1, 768), torch.zeros(1, 1, 64)):
            fits = None if token.shape[2] > 64 else config
            assign = match.match_tokens(token.repeat(1, 10, 1).to(device), n_cls, 2, fits)
            assert assign.tolist() == [expected] * len(token)

    # Joined clips of a frozen video. With an odd number of patches a patch meets its equal in the other set, at
    # cosine 1 but for rounding; with an even one it meets two equal strangers.
    @pytest.mark.parametrize("patches", [15, 16])
    @pytest.mark.parametrize(
        ("width", "frames", "outlier"),
        [(64, 3, 200.0), (768, 2, 1.0), (768, 3, 60.0), (768, 2, 200.0), (1024, 3, 200.0), (1280, 2, 200.0)],
    )
    def test_frozen_frames_follow_the_reference(self, device, width, frames, patches, outlier):
        frame = draw(4, patches, width)
        frame[..., 5] *= outlier
        metric = torch.cat([draw(4, frames, width, seed=7), frame.repeat(1, frames, 1)], dim=1)
        for r in (3, 7 * frames):
            equal(match.match_tokens(metric.to(device), frames, r), match_tokens_ref(metric, frames, r))

    @every_dtype
    def test_copies_of_a_token_tie_under_any_outlier(self, device, dtype):
        metric = draw(4, 1, 768)
        metric[..., [3, 300, 767]] *= 200
        metric = metric.repeat(1, 23, 1).to(dtype)
        equal(match.match_tokens(metric.to(device), 3, 6), match_tokens_ref(metric, 3, 6))

    def test_duplicates_that_differ_by_an_ulp_tie(self, device):
        token, generator = draw(1, 1, 64), torch.Generator().manual_seed(42)
        noise = 1 + 6e-8 * torch.randint(-2, 3, (8, 21, 64), generator=generator)
        exact = match_tokens_ref(token.expand(1, 21, 64), 1, 5)
        for config in (None, STREAMED):
            equal(match.match_tokens((token * noise).to(device), 1, 5, config), exact.expand(8, -1))

    @pytest.mark.parametrize("config", [None, STREAMED], ids=["resident", "streamed"])
    def test_padding_of_a_tile_is_no_match_where_every_similarity_is_negative(self, device, config):
        metric = draw(2, 1, 64).repeat(1, 21, 1)
        metric[:, 1::2] *= -1 - torch.arange(10.0).view(1, -1, 1) / 7  # set B: opposite directions, any length
        equal(match.match_tokens(metric.to(device), 2, 4, config), match_tokens_ref(metric, 2, 4))

    @pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 0.0])
    @pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
    @pytest.mark.parametrize("n_cls, config", [(1, None), (4, STREAMED)], ids=["resident", "streamed"])
    def test_broken_tokens_stay_in_bounds_and_follow_the_reference(
        self, device, check_assign, value, share, n_cls, config
    ):
        # Well apart in the plane, so that nothing but the broken tokens is in question.
        generator = torch.Generator().manual_seed(42)
        angle = torch.rand(2, 24, 1, generator=generator) * 6.28
        metric = torch.cat([angle.cos(), angle.sin()], dim=-1)
        metric[torch.rand(2, 24, generator=generator) < share] = value
        for r in some_r(24, n_cls)[1:]:
            assign = match.match_tokens(metric.to(device), n_cls, r, config).cpu()
            check_assign(assign, 24, n_cls, r)
            equal(assign, match_tokens_ref(metric, n_cls, r))

    @every_dtype
    @pytest.mark.parametrize("width", [16, 96])
    @pytest.mark.parametrize("value", [torch.nan, torch.inf])
    def test_a_single_broken_channel_breaks_its_token_only(self, device, dtype, width, value):
        metric = draw(1, 21, width, dtype=dtype)
        metric[0, 6, 3] = value
        assign = match.match_tokens(metric.to(device), 1, 9)
        equal(assign, match_tokens_ref(metric, 1, 9))
        assert assign[0, 6] == 1, "the one A that stays"

    @pytest.mark.parametrize("width", [12, 96])
    def test_strided_metrics(self, device, width):
        metric = draw(2, 31, width)
        expected = match_tokens_ref(metric, 1, 7)
        wide = torch.full((2, 62, 2 * width), torch.nan)
        wide[:, ::2, ::2] = metric
        views = [wide.to(device)[:, ::2, ::2], metric.mT.contiguous().to(device).mT]
        views.append(metric.transpose(0, 1).contiguous().to(device).transpose(0, 1))
        for view in views:
            assert not view.is_contiguous()
            equal(match.match_tokens(view, 1, 7), expected)
        equal(match.match_tokens(metric[:1].to(device).expand(3, -1, -1), 1, 7), expected[:1].expand(3, -1))
        one_channel = metric[..., :1].to(device).expand(-1, -1, width)
        equal(match.match_tokens(one_channel, 1, 7), match_tokens_ref(one_channel.cpu(), 1, 7))

    @pytest.mark.parametrize("width", [64, 96])
    def test_rows_of_the_batch_are_independent(self, device, width):
        metric, order = draw(7, 61, width).to(device), torch.tensor([3, 0, 6, 1, 5, 2, 4], device=device)
        whole = match.match_tokens(metric, 2, 17)
        equal(match.match_tokens(metric[order], 2, 17), whole[order])
        for i in (0, 6):
            equal(match.match_tokens(metric[i : i + 1], 2, 17), whole[i : i + 1])

    @pytest.mark.parametrize("width", [16, 96])
    def test_class_tokens_do_not_matter(self, device, width):
        metric = draw(2, 30, width)
        expected = match_tokens_ref(metric, 4, 7)
        metric[:, :4] = torch.nan
        equal(match.match_tokens(metric.to(device), 4, 7), expected)

    @pytest.mark.parametrize("width", [64, 768])
    def test_twice_is_the_same_and_the_input_stays(self, device, width):
        metric = draw(2, 75, width).to(device)
        before = metric.clone()
        equal(match.match_tokens(metric, 12, 21), match.match_tokens(metric, 12, 21))
        equal(metric, before)

    @pytest.mark.parametrize("width", [64, 96])
    def test_an_empty_batch(self, device, width):
        assign = match.match_tokens(torch.zeros(0, 21, width, device=device), 2, 5)
        assert assign.shape == (0, 21) and assign.dtype == torch.int32

    @pytest.mark.parametrize("r", [0, -1, 24, 49])
    def test_r_beyond_what_there_is_to_merge(self, device, r):
        with pytest.raises(ValueError, match=rf"r = {r} of 49 tokens .*\|A\| = 23"):
            match.match_tokens(draw(1, 49, 64).to(device), 3, r)


class TestTiles:
    # |A| = 37, |B| = 38 and 80 channels: no multiple of any block, several tiles of each.
    @pytest.mark.parametrize(
        "config",
        [
            MatchConfig(False, 16, 16, 16, 4, 1),
            MatchConfig(False, 16, 64, 64, 4, 2),
            MatchConfig(False, 64, 16, 32, 4, 2),
            MatchConfig(False, 32, 32, 128, 4, 2),
            MatchConfig(True, 64, 16, 128, 4, 1),
            MatchConfig(True, 64, 32, 128, 8, 1),
            MatchConfig(True, 64, 64, 128, 8, 1),
        ],
        ids=lambda c: f"{'resident' if c.resident else 'streamed'}-{c.block_a}-{c.block_b}-{c.block_c}",
    )
    def test_do_not_matter(self, device, config):
        metric = torch.cat([draw(1, 78, 80), draw(1, 5, 80).repeat(1, 16, 1)[:, :78]])
        for r in (5, 37):
            equal(match.match_tokens(metric.to(device), 3, r, config), match_tokens_ref(metric, 3, r))

    # One by one and in their hundreds, few A tokens and many: the tiles and warps differ.
    @pytest.mark.parametrize("items", [1, 256])
    @pytest.mark.parametrize("n_tokens, width", [(50, 64), (197, 64), (21, 768)])
    def test_that_ship(self, device, shipped_tiles, n_tokens, width, items):
        metric, r = draw(2, n_tokens, width), n_tokens // 5
        config = launch.match_config(count_a(n_tokens, 1), width, items, plain=True)
        equal(match.match_tokens(metric.to(device), 1, r, config), match_tokens_ref(metric, 1, r))

    def test_that_ship_for_joined_clips(self, device, shipped_tiles, joined):
        x, delta = draw(2, 13, 768), draw(2, 13, 768, seed=7)
        expected = match_tokens_ref(joined(x.double() + delta.double(), 2, 2), 2, 7)
        equal(match.match_clips(x.to(device), delta.to(device), 2, 2, 7), expected)

    @every_dtype
    @pytest.mark.parametrize("n_tokens, n_cls", [(50, 1), (61, 4)])
    def test_resident_and_streamed_decide_alike(self, device, n_tokens, n_cls, dtype):
        metric = torch.cat([draw(2, n_tokens, 64), draw(1, 7, 64).repeat(1, 9, 1)[:, :n_tokens]]).to(dtype).to(device)
        resident = launch.match_config(count_a(n_tokens, n_cls), 64, len(metric), plain=True)
        assert resident.resident
        for r in (3, n_tokens // 3):
            one, other = (match.match_tokens(metric, n_cls, r, config) for config in (resident, STREAMED))
            equal(one, other)

    def test_a_resident_tile_takes_what_fits_and_no_more(self, device):
        metric = draw(1, 65, 64).to(device)
        config = launch.match_config(32, 64, 1, plain=True)
        assert config.block_a == 32
        equal(match.match_tokens(metric, 1, 7, config), match_tokens_ref(metric.cpu(), 1, 7))
        for changed in (dataclasses.replace(config, block_a=16), dataclasses.replace(config, block_c=32)):
            with pytest.raises(ValueError, match=r"found width 64, \|A\| = 32, factor 1\. Set resident=False"):
                match.match_tokens(metric, 1, 7, changed)


class TestKeys:
    def mean_keys(self, qkv, heads):
        return qkv.double().unflatten(-1, (3, heads, -1))[:, :, 1].mean(dim=2)

    @every_dtype
    @pytest.mark.parametrize(
        "n_tokens, heads, head_width, n_cls",
        [(50, 12, 64, 1), (49, 2, 64, 2), (61, 1, 64, 4), (33, 2, 32, 1), (38, 3, 80, 1), (260, 2, 64, 3)],
    )
    def test_match_by_the_mean_over_heads(self, device, check, n_tokens, heads, head_width, n_cls, dtype):
        qkv, r = draw(2, n_tokens, 3 * heads * head_width, dtype=dtype), n_tokens // 5
        assign = match.match_keys(qkv.to(device), heads, n_cls, r)
        check(assign, self.mean_keys(qkv, heads), n_cls, r)

    @pytest.mark.parametrize("config", [None, STREAMED], ids=["resident", "streamed"])
    def test_queries_values_and_the_gaps_between_rows_are_not_read(self, device, config):
        qkv = draw(2, 41, 3 * 128)
        expected = match_tokens_ref(self.mean_keys(qkv, 2), 1, 9)
        wide = torch.full((2, 2 * 41, 3 * 128 + 5), torch.nan)
        wide[:, ::2, 128:256] = qkv[..., 128:256]
        equal(match.match_keys(wide.to(device)[:, ::2, : 3 * 128], 2, 1, 9, config), expected)
        swapped = qkv.transpose(0, 1).contiguous().to(device).transpose(0, 1)
        equal(match.match_keys(swapped, 2, 1, 9, config), expected)
        equal(match.match_keys(qkv[1:].to(device).expand(2, -1, -1), 2, 1, 9, config), expected[1:].expand(2, -1))

    def test_opposite_heads_cancel(self, device):
        # The mean is what counts: two heads that cancel leave the third to decide, three that do leave zero.
        keys = draw(2, 30, 1, 64).round()
        heads = torch.cat([keys, -keys, draw(2, 30, 1, 64, seed=7).round()], dim=2).flatten(2)
        qkv = torch.cat([torch.zeros_like(heads), heads, torch.zeros_like(heads)], dim=-1)
        equal(match.match_keys(qkv.to(device), 3, 1, 6), match_tokens_ref(self.mean_keys(qkv, 3), 1, 6))
        qkv = qkv.unflatten(-1, (3, 3, 64))[:, :, :, :2].flatten(2)
        equal(match.match_keys(qkv.to(device), 2, 1, 6), match_tokens_ref(torch.zeros(2, 30, 64), 1, 6))

    def test_rows_of_the_batch_are_independent(self, device):
        qkv, order = draw(4, 50, 3 * 128).to(device), torch.tensor([2, 0, 3, 1], device=device)
        equal(match.match_keys(qkv[order], 2, 1, 7), match.match_keys(qkv, 2, 1, 7)[order])


class TestClips:
    @every_dtype
    @pytest.mark.parametrize("with_delta", [True, False], ids=["delta", "alone"])
    @pytest.mark.parametrize(
        "tokens, width, factor, n_cls, r",
        [(25, 768, 2, 2, 14), (34, 80, 2, 4, 20), (23, 96, 3, 12, 9), (19, 64, 3, 3, 8), (40, 96, 1, 1, 19)],
    )
    def test_match_as_the_joined_clips_do(
        self, device, check, joined, tokens, width, factor, n_cls, r, with_delta, dtype
    ):
        x, delta = draw(2 * factor, tokens, width, dtype=dtype), draw(2 * factor, tokens, width, dtype=dtype, seed=7)
        assign = match.match_clips(x.to(device), delta.to(device) if with_delta else None, factor, n_cls, r)
        total = x.double() + delta.double() if with_delta else x.double()
        check(assign, joined(total, factor, n_cls), n_cls, r)

    @pytest.mark.parametrize("factor", [2, 3])
    @pytest.mark.parametrize("outlier", [1.0, 200.0])
    def test_a_frozen_video_follows_the_reference(self, device, joined, factor, outlier):
        frame = draw(2, 18, 768)
        frame[..., 5] *= outlier
        x = frame.repeat_interleave(factor, dim=0)
        metric = joined(x, factor, factor)
        for r in (7, 17):
            equal(match.match_clips(x.to(device), None, factor, factor, r), match_tokens_ref(metric, factor, r))

    def test_strides(self, device, joined):
        x, delta = draw(4, 15, 96), draw(4, 15, 96, seed=7)
        expected = match_tokens_ref(joined(x + delta, 2, 2), 2, 9)
        wide = torch.full((4, 30, 200), torch.nan)
        wide[:, ::2, 3:99] = x
        strided = wide.to(device)[:, ::2, 3:99]
        equal(match.match_clips(strided, delta.mT.contiguous().to(device).mT, 2, 2, 9), expected)
        swapped = delta.transpose(0, 1).contiguous().to(device).transpose(0, 1)
        equal(match.match_clips(strided, swapped, 2, 2, 9), expected)
        one = delta[:1].to(device).expand(4, -1, -1)
        expected = match_tokens_ref(joined(x + delta[:1], 2, 2), 2, 9)
        equal(match.match_clips(strided, one, 2, 2, 9), expected)

    def test_videos_are_independent(self, device):
        x = draw(3, 3, 20, 96).to(device)
        whole = match.match_clips(x.flatten(0, 1), None, 3, 3, 11)
        order = torch.tensor([2, 0, 1], device=device)
        equal(match.match_clips(x[order].flatten(0, 1), None, 3, 3, 11), whole[order])

    @pytest.mark.parametrize("config", [None, MatchConfig(False, 16, 16, 16, 4, 1)], ids=["large", "small"])
    @pytest.mark.parametrize("width", [64, 96])
    def test_tiles_do_not_matter(self, device, joined, config, width):
        x, delta = draw(3, 27, width), draw(3, 27, width, seed=7)
        expected = match_tokens_ref(joined(x.double() + delta.double(), 3, 6), 6, 30)
        equal(match.match_clips(x.to(device), delta.to(device), 3, 6, 30, config), expected)
