"""Data to embeddings to metrics: what is skipped, kept, resumed and never mixed up."""

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tempme_export.data.annotations import open_data
from tempme_export.data.clip import Clip
from tempme_export.data.frame_cache import FrameCache
from tempme_export.data.frames import FrameFiles
from tempme_export.data.records import RetrievalData
from tempme_export.encoder.checkpoint import load_checkpoint
from tempme_export.encoder.recipe import prepare
from tempme_export.errors import InputError, VideoError
from tempme_export.evaluation.encoders import open_encoder
from tempme_export.evaluation.evaluate import COLUMNS, embed, evaluate, score
from tempme_export.evaluation.metrics import group_retrieval, retrieval
from tempme_export.media.preprocess import preprocess_for
from tempme_export.media.video import read_frames


def files(data, encoder):
    return FrameFiles(data.clips, encoder.frames, encoder.preprocess)


def run(encoder, data, store=None, **more):
    return embed(encoder, data, files(data, encoder), store, **more)


@pytest.fixture
def world_copy(world, tmp_path):
    """The world in a folder to spoil."""
    return shutil.copytree(world, tmp_path / "world")


def opened(folder):
    return open_data(folder / "data.csv", "test")


class Frames:
    """A FrameSource without files. A video whose frames are None cannot be read."""

    allow_damaged = False

    def __init__(self, clips, frames=4, size=16):
        self.clips, self.frames, self.size = clips, frames, size

    def __len__(self):
        return len(self.clips)

    def stream(self, selected, workers=0, changes=None):
        for i in selected:
            yield i, VideoError(f"clip {i} is spoilt") if self.clips[i] is None else self.clips[i]


def made_up(n, spoilt=()):
    """`n` videos of one caption each that are nowhere on the disk, and their frames."""
    rng = np.random.default_rng(7)
    clips = [None if i in spoilt else rng.integers(0, 256, (4, 16, 16, 3), dtype=np.uint8) for i in range(n)]
    ids = tuple(f"v{i}" for i in range(n))
    captions = tuple(f"what {one} shows" for one in ids)
    data = RetrievalData("made up", ids, tuple(Clip(Path("/nowhere", one)) for one in ids), captions, tuple(range(n)))
    return data, Frames(clips)


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from tempme_export.data.annotations import open_data
from tempme_export.data.clip import Clip
from tempme_export.data.frames import FrameFiles
from tempme_export.evaluation.evaluate import embed
from tempme_export.media.preprocess import Preprocess

