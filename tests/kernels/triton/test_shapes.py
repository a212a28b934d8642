"""Every shape that a shipped profile launches, once."""

import pytest
import torch

from tempme_export.encoder.backbone import HEAD_WIDTH, open_clip_backbone
from tempme_export.encoder.profile import load_profile, shipped_profiles
from tempme_export.kernels import attention, match, merge
from tempme_export.kernels.reference import decision_gap_ref, match_tokens_ref, merge_tokens_ref

NARROW = HEAD_WIDTH  # one head: what a width costs is not a matter of shape


def merges_of(name):
    """(clips that are joined, tokens of each, class tokens of the joined, r) of every merge of a profile."""
    profile = load_profile(name)
    found = []
    for block in profile.schedule(open_clip_backbone(profile.backbone)).blocks:
        if block.r_cross:
            found.append((block.factor, block.tokens_in, block.n_cls, block.r_cross))
        if block.r_intra:
            found.append((1, block.tokens_attention, block.n_cls, block.r_intra))
    return found


def longest(name):
    """A profile's longest merges within a clip and across clips, with the backbone's width."""
    shapes, width = merges_of(name), open_clip_backbone(load_profile(name).backbone).width
    kinds = [[s for s in shapes if s[0] == 1], [s for s in shapes if s[0] > 1]]
    return [(*max(kind, key=lambda s: (s[0] * s[1], s)), width) for kind in kinds]


MERGES = sorted({shape for name in shipped_profiles() for shape in merges_of(name)})
PLAIN = [(*shape, NARROW) for shape in MERGES if shape[0] == 1]
JOINED = [(*shape, NARROW) for shape in MERGES if shape[0] > 1]
for family in ("vit-b-32-12f", "vit-b-16-12f", "vit-l-14-12f", "vit-b-32-64f"):
    for kind, wide in zip((PLAIN, JOINED), longest(family), strict=True):
        kind.append(wide)


def named(shape):
    return "-".join(map(str, shape))


def equal(found, expected):
    torch.testing.assert_close(found.cpu(), expected.cpu(), rtol=0, atol=0)


def draw(*shape, seed=42):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def check_match(check_assign, check_optimal):
    """Asserts that one item's assignment is one, is optimal, and is the reference's if that is clear."""

    def check(assign, metric, n_cls, r):
        assign = assign.cpu()
        check_assign(assign, metric.shape[1], n_cls, r)
        check_optimal(metric, assign, n_cls, r)
        if decision_gap_ref(metric, n_cls, r) > 4 * 2**-20:
            equal(assign, match_tokens_ref(metric, n_cls, r))

    return check


@pytest.fixture
def check_merge(device, check_close, joined, norm_by_definition):
    """Asserts that the merge of one item by this assignment, with its fusions, is that of float64."""

    def check(x, delta, size, assign, factor, n_cls, r):
        weight = draw(x.shape[2], seed=9)
        on_device = [t.to(device) for t in (x, delta, size, assign, weight)]
        merged, normed, total, log_size = merge.merge_norm(
            *on_device[:4], None, on_device[4], on_device[4], factor, n_cls, r
        )
        rows, sizes = joined(x.double() + delta.double(), factor, n_cls), joined(size.double(), factor, n_cls)
        expected, total_expected = merge_tokens_ref(rows, sizes, assign.cpu(), rows.shape[1] - r)
        check_close(merged, expected)
        equal(total.double(), total_expected)
        equal(total.sum(), size.sum())
        torch.testing.assert_close(log_size.cpu().double(), total_expected.log(), rtol=2e-6, atol=0)
        check_close(normed, norm_by_definition(merged, weight, weight))

    return check


def draw_item(factor, tokens, width):
    sizes = torch.randint(1, 9, (factor, tokens), generator=torch.Generator().manual_seed(7)).float()
    return draw(factor, tokens, width), draw(factor, tokens, width, seed=8), sizes


@pytest.mark.parametrize("shape", PLAIN, ids=named)
def test_within_a_clip(device, attention_by_definition, check_close, check_match, check_merge, shape):
    _, tokens, n_cls, r, width = shape
    heads = width // HEAD_WIDTH
    x, delta, size = draw_item(1, tokens, width)
    qkv = draw(1, tokens, 3 * width, seed=10)
    qkv[..., :width] /= HEAD_WIDTH**0.5
    out, assign = attention.attention_match(qkv.to(device), size.log().to(device), heads, n_cls, r)
    check_close(out, attention_by_definition(qkv, size.log(), heads))
    check_match(assign, qkv.double().unflatten(-1, (3, heads, -1))[:, :, 1].mean(dim=2), n_cls, r)
    check_merge(x, delta, size, assign, 1, n_cls, r)


@pytest.mark.parametrize("shape", JOINED, ids=named)
def test_across_clips(device, joined, check_match, check_merge, shape):
    factor, tokens, n_cls, r, width = shape
    x, delta, size = draw_item(factor, tokens, width)
    assign = match.match_clips(x.to(device), delta.to(device), factor, n_cls, r)
    check_match(assign, joined(x.double() + delta.double(), factor, n_cls), n_cls, r)
    check_merge(x, delta, size, assign, factor, n_cls, r)


def test_the_shapes_are_those_of_the_profiles():
    """The paper's numbers for ViT-B/32 and 12 frames, and what 64 frames of ViT-B/16 come to."""
    assert {(1, 50, 1, 2), (2, 34, 2, 20), (3, 56, 12, 50), (1, 118, 12, 11), (4, 432, 64, 691)} <= set(MERGES)
    assert {(1, 265, 12, 53, 1024), (1, 616, 64, 61, 768)} <= set(PLAIN)
    assert {(3, 147, 12, 176, 1024), (4, 220, 64, 264, 768)} <= set(JOINED)
