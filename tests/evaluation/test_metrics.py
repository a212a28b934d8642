"""Retrieval metrics against their definition in plain loops, at ties, at what is no number, and in blocks."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tempme_export.errors import InputError
from tempme_export.evaluation.metrics import (
    Retrieval,
    best_caption_ranks,
    best_caption_retrieval,
    group_ranks,
    group_retrieval,
    ranks,
    retrieval,
    summarise,
    text_to_video_ranks,
    video_to_text_ranks,
)

NAN = np.nan


@pytest.fixture(scope="module")
def many():
    """(text [2500, 5], video [2100, 5], owner): more scores than are looked at at once; every video has a caption."""
    rng = np.random.default_rng(2)
    owner = rng.permutation(np.concatenate([np.arange(2100), rng.integers(0, 2100, 400)]))
    return unit(rng.standard_normal((2500, 5))), unit(rng.standard_normal((2100, 5))), owner


def rank_by_definition(scores, right):
    """The rank of one query, candidate by candidate."""
    best = max((s for s, r in zip(scores, right, strict=True) if r and not np.isnan(s)), default=-np.inf)
    rank = 1
    for score, is_right in zip(scores, right, strict=True):
        if not is_right and (np.isnan(score) or score >= best):
            rank += 1
    return rank


@st.composite
def tables(draw):
    """Scores of a few values, some NaN or infinite, and one right candidate or more for each query."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    queries, candidates = draw(st.integers(1, 6)), draw(st.integers(1, 7))
    values = np.array([0.0, 0.25, -0.5, 1.0, NAN, np.inf, -np.inf])[: draw(st.integers(1, 7))]
    right = rng.random((queries, candidates)) < draw(st.sampled_from([0.0, 0.3, 0.9]))
    right[np.arange(queries), rng.integers(candidates, size=queries)] = True
    return rng.choice(values, (queries, candidates)), right


class TestRanks:
    @given(tables())
    @settings(max_examples=300, deadline=None)
    def test_the_definition(self, table):
        scores, right = table
        found = ranks(scores, right)
        assert found.dtype == np.int64
        assert found.tolist() == [rank_by_definition(*row) for row in zip(scores, right, strict=True)]

    @given(tables(), st.integers(0, 2**32 - 1))
    @settings(deadline=None)
    def test_the_order_of_candidates_does_not_matter(self, table, seed):
        scores, right = table
        order = np.random.default_rng(seed).permutation(scores.shape[1])
        assert ranks(scores[:, order], right[:, order]).tolist() == ranks(scores, right).tolist()

    @given(tables(), st.integers(0, 2**32 - 1))
    @settings(deadline=None)
    def test_a_query_does_not_see_the_others(self, table, seed):
        scores, right = table
        order = np.random.default_rng(seed).permutation(len(scores))
        assert ranks(scores[order], right[order]).tolist() == ranks(scores, right)[order].tolist()

    @given(tables())
    @settings(deadline=None)
    def test_bounds_and_a_better_score_never_ranks_worse(self, table):
        scores, right = table
        before = ranks(scores, right)
        assert (before >= 1).all() and (before <= 1 + (~right).sum(axis=1)).all()
        better = np.where(right & ~np.isnan(scores), scores + 0.25, scores)
        assert (ranks(better, right) <= before).all()

    @pytest.mark.parametrize(
        ("scores", "right", "expected"),
        [
            ([0.9, 0.5, 0.1], [1, 0, 0], 1),
            ([0.9, 0.5, 0.1], [0, 1, 0], 2),
            ([0.9, 0.5, 0.1], [0, 0, 1], 3),
            ([0.5, 0.5, 0.1], [1, 0, 0], 2),
            ([0.5, 0.5, 0.5], [0, 0, 1], 3),
            ([0.5, NAN, 0.1], [1, 0, 0], 2),
            ([NAN, 0.5, 0.1], [1, 0, 0], 3),
            ([NAN, NAN, NAN], [0, 1, 0], 3),
            ([-np.inf, -np.inf, 0.1], [1, 0, 0], 3),
            ([0.2, 0.9, 0.5, 0.5], [1, 0, 1, 0], 3),  # the best right one counts, the other is no rival
            ([NAN, 0.9, 0.5, 0.1], [1, 0, 1, 0], 2),
            ([0.1, 0.9], [1, 1], 1),
            ([0.3], [1], 1),
            ([NAN], [1], 1),
        ],
    )
    def test_known(self, scores, right, expected):
        assert ranks([scores], np.array([right], bool)).tolist() == [expected]

    def test_all_equal_is_the_worst(self):
        assert ranks(np.zeros((3, 5)), np.eye(3, 5, dtype=bool)).tolist() == [5, 5, 5]
        two_right = np.array([[True, True, False, False, False]])
        assert ranks(np.zeros((1, 5)), two_right).tolist() == [4]

    def test_half_precision_and_whole_numbers(self):
        right = np.array([[False, True, False]])
        for dtype in (np.float16, np.float32, np.int64):
            assert ranks(np.array([[2, 1, 0]], dtype), right).tolist() == [2]

    def test_scores_closer_than_a_tie_are_equal(self):
        scores, right = [[0.5, 0.5 - 1e-12, 0.4]], np.array([[True, False, False]])
        assert ranks(scores, right).tolist() == [1]
        assert ranks(scores, right, tie=1e-11).tolist() == [2]

    @pytest.mark.parametrize(
        ("scores", "right", "message"),
        [
            (np.zeros(3), np.ones(3, bool), r"similarity \[3\]"),
            (np.zeros((2, 3)), np.ones((3, 2), bool), r"bool \[3, 2\]"),
            (np.zeros((2, 2)), np.eye(2), "right float64"),
            (np.zeros((2, 2)), np.array([[True, False], [False, False]]), "query 1 without a right candidate"),
            (np.zeros((1, 0)), np.ones((1, 0), bool), "query 0 without"),
        ],
    )
    def test_refusals(self, scores, right, message):
        with pytest.raises(InputError, match=message):
            ranks(scores, right)


