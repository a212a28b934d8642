"""Clips and captions that fix the scales: where they come from, and what is refused."""

import hashlib
import json

import numpy as np
import polars as pl
import pytest

from tempme_export.errors import InputError
from tempme_export.media.preprocess import preprocess_for
from tempme_export.media.render import render_clip
from tempme_export.quantization import calibration
from tempme_export.quantization.calibration import CLIPS, FEWEST, Calibration, read_calibration


@pytest.fixture
def save(tmp_path):
    """Write an .npz file."""

    def write(**arrays):
        np.savez(tmp_path / "clips.npz", **arrays)
        return tmp_path / "clips.npz"

    return write


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Folder with three clips, one of them in a folder below, a text and a file that is no video. Do not write."""
    pytest.importorskip("av")
    folder = tmp_path_factory.mktemp("videos")
    (folder / "below").mkdir()
    for seed, name in enumerate(("b.avi", "a.avi", "below/c.avi")):
        render_clip(folder / name, seconds=1, fps=8, size=(80, 64), seed=seed)
    (folder / "notes.txt").write_text("no video")
    (folder / "broken.mp4").write_bytes(b"no video either")
    return folder


def numbered(count, frames=4, size=48):
    """Clips that are told apart by their first pixel."""
    return np.full((count, frames, size, size, 3), np.arange(count).reshape(-1, 1, 1, 1, 1), np.uint8)


class TestArrays:
    def test_as_they_are(self, save, plain_recipe):
        clips = numbered(9)
        found = read_calibration(save(clips=clips, other=np.ones(3)), plain_recipe)
        np.testing.assert_array_equal(found.clips, clips)
        assert found.captions == "random tokens" and found.skipped == {} and found.warnings == ()
        assert found.texts.shape == (64, 8) and found.texts.dtype == np.int64
        assert len(np.unique(found.texts, axis=0)) > 50

    def test_at_most_so_many_spread_over_all(self, save, plain_recipe):
        first = read_calibration(save(clips=numbered(100)), plain_recipe).clips[:, 0, 0, 0, 0].astype(int)
        assert len(first) == CLIPS == len(set(first))
        assert first[0] == 0 and first[-1] == 99 and set(np.diff(first)) == {3, 4}

    @pytest.mark.parametrize("shape", [(9, 3, 48, 48, 3), (9, 4, 47, 48, 3), (9, 4, 48, 48), (9, 4, 48, 48, 1)])
    def test_of_another_shape(self, save, plain_recipe, shape):
        with pytest.raises(
            InputError, match=r"expected uint8 \[V, 4, 48, 48, 3\] for profile small.*clips of 4 frames"
        ):
            read_calibration(save(clips=np.zeros(shape, np.uint8)), plain_recipe)

    def test_of_another_type(self, save, plain_recipe):
        with pytest.raises(InputError, match="found clips float32"):
            read_calibration(save(clips=numbered(3).astype(np.float32)), plain_recipe)

    def test_without_clips(self, save, plain_recipe, tmp_path):
        with pytest.raises(InputError, match="found no array `clips`"):
            read_calibration(save(frames=numbered(3)), plain_recipe)
        (tmp_path / "noise.npz").write_bytes(b"no archive")
        (tmp_path / "empty.npz").write_bytes(b"")
        np.save(tmp_path / "one.npy", numbered(3))
        (tmp_path / "one.npy").rename(tmp_path / "one.npz")
        whole = save(clips=numbered(9)).read_bytes()
        (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
        for name in ("noise.npz", "empty.npz", "one.npz", "cut.npz", "missing.npz"):
            with pytest.raises(InputError, match="found no array `clips`"):
                read_calibration(tmp_path / name, plain_recipe)

    def test_no_pickles(self, save, plain_recipe):
        with pytest.raises(InputError, match="found no array `clips`"):
            read_calibration(save(clips=np.array([print], dtype=object)), plain_recipe)

    @pytest.mark.parametrize("count", [0, 1])
    def test_too_few(self, save, plain_recipe, count):
        with pytest.raises(InputError, match=f"found {count} calibration clips.*at least 2") as caught:
            read_calibration(save(clips=numbered(count)), plain_recipe)
        assert caught.value.exit_code == 3


class TestVideos:
    def test_folder(self, videos, plain_recipe):
        found = read_calibration(videos, plain_recipe)
        assert found.clips.shape == (3, 4, 48, 48, 3) and found.source == str(videos)
        assert list(found.skipped) == [str(videos / name) for name in ("broken.mp4", "notes.txt")]
        assert len({clip.tobytes() for clip in found.clips}) == 3
        assert "found 3 calibration clips" in found.warnings[0]
        again = read_calibration(str(videos), plain_recipe)
        np.testing.assert_array_equal(found.clips, again.clips)

    def test_built_in_captions(self, videos, mini_recipe):
        found = read_calibration(videos, mini_recipe)
        assert found.captions == "built in" and found.texts.shape == (64, 24)
        assert len(np.unique(found.texts, axis=0)) == 64

    def test_captions_of_the_data(self, videos, mini_recipe):
        names = ("a.avi", "b.avi", "gone.avi", "below/c.avi")
        rows = [
            (names[i % 4], f"{word} things")
            for i, word in enumerate(("one", "two", "three", "four", "five", "six", "ten", "no"))
        ]
        pl.DataFrame([*rows, ("b.avi", "one things")], schema=["video", "caption"], orient="row").write_csv(
            videos / "data.csv"
        )
        found = read_calibration(videos / "data.csv", mini_recipe)
        assert found.captions == "data" and len(found.clips) == 3
        assert len(np.unique(found.texts, axis=0)) == len(found.texts) >= 6, "equal captions are one"
        assert found.skipped == {}, "a video without a file is no video that cannot be read"

    def test_captions_that_say_nothing(self, videos, mini_recipe):
        """From one text over and over nothing could be told: the centre would be the text itself."""
        rows = [(name, "a video") for name in ("a.avi", "b.avi", "below/c.avi")]
        pl.DataFrame(rows, schema=["video", "caption"], orient="row").write_csv(videos / "same.csv")
        found = read_calibration(videos / "same.csv", mini_recipe)
        assert found.captions == "built in" and len(np.unique(found.texts, axis=0)) == 64

    def test_long_captions_are_cut_without_a_word(self, videos, mini_recipe, recwarn):
        rows = [("a.avi", f"{i} " + "and on " * 60) for i in range(FEWEST)] + [("b.avi", "short")]
        pl.DataFrame(rows, schema=["video", "caption"], orient="row").write_csv(videos / "long.csv")
        assert read_calibration(videos / "long.csv", mini_recipe).captions == "data"
        assert not [one for one in recwarn if "cut" in str(one.message)]

    def test_others_are_taken_for_those_that_cannot_be_read(self, videos, plain_recipe, tmp_path):
        """The first picks are all broken, as a folder's oldest third may be."""
        for i in range(2 * CLIPS):
            good = i in (1, 6, 33)
            (tmp_path / f"{i:03}.avi").write_bytes((videos / "a.avi").read_bytes() if good else b"broken")
        found = read_calibration(tmp_path, plain_recipe)
        assert len(found.clips) == 3 and len(found.skipped) == 2 * CLIPS - 3

    def test_nothing_to_read(self, tmp_path, plain_recipe):
        with pytest.raises(InputError, match="found 0 calibration clips"):
            read_calibration(tmp_path, plain_recipe)
        (tmp_path / "noise.mp4").write_bytes(b"no video")
        with pytest.raises(InputError, match=r"found 0 calibration clips.*noise\.mp4: "):
            read_calibration(tmp_path, plain_recipe)

    def test_no_such_data(self, tmp_path, plain_recipe):
        with pytest.raises(InputError, match=r"missing: found nothing there, expected a folder of videos, a \.npz"):
            read_calibration(tmp_path / "missing", plain_recipe)