class Encoder:
    name, fingerprint, frames, embed = "fake", "f" * 64, 4, 6
    preprocess = Preprocess(16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    calls = 0

    def encode_frames(self, frames):
        self.calls += 1
        if self.calls == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return np.full((len(frames), 6), self.calls, np.float32)

data = open_data(Path(sys.argv[1]) / "data.csv", "test")
embed(Encoder(), data, FrameFiles(data.clips, 4, Encoder.preprocess), Path(sys.argv[2]), batch=1)
"""


class TestByHand:
    """Three videos, of which the second has two captions; every cosine is chosen."""

    text = np.array([[0.8, 0.6, 0], [0, 0.6, 0.8], [0.6, 0.8, 0], [0, 0, 1]], np.float32)

    @pytest.fixture
    def encoder(self, fake_encoder):
        class ByHand(fake_encoder):
            def encode_frames(self, frames):
                super().encode_frames(frames)
                return np.eye(3, dtype=np.float32)[frames[:, 0, 0, 0, 0]]

            def encode_text(self, texts):
                super().encode_text(texts)
                return TestByHand.text[[int(text.split()[1]) for text in texts]]

        return ByHand(embed=3)

    @pytest.fixture
    def asked(self):
        clips = [np.full((4, 16, 16, 3), i, np.uint8) for i in range(3)]
        captions = ("text 0", "text 1", "text 2", "text 3")
        data = RetrievalData(
            "by hand",
            ("x", "y", "z"),
            tuple(Clip(Path(name)) for name in ("/x", "/y", "/z")),
            captions,
            (0, 2, 1, 1),
            ("g", "h", "g"),
        )
        return data, Frames(clips)

    def test_both_directions(self, encoder, asked):
        """Text ranks: 0.8 of (0.8, 0.6, 0) first; 0.8 of (0, 0.6, 0.8) first; 0.8 of (0.6, 0.8, 0) first; 0 of
        (0, 0, 1) ties with video x, last. Video ranks: x has 0.8 before 0.6; y's best is 0.8; z's 0.8 comes after 1.
        In the group of x and z only texts 0 and 1 are asked, and both are first."""
        found = evaluate(encoder, *asked, backend="none")
        assert (found.text_to_video.r1, found.text_to_video.r5) == (75.0, 100.0)
        assert (found.text_to_video.mean_rank, found.text_to_video.median_rank) == (1.5, 1.0)
        assert (found.text_to_video.queries, found.text_to_video.candidates) == (4, 3)
        assert found.video_to_text.r1 == pytest.approx(200 / 3)
        assert (found.video_to_text.mean_rank, found.video_to_text.queries) == (pytest.approx(4 / 3), 3)
        assert found.in_groups.to_dict()["r1"] == 100.0
        assert (found.in_groups.queries, found.in_groups.candidates) == (2, 2)
        assert found.skipped == {} and found.not_finite == 0

    def test_frame(self, encoder, asked):
        frame = evaluate(encoder, *asked, backend="none").to_frame()
        assert frame.columns == [
            *("data", "model", "backend", "direction", "R@1", "R@5", "R@10", "R-Sum", "MdR", "MnR"),
            *("queries", "candidates", "skipped"),
        ]
        assert frame.schema == pl.Schema(dict(COLUMNS))
        assert frame["direction"].to_list() == [
            *("text-to-video", "video-to-text", "video-to-text by best caption", "text-to-video in group")
        ]
        assert frame.row(0) == (
            "by hand",
            "fake",
            "none",
            "text-to-video",
            75.0,
            100.0,
            100.0,
            275.0,
            1.0,
            1.5,
            4,
            3,
            0,
        )

    def test_document(self, encoder, asked):
        found = evaluate(encoder, *asked, backend="none")
        document = json.loads(json.dumps(found.to_dict(), allow_nan=False))
        assert document["data"] == "by hand" and document["model"] == "fake" and document["backend"] == "none"
        assert document["fingerprint"] == "f" * 64 and document["skipped"] == {} and document["not_finite"] == 0
        assert list(document["retrieval"]) == [
            *("text-to-video", "video-to-text", "video-to-text by best caption", "text-to-video in group")
        ]
        assert document["retrieval"]["text-to-video"]["r_sum"] == 275.0

    def test_no_groups(self, encoder, asked):
        data, source = asked
        found = evaluate(encoder, dataclasses.replace(data, groups=None), source)
        assert found.in_groups is None and found.to_frame().height == 3

    def test_rows_that_are_no_numbers_are_counted(self, encoder, asked):
        found = embed(encoder, *asked)
        found.video[0, 1], found.text[2, 0] = np.nan, np.inf
        assert score(found, encoder).not_finite == 2


@pytest.fixture
def limits(mini_checkpoint, mini_profile, world_data, safe_embedding, video_rounding, text_rounding):
    """How far embeddings of `world_data` may lie apart, (video, text). The clips' decisions are safe."""
    recipe = prepare(load_checkpoint(mini_checkpoint), mini_profile)
    preprocess = preprocess_for(recipe)
    for clip in world_data.clips:
        safe_embedding(recipe, preprocess(read_frames(clip.path, recipe.profile.frames))[None])
    return video_rounding(recipe.backbone).difference, text_rounding(recipe.backbone).difference


class TestEmbed:
    def test_everything_in_order(self, fake_encoder, recording):
        data, source = made_up(11)
        encoder, told = fake_encoder(), recording()
        found = embed(encoder, data, source, progress=told, batch=4)
        assert encoder.batches == [4, 4, 3]
        assert found.data == data and found.skipped == {}
        np.testing.assert_array_equal(found.video, fake_encoder().encode_frames(np.stack(source.clips)))
        np.testing.assert_array_equal(found.text, fake_encoder().encode_text(data.captions))
        assert told.amounts("encoding videos") == [(i, 11) for i in range(12)]
        assert told.amounts("encoding captions") == [(0, 11), (11, 11)]

    @pytest.mark.parametrize("workers", [0, 2])
    def test_from_files(self, world_data, fake_encoder, workers):
        found = run(fake_encoder(), world_data, batch=2, workers=workers)
        source = files(world_data, fake_encoder())
        expected = fake_encoder().encode_frames(np.stack([clip for _, clip in source.stream(range(5))]))
        np.testing.assert_array_equal(found.video, expected)
        assert len(np.unique(expected, axis=0)) == 5, "the clips differ"

    def test_from_a_cache(self, world_data, fake_encoder, tmp_path):
        encoder = fake_encoder()
        cache = FrameCache.open(tmp_path / "cache", world_data.clips, encoder.frames, encoder.preprocess)
        cache.fill(0)
        found = embed(encoder, world_data, cache)
        np.testing.assert_array_equal(found.video, run(fake_encoder(), world_data).video)

    def test_metrics_are_those_of_the_embeddings(self, world_data, fake_encoder):
        encoder = fake_encoder()
        found = run(encoder, world_data)
        evaluation = evaluate(encoder, world_data, files(world_data, encoder))
        owner, groups = world_data.owner, world_data.groups
        assert (evaluation.text_to_video, evaluation.video_to_text) == retrieval(found.text, found.video, owner)
        assert evaluation.in_groups == group_retrieval(found.text, found.video, owner, groups)
        assert evaluation.text_to_video.queries == 7 and evaluation.video_to_text.queries == 5

    @pytest.mark.parametrize("backend", ["original", "torch", "ort"])
    def test_real_encoders_agree(self, world_data, mini_checkpoint, mini_profile, mini_bundle, limits, backend):
        expected = run(open_encoder(mini_checkpoint, mini_profile, "original"), world_data)
        is_bundle = backend == "ort"
        encoder = open_encoder(
            mini_bundle if is_bundle else mini_checkpoint, None if is_bundle else mini_profile, backend
        )
        found = run(encoder, world_data, batch=3)
        np.testing.assert_allclose(found.video, expected.video, rtol=0, atol=limits[0])
        np.testing.assert_allclose(found.text, expected.text, rtol=0, atol=limits[1])
        encoder.close()

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"frames": 3}, "5 videos, 3 frames of 16 pixels, expected 5 videos, 4 frames of 16 pixels"),
            ({"size": 8}, "5 videos, 4 frames of 8 pixels, expected 5 videos, 4 frames of 16 pixels"),
            ({"clips": []}, "0 videos, 4 frames of 16 pixels, expected 5 videos"),
        ],
    )
    def test_a_source_of_another_kind(self, fake_encoder, change, words):
        data, source = made_up(5)
        for name, value in change.items():
            setattr(source, name, value)
        with pytest.raises(InputError, match=words):
            embed(fake_encoder(), data, source)

    def test_a_caption_the_encoder_refuses(self, fake_encoder):
        class Picky(fake_encoder):
            def encode_text(self, texts):
                raise InputError("found text 2 blank")

        data, source = made_up(3)
        with pytest.raises(InputError, match=r"made up, captions 0 to 2 \(text 0 is the first\): found text 2 blank"):
            embed(Picky(), data, source)


