"""Frames by the batch, from files and from a cache, and the thread that reads ahead."""

import threading
import time
from contextlib import closing, contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch

from tempme_export.data.clip import Clip
from tempme_export.errors import InputError, ProfileError
from tempme_export.media.preprocess import preprocess_for
from tempme_export.media.video import read_frames
from tempme_export.training.distributed import World
from tempme_export.training.footage import Footage, prefetch
from tempme_export.training.split import fingerprint, open_split, tokenizer_for
from tempme_export.training.step import Normalise

ALONE = World(0, 1, torch.device("cpu"))


def silent(done, total):
    """Nobody watches."""


@pytest.fixture(scope="module")
def opened(data, recipe, cache):
    """Split of the data by where its frames come from."""
    return {
        "files": open_split("train", data, recipe, ALONE, None, 0, True, silent)[0],
        "cache": open_split("train", data, recipe, ALONE, cache, 0, True, silent)[0],
    }


@pytest.mark.parametrize("kind", ["files", "cache"])
def test_batches_are_the_videos_frames(opened, kind, data, recipe):
    wanted = [np.array([3, 0]), np.array([8]), np.array([3, 3])]
    found = list(opened[kind].footage.batches(wanted))
    assert [clips.pixels.shape for clips in found] == [(n, 4, 64, 64, 3) for n in (2, 1, 2)]
    preprocess = preprocess_for(recipe)
    for videos, clips in zip(wanted, found, strict=True):
        assert clips.failed == {}
        for video, pixels in zip(videos, clips.pixels, strict=True):
            np.testing.assert_array_equal(pixels, preprocess.crop(read_frames(data.paths[video], 4)))


def test_a_video_that_fails_is_black_and_named(broken_clips, recipe):
    footage = Footage(broken_clips.clips, 4, preprocess_for(recipe), 0)
    first, second = footage.batches([np.array([1, 5]), np.array([3])])
    assert list(first.failed) == [1] and "5.avi" in first.failed[1]
    assert first.pixels[1].max() == 0 < first.pixels[0].max()
    assert second.failed == {}


def test_worker_processes_give_the_same(opened, recipe, data):
    footage = Footage(data.clips, 4, preprocess_for(recipe), 2)
    wanted = [np.array([1, 7]), np.array([2])]
    for mine, theirs in zip(opened["files"].footage.batches(wanted), footage.batches(wanted), strict=True):
        np.testing.assert_array_equal(mine.pixels, theirs.pixels)


@pytest.mark.parametrize("with_cache", [False, True])
def test_what_cannot_be_read_is_left_out(broken_clips, recipe, tmp_path, with_cache):
    told = []
    cache = tmp_path / "cache" if with_cache else None
    split, skipped = open_split(
        "train", broken_clips, recipe, ALONE, cache, 0, True, lambda done, total: told.append((done, total))
    )
    assert [one.video for one in skipped] == ["2.avi", "5.avi"]
    assert all(one.split == "train" and one.step is None and one.path.endswith(one.video) for one in skipped)
    assert "2.avi" in skipped[0].reason and "5.avi" in skipped[1].reason
    assert split.data.video_ids == tuple(f"{i}.avi" for i in (0, 1, 3, 4, 6, 7, 8))
    assert told[-1] == (9, 9)
    captions = np.flatnonzero(split.owner == 2)  # of what was video 3
    (batch,) = split.batches([(captions, np.ones(len(captions), bool))], ALONE.device)
    expected = preprocess_for(recipe).crop(read_frames(broken_clips.paths[3], 4))
    np.testing.assert_array_equal(batch.pixels[0].numpy(), expected)


def test_a_mended_video_is_read_when_a_run_starts_and_not_when_it_resumes(broken_clips, clips, recipe, tmp_path):
    def seen(retry):
        return len(open_split("train", broken_clips, recipe, ALONE, tmp_path, 0, retry, silent)[0].data.paths)

    assert seen(retry=True) == 7
    broken_clips.paths[5].write_bytes((clips / "5.avi").read_bytes())
    try:
        assert seen(retry=False) == 7
        assert seen(retry=True) == 8
    finally:
        broken_clips.paths[5].unlink()


def test_no_video_at_all(data, recipe, tmp_path):
    lost = replace(data.select([0, 1]), clips=(Clip(tmp_path / "a.avi"), Clip(tmp_path / "b.avi")))
    with pytest.raises(InputError, match=r"found none of 2 videos readable.*a\.avi.*--videos"):
        open_split("train", lost, recipe, ALONE, None, 0, True, silent)


@pytest.mark.parametrize("with_cache", [False, True])
def test_a_range_is_a_clip(data, recipe, tmp_path, with_cache):
    clip = Clip(data.paths[0], 0.0, 0.4)
    clips = (clip, data.clips[0], *data.clips[2:])
    cut = replace(data, clips=clips)
    split, _ = open_split("train", cut, recipe, ALONE, tmp_path if with_cache else None, 0, True, silent)
    (found,) = split.footage.batches([np.array([0, 1])])
    crop = preprocess_for(recipe).crop
    np.testing.assert_array_equal(found.pixels[0], crop(read_frames(clip.path, 4, clip.start, clip.end)))
    np.testing.assert_array_equal(found.pixels[1], crop(read_frames(clip.path, 4)))
    assert not np.array_equal(*found.pixels)
    assert fingerprint(cut) != fingerprint(replace(cut, clips=(Clip(clip.path, 0.0, 0.5), *clips[1:])))


