"""The attention kernels against float64, and the match beside them against the match alone."""

import pytest
import torch

from tempme_export.kernels import attention, launch, match
from tempme_export.kernels.launch import AttentionConfig
from tempme_export.kernels.reference import match_tokens_ref

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def equal(found, expected):
    torch.testing.assert_close(found.cpu(), expected.cpu(), rtol=0, atol=0, equal_nan=True)


def draw(*shape, dtype=torch.float32, seed=42):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def draw_qkv(items, n_tokens, heads, head_width, dtype=torch.float32):
    """Packed qkv whose queries are scaled as the model's weights scale them."""
    qkv = draw(items, n_tokens, 3, heads * head_width)
    qkv[:, :, 0] *= head_width**-0.5
    return qkv.flatten(2).to(dtype)


def draw_bias(items, n_tokens):
    """The logarithm of sizes as merges leave them."""
    return torch.randint(1, 60, (items, n_tokens), generator=torch.Generator().manual_seed(7)).float().log()


def pack(q, k, v):
    return torch.cat([q, k, v], dim=-1)


class TestAttention:
    # One token, tiles of 16, 32 and 64 exactly and one more; heads that fill a power of two and heads that do not.
    @every_dtype
    @pytest.mark.parametrize("biased", [True, False], ids=["bias", "alone"])
    @pytest.mark.parametrize(
        "n_tokens, heads, head_width",
        [(1, 1, 64), (2, 2, 80), (16, 1, 32), (17, 2, 64), (64, 2, 64), (65, 1, 80), (50, 12, 64), (131, 1, 64)],
    )
    def test_equals_softmax_in_float64(
        self, device, check_close, attention_by_definition, n_tokens, heads, head_width, dtype, biased
    ):
        qkv, bias = draw_qkv(2, n_tokens, heads, head_width, dtype), draw_bias(2, n_tokens) if biased else None
        found = attention.attention(qkv.to(device), bias.to(device) if biased else None, heads)
        assert found.dtype == dtype
        check_close(found, attention_by_definition(qkv, bias, heads))

    @every_dtype
    @pytest.mark.parametrize("config", [None, AttentionConfig(16, 16, 4)], ids=["large", "small"])
    def test_large_logits(self, device, check_close, attention_by_definition, dtype, config):
        # Whole logits far apart, up to +-4096 and in any order: all but equal ones vanish, none overflows.
        generator = torch.Generator().manual_seed(42)
        q, k = torch.zeros(2, 1, 40, 64)
        q[..., 0] = torch.randint(-8, 9, (40,), generator=generator) * 8.0
        k[..., 0] = torch.randint(-4, 5, (40,), generator=generator) * 16.0
        qkv = pack(q, k, draw(1, 40, 64)).to(dtype)
        found = attention.attention(qkv.to(device), None, 1, config)
        check_close(found, attention_by_definition(qkv, None, 1))

    @every_dtype
    @pytest.mark.parametrize("at", [0, 17, 39])
    @pytest.mark.parametrize("config", [None, AttentionConfig(16, 16, 4)], ids=["large", "small"])
    def test_a_large_bias_takes_all(self, device, dtype, at, config):
        qkv, bias = draw_qkv(2, 40, 2, 64, dtype), torch.full((2, 40), -3000.0)
        bias[:, at] = 3000.0
        found = attention.attention(qkv.to(device), bias.to(device), 2, config)
        equal(found, qkv[:, at : at + 1, 256:].expand(-1, 40, -1))

    def test_a_key_of_size_n_counts_as_n_keys(self, device, check_close):
        qkv = draw_qkv(2, 21, 2, 64)
        repeats = torch.randint(1, 6, (21,), generator=torch.Generator().manual_seed(7))
        found = attention.attention(qkv.to(device), repeats.float().log().expand(2, -1).to(device), 2)
        first = repeats.cumsum(0) - repeats
        many = attention.attention(qkv.repeat_interleave(repeats, dim=1).to(device), None, 2)
        check_close(found, many[:, first.to(device)].double())

    def test_equal_keys_average_the_values(self, device, check_close):
        q, k, v = draw(1, 33, 64), draw(1, 1, 64, seed=7).expand(-1, 33, -1), draw(1, 33, 64, seed=8)
        found = attention.attention(pack(q, k, v).to(device), None, 1)
        check_close(found, v.double().mean(dim=1, keepdim=True).expand(-1, 33, -1))

    def test_a_constant_bias_does_not_matter(self, device, check_close, attention_by_definition):
        qkv = draw_qkv(2, 33, 2, 64)
        found = attention.attention(qkv.to(device), torch.full((2, 33), 2.5, device=device), 2)
        check_close(found, attention_by_definition(qkv, None, 2))

    def test_a_broken_item_stays_alone(self, device):
        qkv = draw_qkv(3, 20, 2, 64)
        clean = attention.attention(qkv.to(device), None, 2)
        qkv[1, 4, 130] = torch.nan  # a key of head 0
        found = attention.attention(qkv.to(device), None, 2)
        assert found[1, :, :64].isnan().all()
        equal(found[1, :, 64:], clean[1, :, 64:])
        equal(found[[0, 2]], clean[[0, 2]])

    @pytest.mark.parametrize("heads", [1, 2])
    def test_strides(self, device, check_close, heads):
        qkv, bias = draw_qkv(2, 21, heads, 64), draw_bias(2, 21)
        expected = attention.attention(qkv.to(device), bias.to(device), heads)
        wide = torch.full((2, 42, 2 * 3 * heads * 64), torch.nan)
        wide[:, ::2, ::2] = qkv
        padded = torch.full((2, 30), torch.nan)
        padded[:, 5:26] = bias
        views = [wide.to(device)[:, ::2, ::2], qkv.mT.contiguous().to(device).mT]
        views.append(qkv.transpose(0, 1).contiguous().to(device).transpose(0, 1))
        for view in views:
            assert not view.is_contiguous()
            check_close(attention.attention(view, padded.to(device)[:, 5:26], heads), expected.double())
        one = attention.attention(qkv[:1].to(device).expand(2, -1, -1), bias[:1].to(device).expand(2, -1), heads)
        check_close(one, expected[:1].expand(2, -1, -1).double())

    def test_rows_of_the_batch_are_independent(self, device):
        qkv, bias = draw_qkv(4, 33, 2, 64).to(device), draw_bias(4, 33).to(device)
        order = torch.tensor([2, 0, 3, 1], device=device)
        equal(attention.attention(qkv[order], bias[order], 2), attention.attention(qkv, bias, 2)[order])

    @every_dtype
    def test_twice_is_the_same_and_the_inputs_stay(self, device, dtype):
        qkv, bias = draw_qkv(2, 50, 2, 64, dtype).to(device), draw_bias(2, 50).to(device)
        before = qkv.clone(), bias.clone()
        equal(attention.attention(qkv, bias, 2), attention.attention(qkv, bias, 2))
        equal(qkv, before[0])
        equal(bias, before[1])

    @every_dtype
    def test_the_kernel_needs_no_bias_beyond_one_tile(self, device, check_close, attention_by_definition, dtype):
        qkv = draw_qkv(2, 131, 1, 64, dtype)
        found = attention.attention(qkv.to(device), None, 1, AttentionConfig(64, 32, 4))
        check_close(found, attention_by_definition(qkv, None, 1))

    def test_an_empty_batch(self, device):
        assert attention.attention(torch.zeros(0, 9, 192, device=device), None, 1).shape == (0, 9, 64)


