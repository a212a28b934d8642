"""Stages are timed in turn on a fake clock whose every reading is known, and once for real on the tiny model."""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from tempme_export.bench.core.protocol import FEWEST, Protocol
from tempme_export.bench.stages import (
    DECODE,
    ENCODE,
    PREPROCESS,
    TRANSFER,
    Source,
    compare_stages,
    describe_video,
    rendered_clip,
    source_for,
)
from tempme_export.errors import UnstableError, UsageError, VideoError
from tempme_export.media.render import render_clip

PROTOCOL = Protocol(seconds=1.0, samples=20, window=5, resamples=200)


class StageCosts:
    """A clock that only the stages move, and the stages. `costs`: seconds of a call to each; `jitter` multiplies."""

    def __init__(self, costs, jitter=0.0):
        self.now, self.costs, self.log = 0.0, costs, []
        self.rng, self.jitter = np.random.default_rng(1), jitter

    def clock(self):
        return self.now

    def spend(self, stage, what=None):
        cost = self.costs[stage]
        seconds = cost(what, len(self.log)) if callable(cost) else cost
        self.now += seconds * (1 + self.jitter * self.rng.standard_normal())
        self.log.append((stage, what))

    def decode(self, path):
        self.spend(DECODE, path.name)
        return np.full((2, 4, 4, 3), int(path.stem), np.uint8)

    def preprocess(self, frames):
        self.spend(PREPROCESS, int(frames[0, 0, 0, 0]))
        return frames.transpose(0, 3, 1, 2).astype(np.float32)

    def transfer(self, pixels):
        self.spend(TRANSFER, pixels.shape)
        return ("on the device", pixels)

    def embed(self, inputs):
        self.spend(ENCODE, inputs[0] if isinstance(inputs, tuple) else inputs.dtype.name)

    @property
    def source(self):
        return Source(self.decode, self.preprocess, lambda path: f"about {path.name}")


def measure(machine, *, videos=("0.mp4",), batch=1, transfer=False, protocol=PROTOCOL, progress=lambda _: None):
    """The table of one candidate."""
    way = (machine.transfer if transfer else None, machine.embed)
    paths = [Path(name) for name in videos]
    _, (table,) = compare_stages(
        {"torch": way}, machine.source, paths, batch, protocol, clock=machine.clock, progress=progress
    )
    return table


COSTS = {DECODE: 0.030, PREPROCESS: 0.020, TRANSFER: 0.004, ENCODE: 0.040}


class TestTable:
    def test_milliseconds_shares_and_rates_are_those_of_one_video(self):
        """Batch of 4: decode and preprocess are paid per video, transfer and encode once per batch."""
        table = measure(StageCosts(COSTS), videos=("0.mp4", "1.mp4", "2.mp4"), batch=4, transfer=True)
        assert [row.stage for row in table.rows] == [DECODE, PREPROCESS, TRANSFER, ENCODE]
        per_video = np.array([30, 20, 1, 10])
        np.testing.assert_allclose([row.p50_ms for row in table.rows], per_video)
        np.testing.assert_allclose([row.p90_ms for row in table.rows], per_video)
        np.testing.assert_allclose([row.share for row in table.rows], per_video / 61)
        np.testing.assert_allclose([row.videos_per_s for row in table.rows], 1000 / per_video)
        assert table.limit == DECODE and table.videos == 3 and table.batch == 4
        assert table.sequential_videos_per_s == pytest.approx(1000 / 61)
        assert table.overlapped_videos_per_s == pytest.approx(1000 / 30)
        assert not any("uncertain" in note or "converge" in note for note in table.notes)

    @pytest.mark.parametrize("slow", [DECODE, PREPROCESS, TRANSFER, ENCODE])
    def test_the_limit_is_the_slowest_stage(self, slow):
        assert measure(StageCosts({**COSTS, slow: 0.1}), transfer=True).limit == slow

    def test_percentiles_keep_every_sample(self):
        """One round in five takes ten times as long: the 90th percentile and the mean see it, the median does not."""
        rounds = iter(range(10**6))
        machine = StageCosts({**COSTS, DECODE: lambda *_: 0.3 if next(rounds) % 5 == 0 else 0.03})
        table = measure(machine)
        assert table.rows[0].p50_ms == pytest.approx(30) and table.rows[0].p90_ms == pytest.approx(300)
        assert any(note.startswith("decode takes 84 ms in the mean and 30 ms in the median") for note in table.notes)

    def test_plain_values(self):
        table = replace(measure(StageCosts(COSTS)), candidate="ort")
        document = asdict(table)
        assert document["candidate"] == "ort" and document["limit"] == ENCODE and document["notes"] == table.notes
        assert set(document["rows"][0]) == {"stage", "p50_ms", "p90_ms", "share", "videos_per_s"}
        assert [row["stage"] for row in document["rows"]] == [DECODE, PREPROCESS, ENCODE]


