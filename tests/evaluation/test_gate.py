"""The gate's arithmetic by hand, and every way in which its data can be unfit."""

import dataclasses
import itertools
import json
import math
import warnings
from contextlib import ExitStack
from types import SimpleNamespace

import numpy as np
import pytest

from tempme_export.artifacts import registry
from tempme_export.artifacts.backend import Folder
from tempme_export.data.annotations import RetrievalData
from tempme_export.data.clip import Clip
from tempme_export.encoder.profile import load_profile
from tempme_export.errors import InputError, PrecisionError, VideoError
from tempme_export.evaluation.agreement import GROUPS, Decisions, Embedded, Truth, compare
from tempme_export.evaluation.gate import compare_paths, read_captions, run_gate, see_videos
from tempme_export.evaluation.gate_data import GateData, open_gate
from tempme_export.evaluation.trials import Trial, count_changes, open_trials
from tempme_export.parity.tolerance import INT8, PRECISIONS, TOLERANCES, RetrievalTolerance
from tempme_export.progress import SILENT
from tempme_export.runtime.engine_facts import KEY

FP32, FP16 = TOLERANCES["fp32"], TOLERANCES["fp16"]
T2V, V2T = "text-to-video", "video-to-text"
MINI = load_profile("mini-8f")


def unit(rows):
    rows = np.asarray(rows, np.float64)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def perfect(videos=8):
    """Every text is its video, all at right angles; one spare dimension."""
    return Embedded(np.eye(videos, videos + 1, dtype=np.float32), np.eye(videos, videos + 1, dtype=np.float32))


def with_videos(embedded, rows):
    video = embedded.video.copy()
    for i, row in rows.items():
        video[i] = row
    return Embedded(embedded.text, video)


def decisions(videos, changed=()):
    """One of 100 tokens goes elsewhere in the videos named, where the original decided by 1e-6 times the index."""
    counts, gaps = np.zeros(videos, np.int64), np.zeros(videos, np.float32)
    counts[list(changed)], gaps[list(changed)] = 1, [1e-6 * i for i in changed]
    return Decisions(counts, gaps, tokens=100)


def agreement(original, artifact, changed=(), tolerance=FP32, groups=None, owner=None):
    videos = len(original.video)
    truth = Truth(range(videos) if owner is None else owner, groups)
    found, checks = compare("video.onnx", original, artifact, truth, decisions(videos, changed), tolerance)
    return found, {check.name: check for check in checks}


def failures(checks):
    return [name for name, check in checks.items() if not check.passed]