class TestSkipping:
    def test_spoilt_videos_go_with_their_captions(self, fake_encoder, world_copy):
        (world_copy / "b.avi").unlink()
        (world_copy / "d.avi").write_bytes((world_copy / "d.avi").read_bytes()[:900])
        data, encoder = opened(world_copy), fake_encoder()
        found = run(encoder, data, batch=2)
        assert found.data.video_ids == ("a", "c", "e") and encoder.videos == 3
        assert found.data.captions == ("clip a in words", "another of a", "clip c in words", "clip e in words")
        assert encoder.texts == list(found.data.captions)
        assert list(found.skipped) == ["b", "d"]
        assert "no such file" in found.skipped["b"] and "d.avi" in found.skipped["d"]
        everything = run(fake_encoder(), data.select([0, 2, 4]))
        np.testing.assert_array_equal(found.video, everything.video)
        evaluation = score(found, encoder)
        assert evaluation.to_frame()["skipped"].to_list() == [2, 2, 2, 2]
        assert evaluation.text_to_video.candidates == 3 and evaluation.text_to_video.queries == 4
        assert evaluation.in_groups.queries == 3, "e is alone in its group now"
        assert evaluation.to_dict()["skipped"] == found.skipped

    def test_none_is_left(self, fake_encoder):
        data, source = made_up(3, spoilt=range(3))
        with pytest.raises(
            InputError, match=r"none of 3 videos readable, the first because: clip 0 is spoilt.*--videos"
        ):
            embed(fake_encoder(), data, source)

    def test_spoilt_ones_fill_no_batch(self, fake_encoder):
        data, source = made_up(7, spoilt=(0, 3, 6))
        encoder = fake_encoder()
        embed(encoder, data, source, batch=2)
        assert encoder.batches == [2, 2]