class TestSummary:
    def test_known(self):
        found = summarise("text-to-video", np.array([1, 1, 2, 5, 6, 10, 11, 100]), 200)
        assert found == Retrieval("text-to-video", 25.0, 50.0, 75.0, 5.5, 17.0, 8, 200)
        assert found.r_sum == 150.0
        assert found.to_dict() == {
            "direction": "text-to-video",
            "r1": 25.0,
            "r5": 50.0,
            "r10": 75.0,
            "median_rank": 5.5,
            "mean_rank": 17.0,
            "queries": 8,
            "candidates": 200,
            "r_sum": 150.0,
        }

    def test_no_queries(self):
        with pytest.raises(InputError, match="no queries for video-to-text"):
            summarise("video-to-text", np.zeros(0, np.int64), 3)


def unit(rows):
    rows = np.asarray(rows, np.float64)
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture
def example():
    """By hand: three videos on the axes, four texts. Cosines, text by video:

    text 0 (video 0):  0.8  0.6  0     -> rank 1
    text 1 (video 0):  0    0.6  0.8   -> rank 3
    text 2 (video 1):  0.6  0    0.8   -> rank 3
    text 3 (video 2):  0    0    1     -> rank 1
    Video 0 has texts (.8) and (0), text 2 (.6) between them: its best is first. Video 1: text 2 (0) comes after
    texts 0 and 1 (.6) and ties with text 3: rank 4. Video 2: text 3 (1): rank 1.
    """
    text = np.array([[0.8, 0.6, 0], [0, 0.6, 0.8], [0.6, 0, 0.8], [0, 0, 1]], np.float32)
    return text, np.eye(3, dtype=np.float32), [0, 0, 1, 2]