class TestBatches:
    def test_ids_and_masks(self, opened, data):
        split = opened["cache"]
        captions, present = np.array([4, 0, 4]), np.array([True, True, False])
        (batch,) = split.batches([(captions, present)], ALONE.device)
        assert batch.pixels.dtype == torch.uint8 and batch.valid.tolist() == [True, True, False]
        assert batch.token_ids.tolist() == split.token_ids[captions].tolist()
        assert torch.equal(batch.pixels[0], batch.pixels[2]) and batch.failed == {}

    def test_a_video_that_failed_does_not_count(self, opened, data, tmp_path):
        split = opened["files"]
        videos = list(split.footage.videos)
        videos[data.owner[0]] = Clip(tmp_path / "gone.avi")
        footage = Footage(videos, 4, split.footage.preprocess, 0)
        broken = type(split)("train", split.data, footage, split.token_ids, False)
        captions = np.array([5, 0, 3])
        (batch,) = broken.batches([(captions, np.ones(3, bool))], ALONE.device)
        assert batch.valid.tolist() == [True, False, True]
        assert list(batch.failed) == [data.owner[0]] and "gone.avi" in batch.failed[data.owner[0]]
        record = broken.skipped(data.owner[0], batch.failed[data.owner[0]], 12)
        assert (record.step, record.video) == (12, data.video_ids[data.owner[0]])

    def test_for_a_gpu_memory_is_pinned_on_that_gpu(self, opened, monkeypatch):
        """What would be asked of CUDA, without it."""
        asked = []

        @contextmanager
        def device(which):
            asked.append(str(which))
            yield
            asked.append("left")

        monkeypatch.setattr(torch.cuda, "device", device)
        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: asked.append(len(tensor)) or tensor)
        shares = [(np.array([1, 2]), np.ones(2, bool))]
        (batch,) = opened["cache"].batches(shares, torch.device("cuda:3"))
        assert asked == ["cuda:3", 2, 2, 2, "left"] and len(batch.pixels) == 2

    def test_long_captions_are_cut_and_said(self, data, recipe, cache, opened):
        assert not opened["cache"].cut
        long = type(data)(data.name, data.video_ids, data.clips, ("word " * 40 + "end", *data.captions[1:]), data.owner)
        split, _ = open_split("train", long, recipe, ALONE, cache, 0, True, silent)
        assert split.cut and split.token_ids.shape == (13, recipe.profile.text_length)


def test_pixels_are_normalised_as_for_inference(recipe, pixels_of):
    preprocess = preprocess_for(recipe)
    pixels = pixels_of(2)
    found = Normalise(preprocess, torch.device("cpu"))(pixels)
    assert found.shape == (2, 4, 3, 64, 64) and found.dtype == torch.float32
    for video, expected in zip(found, pixels, strict=True):
        np.testing.assert_array_equal(video.numpy(), preprocess.normalise(expected.numpy()))


class TestFingerprint:
    def test_where_the_files_lie_does_not_count(self, data, clips, tmp_path):
        for path in clips.glob("*.avi"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
        moved = type(data)(
            "other", data.video_ids, tuple(Clip(tmp_path / p.name) for p in data.paths), data.captions, data.owner
        )
        assert fingerprint(moved) == fingerprint(data)
        (tmp_path / "3.avi").write_bytes(b"shorter")
        changed = fingerprint(moved)
        assert changed != fingerprint(data)
        assert (changed["videos"], changed["captions"]) == (9, 13)
        (tmp_path / "3.avi").unlink()
        assert fingerprint(moved) not in (changed, fingerprint(data))

    def test_captions_and_owners_count(self, data):
        other = type(data)(data.name, data.video_ids, data.clips, ("another", *data.captions[1:]), data.owner)
        assert fingerprint(other) != fingerprint(data)
        assert fingerprint(data.select([1, 0, *range(2, 9)])) != fingerprint(data)


def test_a_backbone_without_tokenizer(tiny_recipe):
    with pytest.raises(ProfileError, match="tokenizer is unknown"):
        tokenizer_for(tiny_recipe)


class TestPrefetch:
    def test_the_same_items_in_order(self):
        assert list(prefetch(iter(range(50)))) == list(range(50))
        assert list(prefetch(iter(()))) == []

    def test_it_reads_ahead_and_not_further(self):
        made = []

        def items():
            for i in range(20):
                made.append(i)
                yield i

        with closing(prefetch(items(), ahead=2)) as ready:
            assert next(ready) == 0
            deadline = time.monotonic() + 10
            while len(made) < 4 and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(0.05)
            assert made == [0, 1, 2, 3], "one taken, two ready, one in hand"

    def test_its_errors_are_raised_where_items_are_asked_for(self):
        def items():
            yield 1
            raise InputError("no more")

        ready = prefetch(items())
        assert next(ready) == 1
        with pytest.raises(InputError, match="no more"):
            next(ready)

    def test_closing_stops_the_thread_and_closes_the_items(self):
        closed = threading.Event()

        def items():
            try:
                while True:
                    yield 0
            finally:
                closed.set()

        before = threading.active_count()
        with closing(prefetch(items())) as ready:
            next(ready)
        assert closed.is_set() and threading.active_count() == before
