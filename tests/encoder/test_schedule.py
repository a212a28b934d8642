"""Token counts of every block against the original's, and what a schedule can never do."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tempme_export.encoder.schedule import MergePolicy, _percent_of, build_schedule, count_a
from tempme_export.errors import ProfileError

B32, B16 = 50, 197

# Spec section 8: per block, clips x tokens in attention -> tokens in the MLP.
TABLE = {
    "B/32 F=12": (
        (MergePolicy(2, (8, 9, 10), (2, 2, 3), 30, 10), 12, B32),
        [(12, n, n - 2) for n in range(50, 34, -2)] + [(6, 48, 44), (3, 62, 56), (1, 118, 107), (1, 107, 97)],
    ),
    "B/32 F=8": (
        (MergePolicy(2, (8, 9, 10), (2, 2, 2), 30, 10), 8, B32),
        [(8, n, n - 2) for n in range(50, 34, -2)] + [(4, 48, 44), (2, 62, 56), (1, 79, 72), (1, 72, 65)],
    ),
    "B/32 F=64": (
        (MergePolicy(2, (8, 9, 10), (4, 4, 4), 30, 10), 64, B32),
        [(64, n, n - 2) for n in range(50, 34, -2)] + [(16, 96, 87), (4, 244, 220), (1, 616, 555), (1, 555, 500)],
    ),
    "B/16 F=12": (
        (MergePolicy(10, (8, 9, 10), (2, 2, 3), 40, 20), 12, B16),
        [(12, n, n - 10) for n in range(197, 117, -10)] + [(6, 141, 113), (3, 136, 109), (1, 197, 158), (1, 158, 127)],
    ),
    "ToMe B/32": (
        (MergePolicy(2, (), (), 0, 0), 12, B32),
        [(12, n, n - 2) for n in range(50, 26, -2)],
    ),
    "ToMe B/16": (
        (MergePolicy(10, (), (), 0, 0), 12, B16),
        [(12, n, n - 10) for n in range(197, 77, -10)],
    ),
}


@pytest.mark.parametrize("row", TABLE)
def test_token_table_of_the_original(row):
    (merge, frames, tokens), expected = TABLE[row]
    schedule = build_schedule(merge, layers=12, frames=frames, tokens_per_frame=tokens)
    assert [(b.clips, b.tokens_attention, b.tokens_mlp) for b in schedule.blocks] == expected
    assert [b.index for b in schedule.blocks] == list(range(12))
    assert (schedule.final_clips, schedule.final_tokens) == (expected[-1][0], expected[-1][2])


@pytest.mark.parametrize("name", ["tiny_default", "tiny_schedule", "tiny_clamp", "vit_b32_f12"])
def test_counts_and_merges_of_the_reference_outputs(golden_settings, name):
    document, profile = golden_settings(name)
    sizes = document["settings"]
    schedule = build_schedule(
        profile.merge,
        layers=sizes["layers"],
        frames=sizes["max_frames"],
        tokens_per_frame=1 + (sizes["image"] // sizes["patch"]) ** 2,
    )
    told = [
        {
            "layer": b.index,
            "clips_in": b.clips_in,
            "tokens_in": b.tokens_in,
            "cls_in": b.n_cls // b.factor,
            "clips_out": b.clips,
            "tokens_out": b.tokens_mlp,
            "cls_out": b.n_cls,
        }
        for b in schedule.blocks
    ]
    assert told == document["tokens"]
    merges = []
    for b in schedule.blocks:
        before = b.tokens_in * b.factor
        for kind, r, tokens in (("cross", b.r_cross, before), ("intra", b.r_intra, b.tokens_attention)):
            if r:
                n_a = count_a(tokens, b.n_cls)
                merges.append((b.index, kind, r, b.n_cls, n_a, tokens - b.n_cls - n_a))
    expected = [tuple(s[k] for k in ("layer", "kind", "r", "cls", "n_a", "n_b")) for s in document["steps"]]
    assert merges == expected


def test_clamps_leave_half_of_the_patch_tokens():
    everything = MergePolicy(0, (1,), (3,), 100, 100)
    schedule = build_schedule(everything, layers=3, frames=3, tokens_per_frame=10)
    first, joined, last = schedule.blocks
    assert (first.r_cross, first.r_intra) == (0, 0)
    assert joined.r_cross == 27 // 2 and joined.tokens_attention == 30 - 13
    assert joined.r_intra == (17 - 3) // 2 and last.r_intra == (10 - 3) // 2
    assert last.tokens_mlp == 7


def test_the_cross_clamp_multiplies_before_it_halves():
    # ((n - c) * m) // 2 with n - c = 5, m = 3 is 7; m * ((n - c) // 2) would be 6.
    schedule = build_schedule(MergePolicy(0, (0,), (3,), 50, 0), layers=1, frames=3, tokens_per_frame=6)
    assert schedule.blocks[0].r_cross == 7


@pytest.mark.parametrize("percent", [29, 35, 41, 57, 58, 69, 70, 82, 94])
def test_percentages_are_rounded_as_doubles(percent):
    found = {n: _percent_of(n, percent) for n in range(1, 2200)}
    assert found == {n: int(n * (percent / 100)) for n in found}
    differing = [n for n, r in found.items() if r != n * percent // 100]
    assert differing, "these percentages were chosen because whole-number arithmetic differs"
    assert all(found[n] == n * percent // 100 - 1 for n in differing)


# In doubles one less than in whole numbers, and below the clamp, so that the schedule shows it.
@pytest.mark.parametrize("percent, tokens, r", [(29, 100, 28), (35, 180, 62), (41, 300, 122)])
def test_the_schedule_rounds_as_doubles(percent, tokens, r):
    assert r == tokens * percent // 100 - 1
    cross = build_schedule(MergePolicy(0, (0,), (2,), percent, 0), layers=1, frames=2, tokens_per_frame=tokens // 2)
    assert cross.blocks[0].r_cross == r
    intra = build_schedule(MergePolicy(0, (0,), (2,), 0, percent), layers=1, frames=2, tokens_per_frame=tokens // 2)
    assert intra.blocks[0].r_intra == r


def test_fractional_percentages():
    schedule = build_schedule(MergePolicy(0, (0,), (2,), 12.5, 0), layers=1, frames=2, tokens_per_frame=50)
    assert schedule.blocks[0].r_cross == 12


def test_a_factor_of_one_joins_nothing_but_ends_the_image_merges():
    schedule = build_schedule(MergePolicy(1, (1,), (1,), 30, 20), layers=3, frames=2, tokens_per_frame=20)
    assert [(b.clips, b.n_cls, b.r_cross, b.r_intra) for b in schedule.blocks] == [
        (2, 1, 0, 1),
        (2, 1, 0, int(19 * 0.2)),
        (2, 1, 0, int(16 * 0.2)),
    ]


BASE = MergePolicy(1, (1, 2), (2, 2), 30, 10)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"clip_factors": (2,)}, r"clip_layers has 2 entries and merge\.clip_factors 1"),
        ({"clip_layers": (2, 1)}, r"must rise without repeats, found \[2, 1\]"),
        ({"clip_layers": (1, 1)}, r"must rise without repeats, found \[1, 1\]"),
        ({"clip_layers": (1, 3)}, r"names \[3\], but the last block is 2 \(zero-based\)"),
        ({"clip_factors": (3, 2)}, "4 clips reach block 1 and cannot be joined by 3"),
        ({"clip_factors": (2, 4)}, "2 clips reach block 2 and cannot be joined by 4"),
        ({"image_r": 5}, r"image_r = 5 .* block 0 .* 10 tokens, 4 of them in set A\. Use 4 or less"),
    ],
)
def test_policies_that_do_not_fit(changes, message):
    build_schedule(BASE, layers=3, frames=4, tokens_per_frame=10)
    with pytest.raises(ProfileError, match=message):
        build_schedule(dataclasses.replace(BASE, **changes), layers=3, frames=4, tokens_per_frame=10)


def test_image_r_is_checked_in_every_block():
    policy = MergePolicy(4, (), (), 0, 0)
    build_schedule(policy, layers=2, frames=1, tokens_per_frame=13)
    message = r"in block 2 than there are to merge: 5 tokens, 2 of them in set A\. Use 2 or less"
    with pytest.raises(ProfileError, match=message):
        build_schedule(policy, layers=3, frames=1, tokens_per_frame=13)


@given(tokens=st.integers(1, 400), n_cls=st.integers(1, 70))
def test_count_a_counts_even_patch_positions(tokens, n_cls):
    n_cls = min(n_cls, tokens)
    assert count_a(tokens, n_cls) == sum(1 for i in range(n_cls, tokens) if i % 2 == 0)


@st.composite
def policies(draw):
    layers = draw(st.integers(1, 8))
    clip_layers = draw(st.sets(st.integers(0, layers - 1), max_size=3))
    factors = draw(st.lists(st.integers(1, 5), min_size=len(clip_layers), max_size=len(clip_layers)))
    frames = draw(st.integers(1, 4))
    for factor in factors:
        frames *= factor
    percents = st.integers(0, 100) | st.floats(0, 100)
    merge = MergePolicy(0, tuple(sorted(clip_layers)), tuple(factors), draw(percents), draw(percents))
    return merge, layers, frames, draw(st.integers(2, 60))


@hypothesis_settings(max_examples=300, deadline=None)
@given(policy=policies(), image_r=st.integers(0, 6))
def test_what_every_schedule_keeps(policy, image_r):
    merge, layers, frames, tokens = policy
    merge = dataclasses.replace(merge, image_r=image_r)
    try:
        schedule = build_schedule(merge, layers=layers, frames=frames, tokens_per_frame=tokens)
    except ProfileError as error:
        assert "merge.image_r" in str(error), "the only setting drawn here that may not fit"
        return
    clips, n_cls = frames, 1
    for b in schedule.blocks:
        assert b.clips_in == clips and b.tokens_in == tokens
        assert b.clips * b.n_cls == frames, "one class token per frame, always"
        assert b.n_cls == n_cls * b.factor
        joined = b.tokens_in * b.factor
        assert b.tokens_attention == joined - b.r_cross and b.tokens_mlp == b.tokens_attention - b.r_intra
        for before, r in ((joined, b.r_cross), (b.tokens_attention, b.r_intra)):
            n_a = count_a(before, b.n_cls)
            n_b = before - b.n_cls - n_a
            assert 0 <= r <= n_a and (r == 0 or n_b >= 1)
            assert before - r >= b.n_cls + n_b, "class tokens and all of B remain"
        clips, n_cls, tokens = b.clips, b.n_cls, b.tokens_mlp


def test_the_same_settings_without_merging_keep_every_token():
    schedule = build_schedule(MergePolicy(0, (1, 2), (2, 3), 0, 0), layers=4, frames=6, tokens_per_frame=7)
    assert [b.clips * b.tokens_mlp for b in schedule.blocks] == [42] * 4