class TestRetrieval:
    def test_by_hand(self, example):
        assert text_to_video_ranks(*example).tolist() == [1, 3, 3, 1]
        assert video_to_text_ranks(*example).tolist() == [1, 4, 1]
        there, back = retrieval(*example)
        assert there == Retrieval("text-to-video", 50.0, 100.0, 100.0, 2.0, 2.0, 4, 3)
        assert back == Retrieval("video-to-text", pytest.approx(200 / 3), 100.0, 100.0, 1.0, 2.0, 3, 4)

    def test_the_definition(self):
        rng = np.random.default_rng(1)
        owner = rng.integers(0, 23, 61)  # some videos without a caption, most with several
        assert len(set(owner.tolist())) < 23
        video, text = unit(rng.standard_normal((23, 5))), unit(rng.standard_normal((61, 5)))
        scores = text.astype(np.float64) @ video.astype(np.float64).T
        right = owner[:, None] == np.arange(23)
        expected = [rank_by_definition(*row) for row in zip(scores, right, strict=True)]
        assert text_to_video_ranks(text, video, owner).tolist() == expected
        asked = sorted(set(owner.tolist()))
        expected = [rank_by_definition(scores[:, v], right[:, v]) for v in asked]
        assert video_to_text_ranks(text, video, owner).tolist() == expected
        assert retrieval(text, video, owner)[1].queries == len(asked)

    def test_blocks_change_nothing(self, many):
        """A query's rank is its own: of some queries alone, few enough for one block, as of all."""
        text, video, owner = many
        assert 1000 * len(video) < 2**22 < len(text) * len(video), "one block, and more than one"
        found = text_to_video_ranks(text, video, owner)
        for start in (0, 1000, len(text) - 1000):
            some = slice(start, start + 1000)
            assert found[some].tolist() == text_to_video_ranks(text[some], video, owner[some]).tolist()
        scores, right = text @ video.T, owner[:, None] == np.arange(len(video))
        best = np.where(right, scores, -np.inf).max(axis=0)
        expected = 1 + ((scores >= best) & ~right).sum(axis=0)
        assert video_to_text_ranks(text, video, owner).tolist() == expected.tolist()

    def test_only_a_block_of_scores_exists(self, many):
        text, video, owner = (np.concatenate([one] * 2) for one in many)
        whole = len(text) * len(video) * 8
        tracemalloc.start()
        try:
            retrieval(text, video, owner)
            assert tracemalloc.get_traced_memory()[1] < 0.75 * whole
        finally:
            tracemalloc.stop()

    @pytest.mark.parametrize("width", [3, 64, 511])
    def test_a_copy_of_the_right_one_ties(self, width):
        """Equal rows must have equal scores wherever they stand in the matrix."""
        rng = np.random.default_rng(4)
        video = unit(rng.standard_normal((40, width)))
        video = np.concatenate([video, video, video])[:119]  # row 39 is there twice, the others three times
        text = unit(video[:40] + 0.01 * rng.standard_normal((40, width)))
        found = text_to_video_ranks(text, video, np.arange(40))
        assert found.tolist() == [3] * 39 + [2]
        moved = np.concatenate([np.arange(80, 119), [79]])  # the copies are the right ones
        assert text_to_video_ranks(text, video, moved).tolist() == found.tolist()

    @pytest.mark.parametrize("width", [5, 64, 512])
    def test_equal_sums_tie_whatever_their_order(self, width):
        """The same products in another order: equal cosines, whose last bits are not."""
        rng = np.random.default_rng(8)
        row = rng.standard_normal(width)
        video = np.stack([rng.permutation(row) for _ in range(60)])
        text = np.full((60, width), 0.7)
        assert len(np.unique(text[:1] @ video.T)) > 1
        assert text_to_video_ranks(text, video, np.arange(60)).tolist() == [60] * 60

    def test_a_float32_step_is_no_tie(self):
        video = np.array([[1, 0], [1 - 2**-24, 0]], np.float32)
        text = np.array([[1, 0], [1, 0]], np.float32)
        assert text_to_video_ranks(text, video, [0, 1]).tolist() == [1, 2]

    def test_embeddings_all_equal(self):
        text, video = np.ones((6, 4), np.float32) / 2, np.ones((3, 4), np.float32) / 2
        there, back = retrieval(text, video, [0, 0, 0, 1, 1, 2])
        assert (there.r1, there.mean_rank) == (0.0, 3.0)
        assert back.mean_rank == np.mean([4, 5, 6])

    def test_moving_videos_with_their_texts_changes_nothing(self):
        rng = np.random.default_rng(5)
        owner = np.arange(30) % 12
        video, text = unit(rng.standard_normal((12, 6))), unit(rng.standard_normal((30, 6)))
        order, place = rng.permutation(12), np.empty(12, np.int64)
        place[order] = np.arange(12)
        texts = rng.permutation(30)
        assert retrieval(text[texts], video[order], place[owner][texts]) == retrieval(text, video, owner)

    @pytest.mark.parametrize("value", [NAN, np.inf, -np.inf])
    def test_what_is_no_number_counts_against(self, value):
        text, video = np.eye(4, dtype=np.float32), np.eye(4, dtype=np.float32)
        assert text_to_video_ranks(text, video, range(4)).tolist() == [1, 1, 1, 1]
        video[2, 1] = value
        assert text_to_video_ranks(text, video, range(4)).tolist() == [2, 2, 4, 2]
        assert video_to_text_ranks(text, video, range(4)).tolist() == [1, 1, 4, 1]
        text[0, 3] = value
        assert text_to_video_ranks(text, video, range(4)).tolist() == [4, 2, 4, 2]
        assert video_to_text_ranks(text, video, range(4)).tolist() == [4, 2, 4, 2]

    def test_nothing_is_a_number(self):
        text, video = np.full((3, 2), NAN, np.float32), np.full((3, 2), NAN, np.float32)
        assert text_to_video_ranks(text, video, range(3)).tolist() == [3, 3, 3]

    def test_inputs_are_left_alone(self, example):
        text, video, owner = example
        video = video.astype(np.float64)  # what is computed in
        video[0, 0] = NAN
        before = video.copy()
        retrieval(text, video, owner)
        np.testing.assert_array_equal(video, before)

    @pytest.mark.parametrize(
        ("text", "video", "owner", "message"),
        [
            (np.zeros((2, 3)), np.zeros((2, 4)), [0, 1], r"text \[2, 3\], video \[2, 4\]"),
            (np.zeros(3), np.zeros((2, 3)), [0], r"text \[3\]"),
            (np.zeros((2, 3)), np.zeros(3), [0, 1], r"video \[3\]"),
            (np.float64(0), np.float64(0), [0], r"text \[\]"),
            (np.zeros((2, 3)), np.zeros((2, 3)), [0], r"owner \[1\]"),
            (np.zeros((2, 3)), np.zeros((2, 3)), [0, 2], "from 0 to 2"),
            (np.zeros((2, 3)), np.zeros((2, 3)), [-1, 0], "from -1 to 0"),
            (np.zeros((2, 3)), np.zeros((2, 3)), [0.0, 1.0], "owners float64"),
            (np.zeros((0, 3)), np.zeros((2, 3)), np.zeros(0, int), r"text \[0, 3\]"),
            (np.zeros((2, 3)), np.zeros((0, 3)), [0, 0], r"video \[0, 3\]"),
            (np.zeros((2, 0)), np.zeros((2, 0)), [0, 1], r"text \[2, 0\]"),
        ],
    )
    def test_refusals(self, text, video, owner, message):
        for call in (retrieval, text_to_video_ranks, video_to_text_ranks):
            with pytest.raises(InputError, match=message):
                call(text, video, owner)