class TestTiles:
    # 75 tokens: no multiple of any block.
    @every_dtype
    @pytest.mark.parametrize(
        "config",
        [
            AttentionConfig(16, 16, 4),
            AttentionConfig(16, 64, 4),
            AttentionConfig(64, 16, 4),
            AttentionConfig(128, 32, 4),
        ],
        ids=lambda c: f"{c.block_m}-{c.block_n}",
    )
    def test_do_not_matter(self, device, check_close, attention_by_definition, config, dtype):
        qkv, bias = draw_qkv(1, 75, 1, 80, dtype), draw_bias(1, 75)
        found = attention.attention(qkv.to(device), bias.to(device), 1, config)
        check_close(found, attention_by_definition(qkv, bias, 1))

    @every_dtype
    @pytest.mark.parametrize("n_tokens", [7, 70])
    def test_that_ship(self, device, shipped_tiles, check_close, attention_by_definition, n_tokens, dtype):
        qkv, bias = draw_qkv(1, n_tokens, 2, 64, dtype), draw_bias(1, n_tokens)
        found, assign = attention.attention_match(qkv.to(device), bias.to(device), 2, 1, 3)
        check_close(found, attention_by_definition(qkv, bias, 2))
        equal(assign, match_tokens_ref(qkv.double().unflatten(-1, (3, 2, 64))[:, :, 1].mean(dim=2), 1, 3))


