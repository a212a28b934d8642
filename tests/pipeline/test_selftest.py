"""The self-test: what its clips are, that they are drawn safely, and that they survive a file."""

import dataclasses

import numpy as np
import pytest
import torch

from tempme_export.encoder.reference import MergeLog, ReferenceText, ReferenceVideo
from tempme_export.errors import BundleError
from tempme_export.media.preprocess import preprocess_for
from tempme_export.parity.making import Drawing, make_selftest
from tempme_export.parity.selftest import (
    CLIPS,
    SAFE_GAP,
    TEXTS,
    draw_clip,
    draw_token_ids,
    load_selftest,
    save_selftest,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def distinct_frames(clip):
    return len({frame.tobytes() for frame in clip})


@pytest.mark.parametrize(("frames", "size"), [(4, 48), (12, 64), (1, 16), (7, 224)])
@pytest.mark.parametrize("kind", sorted(set(CLIPS)))
def test_kinds_of_clips(kind, frames, size):
    clip = draw_clip(kind, frames, size, seed=3)
    assert clip.dtype == np.uint8 and clip.shape == (frames, size, size, 3)
    expected = {"static": 1, "black": 1, "repeated": max(1, frames // 3), "moving": frames}[kind]
    assert distinct_frames(clip) == expected
    if kind == "black":
        assert np.unique(clip).tolist() == [3], "seed mod 16"
    else:
        assert clip.std() > 10, "there is something to see"


def test_repeated_frames_come_in_a_row():
    clip = draw_clip("repeated", 12, 32, seed=5)
    changes = [t for t in range(1, 12) if (clip[t] != clip[t - 1]).any()]
    assert changes == [3, 6, 9]


@pytest.mark.parametrize("kind", sorted(set(CLIPS)))
def test_clips_follow_their_seed(kind):
    clip = draw_clip(kind, 4, 48, seed=3)
    np.testing.assert_array_equal(clip, draw_clip(kind, 4, 48, seed=3))
    assert (clip != draw_clip(kind, 4, 48, seed=4)).any()


def test_token_ids(small_recipe):
    ids = draw_token_ids(small_recipe, seed=2)
    vocab = small_recipe.backbone.vocab
    assert ids.dtype == np.int64 and ids.shape == (TEXTS, 8)
    ends = ids.argmax(axis=1)
    assert ids[:, 0].tolist() == [vocab - 2] * TEXTS
    assert ids.max(axis=1).tolist() == [vocab - 1] * TEXTS
    assert ends.min() == 2 and ends[-1] == 7, "from one word to a full line"
    for row, end in zip(ids, ends, strict=True):
        assert (row[1:end] > 0).all() and (row[1:end] < vocab - 2).all()
        assert (row[end + 1 :] == 0).all()
    np.testing.assert_array_equal(ids, draw_token_ids(small_recipe, seed=2))
    assert (ids != draw_token_ids(small_recipe, seed=3)).any()


def test_token_ids_of_the_shortest_text(small_recipe):
    profile = dataclasses.replace(small_recipe.profile, text_length=2)
    ids = draw_token_ids(dataclasses.replace(small_recipe, profile=profile), seed=2)
    assert ids.tolist() == [[small_recipe.backbone.vocab - 2, small_recipe.backbone.vocab - 1]] * TEXTS


def test_outputs_are_the_references(small_recipe, small_selftest, video_rounding, text_rounding):
    """Clip by clip in another batch, and in float64: no hidden dependence on how it was drawn. The decisions are the
    same, since all are safe."""
    test, preprocess = small_selftest, preprocess_for(small_recipe)
    limit = video_rounding(small_recipe.backbone).difference
    frames = torch.from_numpy(np.stack([preprocess(clip) for clip in test.clips]))
    log = MergeLog()
    wide = ReferenceVideo(small_recipe, torch.float64)
    feature = wide.video_feature(frames.double(), log=log)
    expected = torch.nn.functional.normalize(feature, dim=-1).numpy()
    np.testing.assert_allclose(test.video_embedding, expected, rtol=0, atol=limit)
    assert len(test.assigns) == len(test.tokens) == len(log.steps) == len(small_recipe.schedule.merges) == 5
    for step, assign, tokens in zip(log.steps, test.assigns, test.tokens, strict=True):
        np.testing.assert_array_equal(assign, step.assign.numpy())
        off = np.linalg.norm(tokens - step.tokens.numpy(), axis=-1)
        assert (off <= limit * np.linalg.norm(step.tokens.numpy(), axis=-1)).all()
    text = ReferenceText(small_recipe, torch.float64)(torch.from_numpy(test.token_ids)).numpy()
    limit = text_rounding(small_recipe.backbone).difference
    np.testing.assert_allclose(test.text_embedding, text, rtol=0, atol=limit)


def test_shapes_and_safety(small_selftest, unit_error):
    test = small_selftest
    assert test.clips.shape == (len(CLIPS), 4, 48, 48, 3) and test.clips.dtype == np.uint8
    assert test.gaps.shape == (len(CLIPS), 5) and (test.gaps >= SAFE_GAP).all()
    assert [distinct_frames(test.clips[CLIPS.index(kind)]) for kind in ("static", "black", "repeated")] == [1, 1, 1]
    for embedding in (test.video_embedding, test.text_embedding):
        assert embedding.dtype == np.float32
        length = np.linalg.norm(embedding.astype(np.float64), axis=-1)
        np.testing.assert_allclose(length, 1, rtol=0, atol=unit_error(embedding.shape[1]))
    assert {assign.dtype for assign in test.assigns} == {np.dtype(np.int32)}


def test_the_same_seed_draws_the_same_test(small_recipe, small_selftest):
    again, other = make_selftest(small_recipe), make_selftest(small_recipe, seed=1)
    np.testing.assert_array_equal(again.clips, small_selftest.clips)
    np.testing.assert_array_equal(again.token_ids, small_selftest.token_ids)
    np.testing.assert_array_equal(again.video_embedding, small_selftest.video_embedding)
    assert (other.clips[0] != small_selftest.clips[0]).any()
    assert (other.token_ids != small_selftest.token_ids).any()


def test_unsafe_clips_are_drawn_again(small_recipe):
    """A limit just above the smallest gap of the first moving clip must turn that clip away."""
    first = draw_clip("moving", 4, 48, seed=0)
    lenient = make_selftest(small_recipe, drawing=Drawing(("moving",), safe=0.0))
    np.testing.assert_array_equal(lenient.clips[0], first)
    limit = float(lenient.gaps[0].min()) * 1.001
    strict = make_selftest(small_recipe, drawing=Drawing(("moving",), safe=limit))
    assert (strict.clips[0] != first).any()
    assert (strict.gaps >= limit).all()


def test_tied_clips_fall_back_to_the_safest_of_a_few(small_recipe):
    """Behind exact ties lie tokens that differ by next to nothing, whatever is drawn."""
    video, preprocess, gaps = ReferenceVideo(small_recipe), preprocess_for(small_recipe), []
    for seed in range(40, 43):
        log = MergeLog()
        video.video_feature(torch.from_numpy(preprocess(draw_clip("repeated", 4, 48, seed))[None]), log=log)
        gaps.append(min(float(step.gap.min()) for step in log.steps))
    drawn = make_selftest(small_recipe, seed=40, drawing=Drawing(("repeated",), tries=3, safe=3.0))
    np.testing.assert_array_equal(drawn.clips[0], draw_clip("repeated", 4, 48, 40 + int(np.argmax(gaps))))
    assert drawn.gaps.min() == max(gaps) < 3.0, "the same clip alone, by the same kernels"


def test_fragile_clips_are_those_below_the_safe_gap(small_selftest):
    gaps = np.full((6, 5), 1.0, np.float32)
    gaps[2, 3], gaps[4, 0] = SAFE_GAP / 2, SAFE_GAP
    fragile = dataclasses.replace(small_selftest, gaps=gaps).fragile
    assert fragile.tolist() == [False, False, True, False, False, False]
    none = dataclasses.replace(small_selftest, gaps=np.empty((6, 0), np.float32))
    assert none.fragile.tolist() == [False] * 6, "without merges nothing is to be decided"


def test_without_a_safe_clip_the_safest_are_taken(small_recipe):
    drawn = make_selftest(small_recipe, drawing=Drawing(tries=2, safe=3.0))
    assert (drawn.gaps.min(axis=1) < 3.0).all()
    assert len(drawn.clips) == 6 and np.isfinite(drawn.video_embedding).all()


def test_round_trip(small_selftest, tmp_path):
    save_selftest(small_selftest, tmp_path / "selftest.npz")
    loaded = load_selftest(tmp_path / "selftest.npz")
    for name in ("clips", "token_ids", "video_embedding", "text_embedding", "gaps"):
        before, after = getattr(small_selftest, name), getattr(loaded, name)
        assert before.dtype == after.dtype
        np.testing.assert_array_equal(before, after)
    assert len(loaded.assigns) == 5 and loaded.tokens == ()
    for before, after in zip(small_selftest.assigns, loaded.assigns, strict=True):
        np.testing.assert_array_equal(before, after)


def test_assigns_keep_their_order_past_ten(small_selftest, tmp_path):
    assigns = tuple(np.full((1, 2), k, np.int32) for k in range(23))
    save_selftest(dataclasses.replace(small_selftest, assigns=assigns), tmp_path / "selftest.npz")
    assert [int(a[0, 0]) for a in load_selftest(tmp_path / "selftest.npz").assigns] == list(range(23))


@pytest.fixture
def saved(small_selftest, tmp_path):
    path = tmp_path / "selftest.npz"
    save_selftest(small_selftest, path)
    return path


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.999])
def test_truncated_file(saved, keep):
    data = saved.read_bytes()
    saved.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(BundleError, match=r"selftest\.npz cannot be read.*Export the bundle again"):
        load_selftest(saved)


def test_missing_file_and_missing_array(saved):
    with np.load(saved) as data:
        rest = {name: data[name] for name in data.files if name != "gaps"}
    np.savez(saved, **rest)
    with pytest.raises(BundleError, match="gaps"):
        load_selftest(saved)
    saved.unlink()
    with pytest.raises(BundleError, match="cannot be read"):
        load_selftest(saved)


def test_other_content(saved):
    for write in (
        lambda: saved.write_bytes(b"not an archive at all"),
        lambda: np.save(saved.open("wb"), np.zeros(3)),
        lambda: np.savez(saved, clips=np.array([{"an": "object"}], dtype=object)),
    ):
        write()
        with pytest.raises(BundleError, match="cannot be read"):
            load_selftest(saved)


def test_a_flipped_byte_is_harmless_or_refused(saved):
    """Wherever the damage lies, nothing but BundleError comes out."""
    data, rng = saved.read_bytes(), np.random.default_rng(17)
    refused = 0
    headers = range(60)  # the first member's headers, and at the end the archive's directory
    places = [*headers, *range(len(data) - 900, len(data)), *rng.integers(0, len(data), 150).tolist()]
    for place in places:
        spoiled = bytearray(data)
        spoiled[place] ^= int(rng.integers(1, 256))
        saved.write_bytes(spoiled)
        try:
            load_selftest(saved)
        except BundleError:
            refused += 1
    assert refused > len(places) // 3
