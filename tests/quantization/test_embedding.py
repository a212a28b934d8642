"""The token embedding as int8, with a scale for each token and each channel."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tempme_export.quantization.embedding import RoundedEmbedding


def rows(module, count):
    return module(torch.arange(count).unsqueeze(0))[0]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 17))
def test_each_entry_is_within_half_a_step(seed, vocab, width):
    rng = np.random.default_rng(seed)
    scales = 10.0 ** rng.integers(-3, 3, (vocab, 1)), 10.0 ** rng.integers(-2, 2, (1, width))
    weight = torch.from_numpy((rng.standard_normal((vocab, width)) * scales[0] * scales[1]).astype(np.float32))
    module = RoundedEmbedding(weight)
    assert module.table.dtype == torch.int8 and module.table.shape == weight.shape
    assert int(module.table.abs().max()) <= 127
    channel = weight.abs().amax(dim=0, keepdim=True)
    token = (weight / channel).abs().amax(dim=1, keepdim=True)
    assert ((rows(module, vocab) - weight).abs() <= 0.501 * channel * token / 127 + 1e-30).all()


def test_outlier_channels_cost_the_others_nothing():
    weight = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    planted = weight * torch.tensor([1.0, 1, 1, 64, 1, 1, 1, 1])
    plain, outlying = rows(RoundedEmbedding(weight), 50), rows(RoundedEmbedding(planted), 50)
    torch.testing.assert_close(outlying / torch.tensor([1.0, 1, 1, 64, 1, 1, 1, 1]), plain)


def test_zero_rows_and_channels_stay_zero():
    weight = torch.zeros(3, 4)
    weight[1, 2] = -5.0
    found = rows(RoundedEmbedding(weight), 3)
    torch.testing.assert_close(found, weight)
    assert torch.isfinite(found).all()


@pytest.mark.parametrize("shape", [(1, 5), (4, 1), (3, 7)])
def test_shapes(shape):
    module = RoundedEmbedding(torch.randn(11, 6, generator=torch.Generator().manual_seed(2)))
    ids = torch.arange(shape[0] * shape[1]).reshape(shape) % 11
    found = module(ids)
    assert found.shape == (*shape, 6) and found.dtype == torch.float32
    assert torch.equal(found, rows(module, 11)[ids])