class TestAttentionMatch:
    # |A| of 64 and, in launches of their own, 65 and more; heads wider than 64, too.
    @every_dtype
    @pytest.mark.parametrize(
        "n_tokens, heads, head_width, n_cls, r, together",
        [
            (50, 3, 64, 1, 2, True),
            (49, 2, 64, 2, 23, True),
            (130, 1, 64, 1, 13, True),
            (129, 2, 32, 2, 64, True),
            (131, 1, 64, 1, 65, False),
            (45, 2, 80, 4, 7, False),
        ],
    )
    def test_equals_both_alone(self, device, n_tokens, heads, head_width, n_cls, r, together, dtype):
        n_a = (n_tokens + 1) // 2 - (n_cls + 1) // 2
        qkv, bias = draw_qkv(2, n_tokens, heads, head_width, dtype).to(device), draw_bias(2, n_tokens).to(device)
        qkv[1, :, :] = qkv[1, :7].repeat(n_tokens // 7 + 1, 1)[:n_tokens]  # ties, too
        assert launch.match_overlaps_attention(n_a, head_width) == together
        with launch.recording() as calls:
            attention.attention_match(qkv, bias, heads, n_cls, r)
        assert (calls[0].kernel.__name__ == "attention_match_kernel") == together
        for given in (bias, None) if dtype == torch.float32 else (bias,):
            found, assign = attention.attention_match(qkv, given, heads, n_cls, r)
            equal(found, attention.attention(qkv, given, heads))
            equal(assign, match.match_keys(qkv, heads, n_cls, r))

    def test_strides(self, device, check_close):
        qkv, bias = draw_qkv(2, 41, 2, 64), draw_bias(2, 41)
        expected, of_keys = attention.attention_match(qkv.to(device), bias.to(device), 2, 1, 9)
        wide = torch.full((2, 82, 2 * 3 * 128), torch.nan)
        wide[:, ::2, ::2] = qkv
        columns = bias.t().contiguous().to(device).t()
        for view in (wide.to(device)[:, ::2, ::2], qkv.transpose(0, 1).contiguous().to(device).transpose(0, 1)):
            found, assign = attention.attention_match(view, columns, 2, 1, 9)
            check_close(found, expected.double())
            equal(assign, of_keys)

    @pytest.mark.parametrize("config", [AttentionConfig(16, 16, 4), AttentionConfig(32, 64, 4)], ids=["16", "32-64"])
    def test_several_tiles_of_queries(self, device, check_close, attention_by_definition, config):
        qkv, bias = draw_qkv(2, 45, 2, 64), draw_bias(2, 45)
        found, assign = attention.attention_match(qkv.to(device), bias.to(device), 2, 1, 9, config)
        check_close(found, attention_by_definition(qkv, bias, 2))
        equal(assign, match.match_keys(qkv.to(device), 2, 1, 9))

    def test_twice_is_the_same(self, device):
        qkv, bias = draw_qkv(3, 62, 2, 64).to(device), draw_bias(3, 62).to(device)
        one, other = (attention.attention_match(qkv, bias, 2, 4, 6) for _ in range(2))
        for part, expected in zip(one, other, strict=True):
            equal(part, expected)

    def test_an_empty_batch(self, device):
        found, assign = attention.attention_match(torch.zeros(0, 9, 192, device=device), None, 1, 1, 2)
        assert found.shape == (0, 9, 64) and assign.shape == (0, 9)