class TestBestCaption:
    """What CLIP4Clip does with several captions: a video's best caption stands for all of them, on both sides."""

    def test_by_hand(self, example):
        """Scores of videos 0, 1, 2 with texts 0 to 3: (.8 0 .6 0), (.6 .6 0 0), (0 .8 .8 1). Best captions of videos
        0, 1, 2 therefore: (.8 .6 0), (.6 0 0), (.8 .8 1). Video 1's ties with video 2's, after video 0's."""
        assert best_caption_ranks(*example).tolist() == [1, 3, 1]
        found = best_caption_retrieval(*example)
        assert found == Retrieval(
            "video-to-text", pytest.approx(200 / 3), 100.0, 100.0, 1.0, pytest.approx(5 / 3), 3, 3
        )

    def test_captions_of_one_rival_count_once(self):
        text = np.array([[0.6, 0.8], [0.8, 0.6], [0.9, np.sqrt(0.19)], [0.7, np.sqrt(0.51)]])
        video, owner = np.array([[1.0, 0], [0, 1.0]]), [0, 1, 1, 1]
        assert video_to_text_ranks(text, video, owner).tolist() == [4, 2]
        assert best_caption_ranks(text, video, owner).tolist() == [2, 2]

    def test_the_definition(self):
        rng = np.random.default_rng(11)
        owner = rng.integers(0, 23, 61)
        video, text = unit(rng.standard_normal((23, 5))), unit(rng.standard_normal((61, 5)))
        scores = video.astype(np.float64) @ text.astype(np.float64).T
        asked = sorted(set(owner.tolist()))
        best = np.array([[scores[v, owner == other].max() for other in asked] for v in asked])
        expected = [
            rank_by_definition(row, row_right)
            for row, row_right in zip(best, np.eye(len(asked), dtype=bool), strict=True)
        ]
        assert best_caption_ranks(text, video, owner).tolist() == expected
        assert (video_to_text_ranks(text, video, owner) >= expected).all()

    def test_one_caption_each_says_nothing_new(self):
        rng = np.random.default_rng(12)
        video, text = unit(rng.standard_normal((9, 4))), unit(rng.standard_normal((9, 4)))
        owner = rng.permutation(9)
        assert best_caption_ranks(text, video, owner).tolist() == video_to_text_ranks(text, video, owner).tolist()
        assert best_caption_retrieval(text, video, owner) is None

    def test_blocks_change_nothing(self, many):
        text, video, owner = many
        best = np.full((len(video), len(video)), -np.inf)
        np.maximum.at(best, (slice(None), owner), video @ text.T)
        expected = (best >= best.diagonal()[:, None]).sum(axis=1)
        assert best_caption_ranks(text, video, owner).tolist() == expected.tolist()

    def test_what_is_no_number_counts_against(self, example):
        text, video, owner = example
        text = text.copy()
        text[1] = NAN  # of video 0: its other caption answers for it, and comes before every other video's
        assert best_caption_ranks(text, video, owner).tolist() == [1, 3, 2]
        text[0] = NAN
        assert best_caption_ranks(text, video, owner).tolist() == [3, 3, 2]


