"""One part of the data: what is left out of it, and its batches, from files and from a cache."""

from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tempme_export.data.clip import Clip
from tempme_export.errors import InputError, ProfileError
from tempme_export.media.preprocess import preprocess_for
from tempme_export.media.video import read_frames
from tempme_export.progress import SILENT
from tempme_export.training.config import TrainConfig
from tempme_export.training.distributed import World
from tempme_export.training.split import fingerprint, open_split, pinned, tokenizer_for
from tempme_export.training.step import Normalise

ALONE = World(0, 1, torch.device("cpu"))


def opening(data, recipe, cache=None, resume=False, progress=SILENT):
    """The data as a split, with the videos left out of it."""
    config = TrainConfig(out=Path(), cache=cache, workers=0, resume=resume)
    return open_split("train", data, recipe, ALONE, config, progress)


@pytest.fixture(scope="module")
def opened(data, recipe, cache):
    """Split of the data by where its frames come from."""
    return {
        "files": opening(data, recipe)[0],
        "cache": opening(data, recipe, cache)[0],
    }


@pytest.mark.parametrize("kind", ["files", "cache"])
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_videos_frames(opened, kind, workers, data, recipe):
    split = replace(opened[kind], workers=workers)
    shares = [(np.array([4, 0]), np.ones(2, bool)), (np.array([11]), np.ones(1, bool))]
    found = list(split.batches(shares, ALONE.device))
    assert [batch.pixels.shape for batch in found] == [(n, 4, 64, 64, 3) for n in (2, 1)]
    crop = preprocess_for(recipe).crop
    for (captions, _), batch in zip(shares, found, strict=True):
        assert batch.failed == {} and batch.valid.all()
        for caption, pixels in zip(captions, batch.pixels, strict=True):
            np.testing.assert_array_equal(pixels.numpy(), crop(read_frames(data.paths[data.owner[caption]], 4)))


@pytest.mark.parametrize("with_cache", [False, True])
def test_what_cannot_be_read_is_left_out(broken_clips, recipe, tmp_path, with_cache, recording):
    told = recording()
    cache = tmp_path / "cache" if with_cache else None
    split, skipped = opening(broken_clips, recipe, cache, progress=told)
    assert [one.video for one in skipped] == ["2.avi", "5.avi"]
    assert all(one.split == "train" and one.step is None and one.path.endswith(one.video) for one in skipped)
    assert "2.avi" in skipped[0].reason and "5.avi" in skipped[1].reason
    assert split.data.video_ids == tuple(f"{i}.avi" for i in (0, 1, 3, 4, 6, 7, 8))
    assert told.counts[-1] == ("decoding videos" if with_cache else "looking at videos", 9, 9)
    captions = np.flatnonzero(split.owner == 2)  # of what was video 3
    (batch,) = split.batches([(captions, np.ones(len(captions), bool))], ALONE.device)
    expected = preprocess_for(recipe).crop(read_frames(broken_clips.paths[3], 4))
    np.testing.assert_array_equal(batch.pixels[0].numpy(), expected)


def test_a_mended_video_is_read_when_a_run_starts_and_not_when_it_resumes(broken_clips, clips, recipe, tmp_path):
    def seen(resume):
        return len(opening(broken_clips, recipe, tmp_path, resume)[0].data.paths)

    assert seen(resume=False) == 7
    broken_clips.paths[5].write_bytes((clips / "5.avi").read_bytes())
    try:
        assert seen(resume=True) == 7
        assert seen(resume=False) == 8
    finally:
        broken_clips.paths[5].unlink()


def test_no_video_at_all(data, recipe, tmp_path):
    lost = replace(data.select([0, 1]), clips=(Clip(tmp_path / "a.avi"), Clip(tmp_path / "b.avi")))
    with pytest.raises(InputError, match=r"found none of 2 videos readable.*a\.avi.*--videos"):
        opening(lost, recipe)


@pytest.mark.parametrize("with_cache", [False, True])
def test_a_range_is_a_clip(data, recipe, tmp_path, with_cache):
    clip = Clip(data.paths[0], 0.0, 0.4)
    clips = (clip, data.clips[0], *data.clips[2:])
    cut = replace(data, clips=clips)
    split, _ = opening(cut, recipe, tmp_path if with_cache else None)
    found = dict(split.source.stream([0, 1]))
    crop = preprocess_for(recipe).crop
    np.testing.assert_array_equal(found[0], crop(read_frames(clip.path, 4, clip.start, clip.end)))
    np.testing.assert_array_equal(found[1], crop(read_frames(clip.path, 4)))
    assert not np.array_equal(found[0], found[1])
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
        videos = list(data.clips)
        videos[data.owner[0]] = Clip(tmp_path / "gone.avi")
        broken = replace(split, source=replace(split.source, clips=videos))
        captions = np.array([5, 0, 3])
        (batch,) = broken.batches([(captions, np.ones(3, bool))], ALONE.device)
        assert batch.valid.tolist() == [True, False, True]
        assert [pixels.any() for pixels in batch.pixels] == [True, False, True], "black where there is none"
        assert list(batch.failed) == [data.owner[0]] and "gone.avi" in batch.failed[data.owner[0]]
        record = broken.skipped(data.owner[0], batch.failed[data.owner[0]], 12)
        assert (record.step, record.video) == (12, data.video_ids[data.owner[0]])

    def test_for_a_gpu_memory_is_pinned_on_that_gpu(self):
        """What would be asked of CUDA, without it."""
        asked = []

        @contextmanager
        def device(which):
            asked.append(str(which))
            yield
            asked.append("left")

        class Pinning:
            def pin_memory(self):
                asked.append("pinned")
                return self

        tensors = [Pinning(), Pinning()]
        assert pinned(tensors, torch.device("cuda:3"), SimpleNamespace(device=device)) == tensors
        assert asked == ["cuda:3", "pinned", "pinned", "left"]

    def test_long_captions_are_cut_and_said(self, data, recipe, cache, opened):
        assert not opened["cache"].cut
        long = type(data)(data.name, data.video_ids, data.clips, ("word " * 40 + "end", *data.captions[1:]), data.owner)
        split, _ = opening(long, recipe, cache)
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