def test_warnings_stop_at_enough():
    texts = np.zeros((1, 8), np.int64)
    for count, warned in ((FEWEST - 1, True), (FEWEST, False)):
        assert bool(Calibration("x", numbered(count), texts, "data").warnings) is warned


def test_for_the_manifest(plain_recipe):
    clips = numbered(3)
    one = Calibration("x", clips, np.zeros((5, 8), np.int64), "data", {"b.mp4": "broken"})
    document = json.loads(json.dumps(one.to_dict()))
    assert document.pop("warnings") == list(one.warnings)
    assert document == {
        "source": "x",
        "clips": 3,
        "clips_sha256": hashlib.sha256(clips.tobytes()).hexdigest(),
        "texts": 5,
        "captions": "data",
        "skipped": {"b.mp4": "broken"},
    }


def test_calls(plain_recipe):
    texts = np.arange(17 * 8).reshape(17, 8)
    one = Calibration("x", numbered(3), texts, "data")
    frames = one.video_calls(preprocess_for(plain_recipe))
    assert [tuple(call.shape) for call in frames] == [(1, 4, 3, 48, 48)] * 3
    np.testing.assert_array_equal(frames[2][0].numpy(), preprocess_for(plain_recipe)(numbered(3)[2]))
    assert [tuple(call.shape) for call in one.text_calls()] == [(8, 8), (8, 8), (1, 8)]
    np.testing.assert_array_equal(np.concatenate([call.numpy() for call in one.text_calls()]), texts)


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 1000])
def test_spread(count):
    found = calibration._spread(range(count), 8)
    assert len(found) == min(count, 8) and found == sorted(set(found))
    assert found[0] == 0 and found[-1] == count - 1