class TestFixedValues:
    """Twelve texts of five videos, numbers with exact products; ranks as the original's code gives them."""

    TEXT = np.array([[(7 * i + 3 * j * j + i * j) % 11 - 5 for j in range(4)] for i in range(12)], np.float64)
    VIDEO = np.array([[(5 * i + j * (i + 2)) % 9 - 4 for j in range(4)] for i in range(5)], np.float64)
    OWNER = (0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 0)

    def test_ranks(self):
        scores = self.TEXT @ self.VIDEO.T
        assert scores[:3].tolist() == [[24, -5, 29, -18, -2], [0, -29, -31, 30, -17], [-2, 2, -3, 1, 23]]
        expected = [2, 4, 5, 1, 4, 4, 1, 5, 2, 2, 3, 2]
        assert text_to_video_ranks(self.TEXT, self.VIDEO, self.OWNER).tolist() == expected
        assert video_to_text_ranks(self.TEXT, self.VIDEO, self.OWNER).tolist() == [2, 1, 8, 2, 3]
        assert best_caption_ranks(self.TEXT, self.VIDEO, self.OWNER).tolist() == [2, 1, 5, 2, 3]

    def test_retrieval(self):
        there, back = retrieval(self.TEXT, self.VIDEO, self.OWNER)
        assert there == Retrieval(
            "text-to-video", pytest.approx(100 / 6), 100.0, 100.0, 2.5, pytest.approx(35 / 12), 12, 5
        )
        assert back == Retrieval("video-to-text", 20.0, 80.0, 100.0, 2.0, 3.2, 5, 12)
        best = best_caption_retrieval(self.TEXT, self.VIDEO, self.OWNER)
        assert best == Retrieval("video-to-text", 20.0, 100.0, 100.0, 2.0, 2.6, 5, 5)


class TestGroups:
    def test_by_hand(self, example):
        """Videos 0 and 2 are one group: text 0 is first of two, text 1 second, text 3 first; video 1 is alone."""
        found = group_retrieval(*example, ["a", "b", "a"])
        assert group_ranks(*example, ["a", "b", "a"]).tolist() == [1, 2, 1]
        assert found == Retrieval(
            "text-to-video", pytest.approx(200 / 3), 100.0, 100.0, 1.0, pytest.approx(4 / 3), 3, 2
        )

    def test_one_group_is_plain_retrieval(self, example):
        assert group_retrieval(*example, ["all"] * 3) == retrieval(*example)[0]

    def test_several_groups_keep_the_order_of_the_texts(self):
        rng = np.random.default_rng(6)
        groups = [("x", "y", "z")[i] for i in rng.integers(0, 3, 20)]
        owner = rng.integers(0, 20, 50)
        video, text = unit(rng.standard_normal((20, 4))), unit(rng.standard_normal((50, 4)))
        scores = text.astype(np.float64) @ video.astype(np.float64).T
        expected = []
        for row, right in zip(scores, owner, strict=True):
            members = [v for v in range(20) if groups[v] == groups[right]]
            expected.append(rank_by_definition(row[members], [v == right for v in members]))
        assert group_ranks(text, video, owner, groups).tolist() == expected
        found = group_retrieval(text, video, owner, groups)
        assert found is not None and found.candidates == max(map(groups.count, "xyz"))

    def test_nothing_to_ask(self, example):
        assert group_retrieval(*example, None) is None
        assert group_retrieval(*example, ["a", "b", "c"]) is None
        text, video, _ = example
        assert group_retrieval(text, video, [1, 1, 1, 1], ["a", "b", "a"]) is None

    def test_ties_count_against(self):
        text, video = np.ones((3, 2), np.float32), np.ones((3, 2), np.float32)
        assert group_ranks(text, video, [0, 1, 2], ["a", "a", "b"]).tolist() == [2, 2]

    def test_refusals(self, example):
        with pytest.raises(InputError, match="2 groups for 3 videos"):
            group_retrieval(*example, ["a", "b"])