class TestStore:
    def test_nothing_is_encoded_twice(self, fake_encoder, tmp_path, recording):
        data, source = made_up(6, spoilt=(2,))
        first = embed(fake_encoder(), data, source, tmp_path)
        again, told = fake_encoder(), recording()
        found = embed(again, data, source, tmp_path, told)
        assert again.videos == 0 and again.texts == []
        assert told.counts == [("encoding videos", 6, 6), ("encoding captions", 5, 5)]
        np.testing.assert_array_equal(found.video, first.video)
        np.testing.assert_array_equal(found.text, first.text)
        assert found.data == first.data and found.skipped == first.skipped == {"v2": "clip 2 is spoilt"}

    def test_an_interrupted_run_goes_on(self, fake_encoder, tmp_path):
        data, source = made_up(11)
        stopped = fake_encoder(stop=5)
        with pytest.raises(KeyboardInterrupt):
            embed(stopped, data, source, tmp_path, batch=2)
        assert stopped.videos == 4
        resumed = fake_encoder()
        found = embed(resumed, data, source, tmp_path, batch=2)
        assert resumed.videos == 7 and resumed.texts == list(data.captions)
        expected = embed(fake_encoder(), data, source)
        np.testing.assert_array_equal(found.video, expected.video)

    def test_a_killed_run_goes_on(self, fake_encoder, world, world_data, tmp_path):
        """Nothing is said at the end of it: no exception, no flush."""
        done = subprocess.run([sys.executable, "-c", KILLED, str(world), str(tmp_path)], capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL, done.stderr
        resumed = fake_encoder()
        found = run(resumed, world_data, tmp_path)
        assert resumed.videos == 2
        assert found.video[:3, 0].tolist() == [1, 2, 3]

    def test_interrupted_among_the_texts(self, fake_encoder, tmp_path):
        class Stops(fake_encoder):
            def encode_text(self, texts):
                if self.texts:
                    raise KeyboardInterrupt
                return super().encode_text(texts)

        data, source = made_up(300)  # 256 texts go in one call
        with pytest.raises(KeyboardInterrupt):
            embed(Stops(), data, source, tmp_path)
        resumed = fake_encoder()
        found = embed(resumed, data, source, tmp_path)
        assert resumed.videos == 0 and resumed.texts == list(data.captions[256:])
        np.testing.assert_array_equal(found.text, embed(fake_encoder(), data, source).text)

    def test_with_worker_processes_too(self, fake_encoder, world_data, tmp_path):
        with pytest.raises(KeyboardInterrupt):
            run(fake_encoder(stop=2), world_data, tmp_path, batch=2, workers=2)
        resumed = fake_encoder()
        found = run(resumed, world_data, tmp_path, batch=2, workers=2)
        assert resumed.videos == 3
        np.testing.assert_array_equal(found.video, run(fake_encoder(), world_data).video)

    def test_another_fingerprint_shares_nothing(self, fake_encoder, tmp_path):
        data, source = made_up(4)
        embed(fake_encoder("f" * 64), data, source, tmp_path)
        other = fake_encoder("e" * 64)
        embed(other, data, source, tmp_path)
        assert other.videos == 4 and len(other.texts) == 4

    def test_a_fingerprint_that_begins_alike(self, fake_encoder, tmp_path):
        """The folder's name is cut; what is inside tells the rest."""
        data, source = made_up(4)
        embed(fake_encoder("f" * 64), data, source, tmp_path)
        other = fake_encoder("f" * 63 + "e")
        with pytest.raises(InputError, match="found rows kept for encoder f"):
            embed(other, data, source, tmp_path)
        assert other.videos == 0

    def test_files_that_changed_are_encoded_again(self, fake_encoder, world_copy, tmp_path):
        store = tmp_path / "features"
        run(fake_encoder(), opened(world_copy), store)
        shutil.copy(world_copy / "b.avi", world_copy / "a.avi")
        again = fake_encoder()
        found = run(again, opened(world_copy), store)
        assert again.videos == 1 and again.texts == []
        np.testing.assert_array_equal(found.video[0], found.video[1])

    def test_captions_that_changed_leave_the_videos(self, fake_encoder, world_copy, tmp_path):
        store = tmp_path / "features"
        run(fake_encoder(), opened(world_copy), store)
        table = world_copy / "data.csv"
        table.write_text(table.read_text().replace("another of d", "yet another of d"))
        again = fake_encoder()
        run(again, opened(world_copy), store)
        assert again.videos == 0 and again.texts == ["yet another of d"]

    def test_a_file_that_was_mended_is_read(self, fake_encoder, world_copy, tmp_path):
        store, clip = tmp_path / "features", world_copy / "c.avi"
        whole = clip.read_bytes()
        clip.unlink()
        assert list(run(fake_encoder(), opened(world_copy), store).skipped) == ["c"]
        clip.write_bytes(whole)
        assert run(fake_encoder(), opened(world_copy), store).skipped == {}

    def test_a_store_in_use(self, fake_encoder, tmp_path):
        class Nested(fake_encoder):
            def encode_frames(self, frames):
                with pytest.raises(InputError, match="filled by another process"):
                    embed(fake_encoder(), *made_up(4), tmp_path)
                return super().encode_frames(frames)

        assert len(embed(Nested(), *made_up(4), tmp_path).video) == 4

    def test_results_outlive_the_store(self, fake_encoder, tmp_path):
        """They are copies, so that nothing writes to the store through them."""
        found = embed(fake_encoder(), *made_up(3), tmp_path)
        found.video[:] = found.text[:] = 0
        kept = embed(fake_encoder(), *made_up(3), tmp_path)
        assert kept.video.any() and kept.text.any()