class TestCompare:
    def test_equal_paths(self):
        found, checks = agreement(perfect(), perfect())
        assert failures(checks) == []
        assert found.metrics[T2V].r1 == found.metrics[V2T].r1 == 100
        assert found.top10_overlap == found.rank_agreement == {T2V: 1, V2T: 1}
        assert found.centred_cosine == {"video": pytest.approx(1), "text": pytest.approx(1)}
        assert found.r1_change == found.decisions.r1_change == found.drift.r1_change == {T2V: 0, V2T: 0}
        assert (found.decisions.videos, found.drift.videos, found.changed_tokens) == (0, 8, 0)
        assert (found.decisions.largest, found.decisions.mean, found.largest_gap) == (0, 0, 0)

    def test_checks_are_named_once_and_cover_every_limit(self):
        _, checks = agreement(perfect(), perfect())
        recalls = [f"{d}: R@{k} lost, points" for d in (T2V, V2T) for k in (1, 5, 10)]
        order = [f"{d}: {what}" for d in (T2V, V2T) for what in ("top-10 overlap", "rank agreement")]
        drift = ["video, equal decisions: 1 - cosine", "text: 1 - cosine"]
        assert list(checks) == [*recalls, *order, *drift, "unit length: | length - 1 |"]

    def test_a_loss_is_traced_to_its_cause(self):
        """Videos 0 and 1 change places by a decision, 2, 3 and 4 by drift: two and three of eight are lost."""
        original, e = perfect(), np.eye(9, dtype=np.float32)
        artifact = with_videos(original, {0: e[1], 1: e[0], 2: e[3], 3: e[4], 4: e[2]})
        found, checks = agreement(original, artifact, changed=(0, 1))
        assert found.decisions.r1_change == {T2V: -25, V2T: -25}
        assert found.drift.r1_change == {T2V: -37.5, V2T: -37.5}
        assert found.r1_change == {T2V: -62.5, V2T: -62.5}
        assert (found.decisions.videos, found.drift.videos) == (2, 6)
        assert (found.decisions.largest, found.decisions.mean) == (1, 1)
        assert (found.drift.largest, found.drift.mean) == (1, 0.5), "three of six videos at right angles"
        assert found.changed_tokens == pytest.approx(2 / 800)
        assert found.largest_gap == pytest.approx(1e-6), "video 1's; video 0's is 0"
        assert checks[f"{T2V}: R@1 lost, points"].value == 62.5
        assert checks[f"{T2V}: R@1 lost, points"].detail == "5 of 8"

    def test_texts_are_part_of_the_drift(self):
        original = perfect()
        artifact = Embedded(original.text[[1, 0, *range(2, 8)]], original.video)
        found, checks = agreement(original, artifact, changed=range(8))
        assert found.decisions.r1_change[T2V] == 0
        assert found.drift.videos == 0 and found.drift.r1_change[T2V] == -25
        assert "text: 1 - cosine" in failures(checks)

    def test_causes_need_not_add_up(self):
        """Each alone leaves text 0 its video; together, drifted video 1 overtakes changed video 0."""
        original = perfect()
        changed, drifted = np.zeros(9, np.float32), np.zeros(9, np.float32)
        changed[[0, 8]], drifted[[0, 1]] = (0.8, 0.6), (0.9, math.sqrt(0.19))
        found, _ = agreement(original, with_videos(original, {0: changed, 1: drifted}), changed=(0,))
        assert found.decisions.r1_change[T2V] == found.drift.r1_change[T2V] == 0
        assert found.r1_change[T2V] == -12.5

    @pytest.mark.parametrize(("lost", "passed"), [(1, True), (2, False)])
    def test_one_query_may_be_lost_and_two_may_not(self, lost, passed):
        """Video i half leaves its text and another comes nearer to it; both still find their own texts first."""
        original, e = perfect(), np.eye(9)
        found = with_videos(original, {i: unit([e[i] + 2 * e[8]])[0] for i in range(lost)})
        found = with_videos(found, {7 - i: unit([e[7 - i] + 0.8 * e[i]])[0] for i in range(lost)})
        _, checks = agreement(original, found)
        check = checks[f"{T2V}: R@1 lost, points"]
        assert (check.value, check.limit, check.passed) == (12.5 * lost, 12.5, passed)
        assert checks[f"{V2T}: R@1 lost, points"].value == 0

    def test_a_gain_is_no_loss(self):
        wrong = Embedded(perfect().text, perfect().video[::-1])
        _, checks = agreement(wrong, perfect(), tolerance=FP16)
        assert checks[f"{T2V}: R@1 lost, points"].value == -100 and checks[f"{T2V}: R@1 lost, points"].passed
        assert f"{T2V}: rank agreement" in failures(checks), "and yet another model"

    def test_every_recall_is_held(self):
        """Rank 1 stays; in every query of rank 5 the right video falls to rank 6."""
        rng = np.random.default_rng(3)
        videos, e = 40, np.eye(40)
        score = 0.01 * rng.random((videos, videos))
        for q in range(1, videos):  # four others come before the right one
            score[q, (q + np.arange(1, 5)) % videos] = 0.9
            score[q, q] = 0.5
        score[0, 0] = 1
        worse = score.copy()
        for q in range(1, videos):
            worse[q, (q + 5) % videos] = 0.9
        original, artifact = Embedded(e.astype(np.float32), score.T), Embedded(e.astype(np.float32), worse.T)
        _, checks = agreement(original, artifact)
        lost = {k: checks[f"{T2V}: R@{k} lost, points"] for k in (1, 5, 10)}
        assert [lost[k].passed for k in (1, 5, 10)] == [True, False, True]
        assert lost[5].value == 97.5 and lost[5].detail == "39 of 40"

    def test_groups_are_a_metric_of_their_own(self):
        """Two videos of a group change places: R@1 within groups falls by 2 of 8, and is the only recall there."""
        original, e = perfect(), np.eye(9, dtype=np.float32)
        artifact = with_videos(original, {0: e[1], 1: e[0]})
        found, checks = agreement(original, artifact, changed=(0,), groups=["a", "a", "b", "b", "c", "c", "d", "d"])
        assert found.metrics[GROUPS].r1 == 75 and found.metrics[GROUPS].candidates == 2
        assert found.decisions.r1_change[GROUPS] == -25, "text 0 loses its video, and text 1's has an equal"
        assert [name for name in checks if name.startswith(GROUPS)] == [f"{GROUPS}: R@1 lost, points"]
        assert not checks[f"{GROUPS}: R@1 lost, points"].passed

    def test_nan_in_one_embedding_of_many_fails(self):
        """It comes before every right candidate, and its length is none."""
        original = perfect(40)
        artifact = with_videos(original, {5: np.full(41, np.nan)})
        with np.errstate(invalid="ignore"):
            found, checks = agreement(original, artifact, changed=(5,), tolerance=FP16)
        assert "unit length: | length - 1 |" in failures(checks)
        assert checks[f"{T2V}: R@1 lost, points"].value == 100
        assert math.isnan(found.decisions.largest)

    def test_drift_has_the_parity_limit_where_decisions_are_equal(self):
        angle = 2e-3  # 1 - cosine 2e-6
        original, moved = perfect(), np.zeros(9, np.float32)
        moved[[3, 8]] = math.cos(angle), math.sin(angle)
        artifact = with_videos(original, {3: moved})
        name = "video, equal decisions: 1 - cosine"
        _, checks = agreement(original, artifact)
        assert failures(checks) == [name] and checks[name].value == pytest.approx(2e-6, rel=1e-3)
        assert failures(agreement(original, artifact, changed=(3,))[1]) == [], "near ties may move it; recalls judge"
        assert name not in agreement(original, artifact, tolerance=FP16)[1]
        assert name not in agreement(original, artifact, changed=range(8))[1], "none is left to compare"