class TestOrder:
    def test_every_batch_passes_all_stages_before_the_next(self):
        machine = StageCosts(COSTS)
        measure(machine, videos=("0.mp4", "1.mp4", "2.mp4"), batch=2, transfer=True)
        expected = []
        for first, second in ((0, 1), (2, 0), (1, 2)):
            expected += [(DECODE, f"{first}.mp4"), (DECODE, f"{second}.mp4"), (PREPROCESS, first), (PREPROCESS, second)]
            expected += [(TRANSFER, (2, 2, 3, 4, 4)), (ENCODE, "on the device")]
        assert machine.log[: len(expected)] == expected

    def test_without_transfer_the_encoder_gets_the_batch_itself(self):
        machine = StageCosts(COSTS)
        table = measure(machine)
        assert {what for stage, what in machine.log if stage == ENCODE} == {"float32"}
        assert TRANSFER not in [row.stage for row in table.rows]
        assert any(note.startswith("no transfer") for note in table.notes)

    def test_a_file_named_twice_counts_once(self):
        assert measure(StageCosts(COSTS), videos=("0.mp4", "0.mp4")).videos == 1


class TestProtocol:
    def test_warm_up_comes_first_and_does_not_count(self):
        """The first five calls of the encoder are slow: none of them is in the table."""
        calls = iter(range(10**6))
        table = measure(StageCosts({**COSTS, ENCODE: lambda *_: 0.06 if next(calls) < 5 else 0.04}))
        assert table.rows[-1].p90_ms == pytest.approx(40)

    @pytest.mark.parametrize(("stage_s", "rounds"), [(0.03, 20), (0.003, 112)], ids=["samples", "seconds"])
    def test_it_goes_on_for_the_samples_and_the_seconds(self, stage_s, rounds):
        table = measure(StageCosts(dict.fromkeys(COSTS, stage_s)))
        assert table.notes[-1].startswith(f"{rounds} rounds of 1;")

    def test_one_round_longer_than_every_limit_is_still_taken_five_times(self):
        table = measure(StageCosts(dict.fromkeys(COSTS, 60.0)))
        assert table.notes[-1].startswith(f"{FEWEST} rounds of 1;")

    def test_every_video_is_measured(self):
        """30 videos are more than 20 samples; the warm-up is 3 windows of 3 rounds."""
        machine = StageCosts(COSTS)
        videos = [f"{i}.mp4" for i in range(30)]
        table = measure(machine, videos=videos)
        read = [what for stage, what in machine.log if stage == DECODE]
        assert set(read[9:]) == set(videos) and len(read) == 39
        assert table.notes[-1].startswith("30 rounds")
        assert "21 of 30 videos were not read in the warm-up" in table.notes
        assert not any("not reached" in note for note in table.notes)

    def test_videos_beyond_the_limits_are_said(self):
        """A budget of 120 s holds 40 rounds of 3 s, after 9 of the warm-up."""
        table = measure(StageCosts(dict.fromkeys(COSTS, 1.0)), videos=[f"{i}.mp4" for i in range(100)])
        assert "91 of 100 videos were not read in the warm-up" in table.notes
        assert "51 of 100 videos were not reached at all" in table.notes

    def test_a_drifting_machine_is_said(self):
        calls = iter(range(10**6))
        table = measure(StageCosts({**COSTS, ENCODE: lambda *_: 0.04 + 0.01 * next(calls)}))
        assert any("did not converge within 5%" in note for note in table.notes)

    def test_the_first_read_is_told_apart(self):
        seen = set()
        cost = lambda path, _: seen.add(path) or 0.5 if path not in seen else 0.03  # noqa: E731
        table = measure(StageCosts({**COSTS, DECODE: cost}), videos=("0.mp4", "1.mp4"))
        assert any(
            "the first read of a file took 500 ms, the median of those measured is 30 ms" in n for n in table.notes
        )
        assert table.rows[0].p90_ms == pytest.approx(30)

    def test_progress_is_told(self):
        told = []
        measure(StageCosts(COSTS), progress=told.append)
        assert told[0].startswith("warm-up: 3 rounds") and any(line.startswith("measuring: 10") for line in told)


