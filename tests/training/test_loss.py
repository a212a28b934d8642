"""The contrastive loss against the paper's equations 2 to 4 written as sums over pairs in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from tempme_export.training.loss import contrastive_loss


def loss_by_definition(text, video, tau, valid):
    """Equations 2, 3 and 4 over the pairs that are valid, in Python's floats."""
    pairs = [i for i, counts in enumerate(valid) if counts]
    s = [[float(t @ v) for v in video.double()] for t in text.double()]
    towards_video = towards_text = 0.0
    for i in pairs:
        numerator = math.exp(s[i][i] / tau)
        towards_video -= math.log(numerator / sum(math.exp(s[i][j] / tau) for j in pairs)) / len(pairs)
        towards_text -= math.log(numerator / sum(math.exp(s[j][i] / tau) for j in pairs)) / len(pairs)
    return (towards_video + towards_text) / 2


def rounding(scale, pairs):
    """How far two losses of embeddings of 5 numbers may lie apart in float64, whatever the order of addition.

    A cosine is off by 3 epsilons, and once more by that times the scale, which the loss takes twice of either side;
    a sum of exponentials rounds as often as it has terms, and its logarithm, at most twice the scale, once more.
    """
    return torch.finfo(torch.float64).eps * (20 + pairs) * (scale + 1)


def draw(rows, width=5, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    text, video = torch.randn(2, rows, width, generator=generator, dtype=dtype)
    return F.normalize(text, dim=-1), F.normalize(video, dim=-1)


@given(st.integers(0, 2**31), st.lists(st.booleans(), min_size=1, max_size=7).filter(any), st.floats(0.05, 2.0))
def test_equals_the_definition(seed, valid, tau):
    text, video = draw(len(valid), seed=seed)
    found = contrastive_loss(text, video, torch.tensor(1 / tau, dtype=torch.float64), torch.tensor(valid))
    expected = loss_by_definition(text, video, tau, valid)
    torch.testing.assert_close(float(found), expected, rtol=0, atol=rounding(1 / tau, len(valid)))


def test_no_mask_means_that_all_count():
    text, video = draw(6)
    scale = torch.tensor(20.0, dtype=torch.float64)
    every = contrastive_loss(text, video, scale, torch.ones(6, dtype=torch.bool))
    assert contrastive_loss(text, video, scale) == every
    expected = loss_by_definition(text, video, 1 / 20, [True] * 6)
    torch.testing.assert_close(float(every), expected, rtol=0, atol=rounding(20, 6))


def test_directions_are_not_alike():
    """Both directions count by half: with one text for all videos only one of them is at a loss."""
    text, video = draw(3)
    text = text[:1].expand(3, -1)
    found = contrastive_loss(text, video, torch.tensor(50.0, dtype=torch.float64))
    scores = text @ video.T * 50
    towards_video = F.cross_entropy(scores, torch.arange(3))
    torch.testing.assert_close(found, (towards_video + math.log(3)) / 2, rtol=0, atol=rounding(50, 3))


@pytest.mark.parametrize("valid", [None, [True] * 4, [True, False, True, False]])
def test_gradients(valid):
    text, video = draw(4, width=3)
    mask = None if valid is None else torch.tensor(valid)
    inputs = [t.requires_grad_() for t in (text, video, torch.tensor(3.0, dtype=torch.float64))]
    assert torch.autograd.gradcheck(lambda t, v, s: contrastive_loss(t, v, s, mask), inputs)


def test_what_is_left_out_counts_nowhere():
    text, video = draw(5)
    valid = torch.tensor([True, False, True, True, False])
    scale = torch.tensor(30.0, dtype=torch.float64)
    alone = contrastive_loss(text[valid], video[valid], scale)
    text[1], video[4] = torch.nan, torch.inf
    text.requires_grad_(), video.requires_grad_()
    found = contrastive_loss(text, video, scale, valid)
    torch.testing.assert_close(found, alone, rtol=0, atol=rounding(30, 5))
    found.backward()
    for side in (text, video):
        assert side.grad[~valid].abs().max() == 0
        assert side.grad[valid].isfinite().all() and side.grad[valid].abs().min() > 0


@pytest.mark.parametrize("count", [0, 1])
def test_no_contrast_no_loss(count):
    text, video = draw(3)
    text.requires_grad_()
    scale = torch.tensor(100.0, dtype=torch.float64, requires_grad=True)
    loss = contrastive_loss(text, video, scale, torch.arange(3) < count)
    loss.backward()
    assert loss == 0
    assert text.grad.abs().max() == 0 and scale.grad == 0


def test_autocast_does_not_reach_it():
    text, video = draw(8, dtype=torch.float32)
    scale = torch.tensor(100.0)
    outside = contrastive_loss(text, video, scale)
    with torch.autocast("cpu", torch.bfloat16):
        inside = contrastive_loss(text, video, scale)
    assert inside.dtype == torch.float32
    assert inside == outside


def test_large_scale_does_not_overflow():
    text, _ = draw(4, dtype=torch.float32)
    text.requires_grad_()
    loss = contrastive_loss(text, -text.detach(), torch.tensor(100.0), torch.tensor([True, True, True, False]))
    loss.backward()
    assert loss.isfinite() and loss > 50
    assert text.grad.isfinite().all()