class TestOrder:
    @pytest.mark.parametrize("videos", [8, 21, 300])
    def test_overlap_by_definition(self, videos):
        """300 queries are more than one block."""
        rng = np.random.default_rng(videos)
        first, second = unit(rng.standard_normal((videos, 12))), unit(rng.standard_normal((videos, 12)))
        text = unit(rng.standard_normal((videos, 12)))
        moved = unit(first + 0.3 * second)
        found, _ = agreement(Embedded(text, first), Embedded(text, moved), tolerance=FP16)
        k = min(10, videos // 2)

        def best(scores):
            return [set(np.argsort(-row)[:k].tolist()) for row in scores]

        for direction, a, b in (
            (T2V, text @ first.T, text @ moved.T),
            (V2T, first @ text.T, moved @ text.T),
        ):
            shared = [len(x & y) / k for x, y in zip(best(a), best(b), strict=True)]
            assert found.top10_overlap[direction] == pytest.approx(np.mean(shared), abs=1e-12)
            assert 0.3 < found.top10_overlap[direction] < 1

    def test_rank_agreement_is_the_mean_over_all_queries(self):
        """300 queries in two blocks: the last one turned round counts as one in 300, whatever its block's size."""
        rng = np.random.default_rng(5)
        text, video = unit(rng.standard_normal((300, 16))), unit(rng.standard_normal((300, 16)))
        turned = text.copy()
        turned[-1] *= -1
        found, _ = agreement(Embedded(text, video), Embedded(turned, video), tolerance=FP16)
        assert found.rank_agreement[T2V] == pytest.approx(1 - 2 / 300)

    def test_few_candidates_still_say_something(self):
        """Ten candidates: their first five, since all ten would overlap in any order."""
        original = perfect(10)
        rng = np.random.default_rng(1)
        shuffled = Embedded(original.text, unit(rng.standard_normal((10, 11))))
        _, checks = agreement(original, shuffled)
        assert checks[f"{T2V}: top-10 overlap"].value < 0.9
        assert checks[f"{T2V}: top-10 overlap"].detail == "of the first 5, half of the candidates"

    def test_equal_captions_tie_in_both_paths(self):
        """41 copies of one caption: their products differ in the last bit by where they stand, and that is no order."""
        rng = np.random.default_rng(0)
        video, text = unit(rng.standard_normal((41, 33))), unit(rng.standard_normal((1, 33)))
        original, artifact = (Embedded(np.tile(one, (41, 1)), video) for one in (text, unit(text + 1e-5 * text**2)))
        assert (original.text != artifact.text).any()
        found, checks = agreement(original, artifact)
        assert found.top10_overlap == {T2V: 1, V2T: 1}
        assert found.rank_agreement[V2T] == 1
        assert failures(checks) == []

    def test_an_exchange_of_neighbours_passes_and_a_shuffle_does_not(self):
        """Eight candidates in falling order for every query; in one query two of them change places."""
        fall = np.linspace(0.9, 0.2, 8)
        scores = np.array([np.roll(fall, q) for q in range(8)])
        exchanged = scores.copy()
        exchanged[0, [5, 6]] = scores[0, [6, 5]]
        original = Embedded(np.eye(8, dtype=np.float32), scores.T)
        name = f"{T2V}: rank agreement"
        _, checks = agreement(original, Embedded(original.text, exchanged.T))
        assert checks[name].value == pytest.approx(1 - 12 / (8 * 63) / 8) and checks[name].passed
        exchanged[1, [5, 6]] = scores[1, [6, 5]]
        assert not agreement(original, Embedded(original.text, exchanged.T))[1][name].passed


class TestLimits:
    limits = RetrievalTolerance(recall_drop=1.0, top10_overlap=0.97, gate_rank_agreement=0.99)

    def test_many_queries_have_the_tables_limits(self):
        assert self.limits.recall_limit(1000) == 1.0
        assert self.limits.overlap_limit(1000, 10) == 0.97
        assert self.limits.rank_limit(1000, 1000) == 0.99

    def test_few_queries_have_room_for_one(self):
        assert self.limits.recall_limit(8) == 12.5
        assert self.limits.overlap_limit(3, 10) == 29 / 30
        assert self.limits.rank_limit(1, 8) == pytest.approx(1 - 12 / 504)

    def test_the_table_grows_with_the_precision(self):
        table = [TOLERANCES[precision].retrieval for precision in PRECISIONS if precision != INT8]
        for strict, lenient in itertools.pairwise(table):
            assert strict.recall_drop < lenient.recall_drop
            assert strict.top10_overlap > lenient.top10_overlap
            assert strict.gate_rank_agreement > lenient.gate_rank_agreement
        assert table[0] == RetrievalTolerance(0.1, 0.999, 0.999)
        assert table[-1].recall_drop <= 2 and table[-1].top10_overlap >= 0.9
        assert TOLERANCES[INT8].retrieval.recall_drop <= 0.5 and TOLERANCES[INT8].retrieval.top10_overlap >= 0.95


class TestCountChanges:
    def test_by_hand(self):
        """Three videos, two merges: the first equal, the second otherwise in merge 1, the third in both."""
        expected = [np.zeros((3, 4), np.int32), np.zeros((3, 6), np.int32)]
        found = [np.zeros((6, 2), np.int32), np.zeros((3, 6), np.int32)]
        found[0][5] = 1, 1
        found[1][1, 3] = found[1][2, 0] = 7
        gaps = np.array([[1, 2], [3, 4], [5, 6]], np.float32)
        changed, first = count_changes(found, expected, gaps)
        assert changed.tolist() == [0, 1, 3]
        assert first.tolist() == [0, 4, 5], "what the original decided by in the first merge that differs"

    def test_nothing_merges(self):
        changed, first = count_changes([], [], np.zeros((2, 0), np.float32))
        assert changed.tolist() == [0, 0] and first.tolist() == [0, 0]
        assert Decisions(changed, first, tokens=0).share == 0

    def test_share_is_of_all_tokens(self):
        assert Decisions(np.array([0, 1, 3]), np.zeros(3, np.float32), tokens=10).share == pytest.approx(4 / 30)


class TestReadCaptions:
    def test_equal_captions_are_read_once_and_all_come_back_in_order(self, recording):
        """65 distinct captions are more than one call."""
        rng = np.random.default_rng(0)
        ids = rng.permutation(np.repeat(np.arange(65), 3))[:, None] * np.ones((1, 4), np.int64)
        seen, told = [], recording()

        def read(rows):
            seen.append(len(rows))
            return rows[:, :2].astype(np.float32)

        first, second = read_captions(ids.astype(np.int64), [read, lambda rows: -read(rows)], told)
        np.testing.assert_array_equal(first[:, 0], ids[:, 0])
        np.testing.assert_array_equal(second, -first)
        assert seen == [64, 64, 1, 1]
        assert told.counts == [("gate: captions through both paths", done, 65) for done in (0, 64, 65)]


def data_of(videos, folder, captions=None, **changes):
    """One caption for each video; the files are empty."""
    paths = tuple(folder / f"v{i}.mp4" for i in range(videos))
    for path in paths:
        path.touch()
    captions = tuple(captions or (f"a thing of kind {'x' * (i + 1)}" for i in range(videos)))
    ids = tuple(f"v{i}" for i in range(videos))
    data = RetrievalData(
        "made up", ids, tuple(map(Clip, paths)), captions, tuple(i % videos for i in range(len(captions)))
    )
    return dataclasses.replace(data, **changes)


class TestOpenGate:
    def test_captions_become_token_ids(self, tmp_path):
        data = data_of(8, tmp_path)
        opened = open_gate(data, None, MINI)
        assert opened.data is data and opened.missing == ()
        assert opened.token_ids.shape == (8, MINI.text_length) and opened.token_ids.dtype == np.int64
        assert len(np.unique(opened.token_ids, axis=0)) == 8

    def test_a_table_is_opened_with_a_folder_of_videos(self, tmp_path):
        data_of(8, tmp_path)
        table = tmp_path / "annotations" / "table.csv"
        table.parent.mkdir()
        table.write_text("video,caption\n" + "".join(f"v{i}.mp4,thing {i}\n" for i in range(8)))
        with pytest.raises(InputError, match="found 0 videos"):
            open_gate(table, None, MINI)
        assert open_gate(str(table), str(tmp_path), MINI).videos == 8

    def test_too_few_files(self, tmp_path):
        data = data_of(11, tmp_path)
        for i in range(4):
            data.paths[i].unlink()
        with pytest.raises(InputError, match=r"made up: found 7 videos .* at least 8: .* by chance") as caught:
            open_gate(data, None, MINI)
        assert f"4 are left out (v0: {data.paths[0]} is not there; " in str(caught.value)
        assert "v2" in str(caught.value) and "v3" not in str(caught.value) and "..." in str(caught.value)
        data.paths[0].touch()
        opened = open_gate(data, None, MINI)
        assert (opened.videos, opened.captions, opened.missing) == (8, 8, (1, 2, 3))
        assert opened.to_dict() == {
            "data": "made up",
            "sha256": opened.sha256,
            "videos": 8,
            "captions": 8,
            "missing": ["v1", "v2", "v3"],
        }

    def test_too_few_and_none_missing(self, tmp_path):
        with pytest.raises(InputError, match="found 7 videos") as caught:
            open_gate(data_of(7, tmp_path), None, MINI)
        assert "left out" not in str(caught.value)

    def test_captions_of_missing_videos_are_not_counted(self, tmp_path):
        data = data_of(9, tmp_path, captions=[f"caption {i}" for i in range(20)])
        data.paths[1].unlink()
        opened = open_gate(data, None, MINI)
        assert (opened.videos, opened.captions) == (8, 17), "captions 1, 10 and 19 are of video 1"

    def test_a_backbone_without_a_tokenizer(self, tmp_path):
        profile = dataclasses.replace(MINI, backbone="checkpoint")
        with pytest.raises(InputError, match=r"mini-8f names no open_clip backbone.*without --gate"):
            open_gate(data_of(8, tmp_path), None, profile)

    def test_a_folder_beside_data_that_is_read(self, tmp_path):
        with pytest.raises(InputError, match="expected one of them"):
            open_gate(data_of(8, tmp_path), tmp_path, MINI)

    def test_long_captions_are_cut_without_a_word(self, tmp_path):
        data = data_of(8, tmp_path, captions=[f"thing {i} " * 40 for i in range(8)])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert open_gate(data, None, MINI).token_ids.shape == (8, MINI.text_length)

    def test_fingerprint_is_of_what_is_asked(self, tmp_path):
        data = data_of(8, tmp_path)
        before = open_gate(data, None, MINI).sha256
        (tmp_path / "elsewhere").mkdir()
        moved = data_of(8, tmp_path / "elsewhere")
        assert open_gate(moved, None, MINI).sha256 == before, "the place of a file is not asked"
        for change in (
            {"captions": ("another", *data.captions[1:])},
            {"video_ids": ("another", *data.video_ids[1:])},
            {"owner": (1, 0, *data.owner[2:])},
            {"groups": tuple("aabbccdd")},
        ):
            assert open_gate(dataclasses.replace(data, **change), None, MINI).sha256 != before, change


class Original:
    """Embeds a clip by its first pixel, on the axis of that number; decides 0 everywhere, by 0.5."""

    def __init__(self, recipe, device):
        self.batches = []

    def video(self, frames):
        self.batches.append(len(frames))
        values = np.rint(frames[:, 0, 0, 0, 0]).astype(int)
        assigns = [np.zeros((len(frames), 6), np.int32)]
        return np.eye(16, dtype=np.float32)[values], assigns, np.full((len(frames), 1), 0.5, np.float32)

    def text(self, ids):
        return np.eye(16, dtype=np.float32)[ids[:, 0]]


class Video:
    """Answers what `Original` does, with a decision of its own in the clips named."""

    def __init__(self, other=(), mask=False):
        self.inputs = {"frames": None, **({"frame_mask": None} if mask else {})}
        self.other, self.seen = other, []

    def infer(self, inputs):
        self.seen.append(inputs)
        frames = inputs["frames"]
        embedding, (assign,), _ = Original(None, None).video(frames)
        values = np.rint(frames[:, 0, 0, 0, 0])
        assign[np.isin(values, self.other), :3] = 1
        return {"video_embedding": embedding, "assign_00": assign.reshape(2 * len(frames), 3)}


class Text:
    def infer(self, inputs):
        return {"text_embedding": Original(None, None).text(inputs["token_ids"])}


SCHEDULE = SimpleNamespace(merges=(SimpleNamespace(assign_name="assign_00"),))
RECIPE = SimpleNamespace(
    profile=SimpleNamespace(frames=2, batch=SimpleNamespace(opt=4)),
    backbone=SimpleNamespace(image_size=4, mean=(0, 0, 0), std=(1 / 255,) * 3, embed=16),
    schedule=SCHEDULE,
)


class Frames:
    """A source of so many clips without files: clip i is full of i + 1; those in `unreadable` cannot be read."""

    frames, size, allow_damaged = 2, 4, False

    def __init__(self, count, unreadable=(), missing=()):
        self.numbers, self.unreadable = [i for i in range(count) if i not in missing], unreadable

    def __len__(self):
        return len(self.numbers)

    def stream(self, selected, workers=0, changes=None):
        for i in selected:
            number = self.numbers[i]
            pixels = np.full((2, 4, 4, 3), number + 1, np.uint8)
            yield i, VideoError(f"v{number}.mp4 is torn") if number in self.unreadable else pixels


class TestSeeVideos:
    @pytest.mark.parametrize("videos", [8, 9])
    def test_batches_and_order(self, videos, recording):
        original, told = Original(None, None), recording()
        artifact = Trial("video.onnx", "ort", SCHEDULE, Video(), Video(other=(3, 9)), Text())
        embedding, tokens, unreadable = see_videos(RECIPE, Frames(videos), original, [artifact], told)
        assert original.batches == ([4, 4] if videos == 8 else [4, 4, 1])
        np.testing.assert_array_equal(embedding.argmax(axis=1), np.arange(1, videos + 1))
        np.testing.assert_array_equal(np.concatenate(artifact.embeddings), embedding)
        assert (tokens, unreadable) == (6, {})
        found = artifact.decisions(tokens)
        changed = [6 if i in (2, 8) else 0 for i in range(videos)]
        assert found.changed.tolist() == [n // 2 for n in changed], "three of six tokens of the clips 3 and 9"
        assert found.gap.tolist() == [0.5 if n else 0 for n in changed]
        assert told.counts == [("gate: videos through both paths", i, videos) for i in range(videos + 1)]

    @pytest.mark.parametrize("torn", [{0, 7}, {8}, {3, 4, 5, 6}, set(range(9))])
    def test_unreadable_videos_are_left_out(self, torn):
        source = Frames(9, torn)
        embedding, _, unreadable = see_videos(RECIPE, source, Original(None, None), [], SILENT)
        assert unreadable == {i: f"v{i}.mp4 is torn" for i in torn}
        assert embedding.shape == (9 - len(torn), 16)
        np.testing.assert_array_equal(embedding.argmax(axis=1), [i + 1 for i in range(9) if i not in torn])

    def test_a_graph_with_a_mask_gets_one(self):
        video = Video(mask=True)
        artifact = Trial("video.onnx", "ort", SCHEDULE, video, video, Text())
        see_videos(RECIPE, Frames(8), Original(None, None), [artifact], SILENT)
        assert len(video.seen) == 2, "one call where the runner tells its decisions itself"
        mask = video.seen[0]["frame_mask"]
        assert mask.shape == (4, 2) and mask.dtype == np.bool_ and mask.all()


def compared(trial, data, missing=(), torn=(), tolerance=FP32, original=None):
    """The gate of one trial whose texts are right; `torn` videos cannot be read."""
    if not isinstance(trial, Trial):
        trial = Trial("video.onnx", "ort", SCHEDULE, trial, trial, Text())
    gate = GateData(data, np.array([[owner + 1] for owner in data.owner]), tuple(missing))
    source = Frames(len(data.paths), torn, missing)
    return compare_paths(RECIPE, gate, source, original or Original(None, None), [trial], tolerance)


class TestComparePaths:
    def test_equal_paths_pass(self, tmp_path):
        found = compared(Video(), data_of(9, tmp_path, captions=[f"c{i}" for i in range(18)]))
        (report,), (comparison,) = found.reports, found.comparisons
        assert (report.artifact, report.backend, report.status) == ("gate video.onnx", "ort", "passed")
        assert (found.videos, found.captions, found.skipped) == (9, 18, {})
        assert found.original == comparison.metrics and found.original[T2V].r1 == 100
        assert found.original[T2V].queries == 18 and found.original[V2T].queries == 9

    def test_what_is_left_out_goes_with_its_captions(self, tmp_path):
        data = data_of(12, tmp_path, captions=[f"c{i}" for i in range(24)])
        found = compared(Video(other=(12,)), data, missing=(2,), torn={0, 5})
        assert (found.videos, found.captions) == (9, 18)
        assert found.skipped == {
            "v2": f"{data.paths[2]} is not there",
            "v0": "v0.mp4 is torn",
            "v5": "v5.mp4 is torn",
        }
        assert found.original[T2V].r1 == 100, "every caption still has its own video"
        assert found.comparisons[0].decisions.videos == 1 and found.comparisons[0].largest_gap == 0.5

    def test_too_few_can_be_read(self, tmp_path):
        with pytest.raises(InputError, match=r"found 7 videos .*2 are left out \(v1: v1\.mp4 is torn; v2: "):
            compared(Video(), data_of(9, tmp_path), torn={1, 2})

    def test_another_embedding_is_refused(self, tmp_path):
        class Wrong(Video):
            def infer(self, inputs):
                found = super().infer(inputs)
                return {**found, "video_embedding": np.roll(found["video_embedding"], 1, axis=1)}

        found = compared(Wrong(), data_of(9, tmp_path), tolerance=TOLERANCES["bf16"])
        assert found.reports[0].status == "failed"
        assert found.comparisons[0].drift.r1_change[T2V] == -100

    def test_the_document_is_json_whatever_was_found(self, tmp_path):
        class NotANumber(Video):
            def infer(self, inputs):
                return {**super().infer(inputs), "video_embedding": np.full((len(inputs["frames"]), 16), np.nan)}

        with np.errstate(invalid="ignore"):
            found = compared(NotANumber(), data_of(9, tmp_path))
        assert found.reports[0].status == "failed"
        document = json.loads(json.dumps(found.to_dict(), allow_nan=False))
        assert document["comparisons"][0]["drift"]["largest"] is None
        assert document["comparisons"][0]["metrics"][T2V]["r1"] == 0
        assert document["original"][T2V]["r1"] == 100 and document["original"][T2V]["r_sum"] == 300
        assert document["reports"][0]["status"] == "failed"

    @pytest.mark.parametrize("gap", [0.5, 1e-9])
    def test_an_artifact_that_does_not_say_how_it_decided(self, tmp_path, gap):
        """Its embeddings are judged; at near ties, where it may rightly differ, by what they retrieve."""

        class Turned(Video):
            def infer(self, inputs):
                found = super().infer(inputs)["video_embedding"]
                found[:, 15] += 0.01
                return {"video_embedding": found / np.linalg.norm(found, axis=1, keepdims=True)}

        class Reversed(Original):
            def video(self, frames):
                embedding, assigns, gaps = super().video(frames)
                return embedding, assigns, np.full_like(gaps, gap)

        trial = Trial("video.plan", "TensorRT", SCHEDULE, Turned(), None, Text())
        found = compared(trial, data_of(9, tmp_path), original=Reversed(None, None))
        (comparison,), (report,) = found.comparisons, found.reports
        failed = [check.name for check in report.checks if not check.passed]
        assert failed == (["video, safe decisions: 1 - cosine"] if gap == 0.5 else [])
        assert comparison.decisions is None and comparison.changed_tokens is None and comparison.drift.videos == 9
        json.dumps(found.to_dict(), allow_nan=False)

    def test_nothing_could_run(self, runs, tmp_path):
        def refuse(opened):
            raise PrecisionError("no kernel")

        runs("ort", before=refuse)
        data = data_of(8, tmp_path)
        found = run_gate(RECIPE, Folder(tmp_path, "bf16"), GateData(data, np.ones((8, 1), np.int64), ()))
        assert (found.original, found.comparisons, found.videos) == (None, (), 0)
        assert found.to_dict()["original"] is None and found.to_dict()["reports"][0]["status"] == "not run"


ENGINE_FACTS = {
    **{"tensorrt": "10.15.1.29", "gpu": "NVIDIA H100", "capability": "sm_90", "driver": "", "precision": "fp32"},
    **{"batch": (1, 4, 8), "inputs": {}, "outputs": {}, "target": "sm_90", "plugins": {}, "engine_plugins": 0},
    **{"layers": {}, "products": {}, "attentions": 0, "seconds": 1.0},
}


class TestOpenTrials:
    @pytest.fixture
    def runners(self, registering):
        """Runners that open nothing. Returns what was opened, and where to put files that cannot be run."""
        opened, refused = [], set()

        class Opening:
            def __init__(self, backend):
                self.kind, self.real = backend.name, backend.runtime

            def describe(self, facts, device):
                return self.real.describe(facts, device)

            def open_runner(self, path, facts, setting):
                opened.append((self.kind, path.name, setting.device, setting.extra_outputs))
                if path.name in refused:
                    raise PrecisionError(f"no kernel for {path.name}")
                return ExitStack()

        registering(*(dataclasses.replace(one, runner=Opening(one)) for one in registry.BACKENDS))
        return opened, refused

    def open(self, folder, precision, schedule=SCHEDULE):
        with ExitStack() as stack:
            return open_trials(Folder(folder, precision, {KEY: ENGINE_FACTS}), schedule, "cpu", stack)

    def test_the_graph_as_published_and_its_decisions(self, runners, tmp_path):
        (artifact,), reports = self.open(tmp_path, "fp32")
        assert (artifact.name, artifact.backend, reports) == ("video.onnx", "ONNX Runtime, cpu", [])
        assert runners[0] == [
            ("ort", "video.onnx", "cpu", ()),
            ("ort", "video.onnx", "cpu", ("assign_00",)),
            ("text-ort", "text.onnx", "cpu", ()),
        ]

    def test_a_package_is_gated_too(self, runners, tmp_path):
        (tmp_path / "video.pt2").touch()
        artifacts, _ = self.open(tmp_path, "fp32")
        assert [a.name for a in artifacts] == ["video.onnx", "video.pt2"]
        assert artifacts[1].video is artifacts[1].with_merges and artifacts[1].backend == "AOTInductor, cpu"

    def test_the_engine_and_its_graph_are_gated_too(self, runners, tmp_path):
        for name in ("video.plan", "video.plugin.onnx"):
            (tmp_path / name).touch()
        trials, _ = self.open(tmp_path, "fp32")
        assert [one.name for one in trials] == ["video.onnx", "video.plugin.onnx", "video.plan"]
        assert trials[2].with_merges is None and trials[2].backend == "TensorRT 10.15.1.29, NVIDIA H100"
        assert ("tensorrt", "video.plan", "cuda", ()) in runners[0]
        assert ("plugin-ort", "video.plugin.onnx", "cpu", ("assign_00",)) in runners[0]

    def test_without_merges_nothing_is_exposed(self, runners, tmp_path):
        (artifact,), _ = self.open(tmp_path, "fp32", SimpleNamespace(merges=()))
        assert artifact.video is artifact.with_merges

    @pytest.mark.parametrize("name", ["video.onnx", "text.onnx"])
    def test_a_precision_that_cannot_run(self, runners, tmp_path, name):
        runners[1].add(name)
        artifacts, (report,) = self.open(tmp_path, "bf16")
        assert artifacts == [] and report.artifact == "gate video.onnx"
        assert report.status == "not run" and name in report.reason
        with pytest.raises(PrecisionError, match=name):
            self.open(tmp_path, "fp32")