class TestSideBySide:
    def test_candidates_take_turns_over_the_same_videos(self):
        """90 ms the whole way with one, 60 ms with the other."""
        machine = StageCosts(COSTS)

        def fast(pixels):
            machine.now += 0.01

        paths = [Path("0.mp4"), Path("1.mp4")]
        ways = {"original": (None, machine.embed), "fast": (None, fast)}
        comparison, tables = compare_stages(ways, machine.source, paths, 1, PROTOCOL, clock=machine.clock)
        assert [table.candidate for table in tables] == ["original", "fast"]
        assert [table.rows[-1].p50_ms for table in tables] == pytest.approx([40, 10])
        assert [table.limit for table in tables] == [ENCODE, DECODE]
        assert comparison.timings["fast"].ratio.value == pytest.approx(1.5) and not comparison.unconverged
        assert any(note.startswith("the whole way is 1.5 times as fast as with original (") for note in tables[1].notes)
        read = [what for stage, what in machine.log if stage == DECODE]
        assert read[:4] == ["0.mp4", "0.mp4", "1.mp4", "1.mp4"]

    def test_a_ratio_that_the_budget_leaves_open_is_said(self):
        machine, wild = StageCosts(COSTS), np.random.default_rng(3)

        def uneven(pixels):
            machine.now += 0.2 * np.exp(wild.normal(0, 1))

        ways = {"original": (None, machine.embed), "uneven": (None, uneven)}
        protocol = replace(PROTOCOL, budget=12)
        comparison, _ = compare_stages(ways, machine.source, [Path("0.mp4")], 1, protocol, clock=machine.clock)
        with pytest.raises(UnstableError, match="the ratio of uneven has not converged"):
            comparison.require_converged()


class TestUncertainty:
    def test_two_stages_alike_leave_the_limit_uncertain(self):
        table = measure(StageCosts({DECODE: 0.0401, PREPROCESS: 0.001, ENCODE: 0.04}, jitter=0.2))
        assert table.limit in (DECODE, ENCODE)
        (note,) = [note for note in table.notes if "uncertain" in note]
        assert "decode" in note and "encode" in note and "preprocess" not in note

    def test_five_rounds_tell_stages_apart_that_are_far_apart(self):
        protocol = replace(PROTOCOL, samples=5)
        table = measure(StageCosts({DECODE: 5.0, PREPROCESS: 0.2, ENCODE: 0.6}, jitter=0.1), protocol=protocol)
        assert table.notes[-1].startswith("5 rounds") and not any("uncertain" in note for note in table.notes)

    def test_two_stages_apart_do_not(self):
        table = measure(StageCosts({DECODE: 0.08, PREPROCESS: 0.001, ENCODE: 0.04}, jitter=0.1))
        assert table.limit == DECODE and not any("uncertain" in note for note in table.notes)


class TestRefusals:
    def test_no_video(self):
        with pytest.raises(UsageError, match="no video to measure with"):
            measure(StageCosts(COSTS), videos=())

    def test_no_batch(self):
        with pytest.raises(UsageError, match="batch: found 0"):
            measure(StageCosts(COSTS), batch=0)

    def test_a_clock_that_cannot_tell(self):
        with pytest.raises(UnstableError, match="the stage transfer took less than the clock can tell"):
            measure(StageCosts({**COSTS, TRANSFER: 0.0}), transfer=True)


@pytest.fixture(scope="module")
def recipe(tiny):
    from tempme_export.encoder.checkpoint import load_checkpoint
    from tempme_export.encoder.recipe import prepare

    return prepare(load_checkpoint(tiny[0]), tiny[1])


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("stages") / "small.mp4"
    render_clip(path, seconds=2, fps=5, size=(64, 48))
    return path


class TestReal:
    def test_the_stages_add_up_to_what_the_product_computes(self, recipe, clip):
        """The batch that the encoder gets is read and preprocessed as a bundle does it."""
        import torch

        from tempme_export.encoder.model import VideoEncoder
        from tempme_export.media.preprocess import preprocess_for
        from tempme_export.media.video import read_frames

        encoder, seen = VideoEncoder(recipe), []

        def embed(frames):
            seen.append(frames)
            with torch.inference_mode():
                return encoder(torch.from_numpy(frames)).numpy()

        protocol = Protocol(seconds=0.2, samples=5, window=3, resamples=50)
        _, (table,) = compare_stages({"torch": (None, embed)}, source_for(recipe), [clip], 2, protocol)
        expected = preprocess_for(recipe)(read_frames(clip, recipe.profile.frames))
        np.testing.assert_array_equal(seen[0], np.stack([expected, expected]))
        assert [row.stage for row in table.rows] == [DECODE, PREPROCESS, ENCODE]
        assert sum(row.share for row in table.rows) == pytest.approx(1)
        assert table.overlapped_videos_per_s > table.sequential_videos_per_s > 0
        assert table.notes[0].startswith("small.mp4: ") and table.notes[0].endswith("64x48, 2 s, 10 frames")

    @pytest.mark.parametrize("content", [None, b"", b"not a video at all"])
    def test_a_video_that_cannot_be_read(self, recipe, tmp_path, content):
        path = tmp_path / "broken.mp4"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(VideoError, match=r"broken\.mp4"):
            compare_stages({"torch": (None, lambda frames: None)}, source_for(recipe), [path], 1, PROTOCOL)

    def test_the_rendered_clip_is_what_was_asked_for_and_goes_away(self):
        with rendered_clip(seconds=2, rate=5, size=(64, 48)) as path:
            said = describe_video(path)
        assert not path.exists()
        assert said.startswith("rendered.mp4: ") and said.endswith(", 64x48, 2 s, 10 frames")
