"""The record of videos and captions: what it refuses, what select keeps, which files are missing."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tempme_export.data.clip import Clip
from tempme_export.data.records import RetrievalData, clean, gather, missing, repeated, some
from tempme_export.errors import InputError


def make(**changes) -> RetrievalData:
    """Three videos; the captions of the first and the last are not neighbours."""
    fields = {
        "name": "three",
        "video_ids": ("a", "b", "c"),
        "clips": (Clip(Path("a.mp4")), Clip(Path("b.mp4"), 1.0, 2.5), Clip(Path("c.mp4"))),
        "captions": ("c one", "a one", "b one", "a two"),
        "owner": (2, 0, 1, 0),
        "groups": ("x", "y", "x"),
    }
    return RetrievalData(**{**fields, **changes})


def pairs(data: RetrievalData) -> list[tuple[str, str]]:
    return [(data.video_ids[owner], caption) for caption, owner in zip(data.captions, data.owner, strict=True)]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"video_ids": (), "clips": (), "groups": None}, "three: found no video"),
        ({"clips": (Clip(Path("a.mp4")),)}, "found 3 video ids, 1 clips, 3 groups, 4 captions and 4 owners"),
        ({"groups": ("x",)}, "3 clips, 1 groups"),
        ({"owner": (0, 1, 2)}, "4 captions and 3 owners"),
        ({"video_ids": ("a", "b", "a")}, "video ids twice: a,"),
        ({"owner": (2, 0, 1, 3)}, "captions of videos 3, expected 0 to 2"),
        ({"owner": (2, 0, 1, -1)}, "captions of videos -1,"),
        ({"owner": (2, 0, 2, 0)}, "videos without a caption: b,"),
        ({"captions": ("c", "a", " \n", "a")}, "empty captions at 2,"),
    ],
)
def test_a_contradiction_is_refused(changes, said) -> None:
    with pytest.raises(InputError) as caught:
        make(**changes)
    assert said in str(caught.value)


def test_select_takes_the_videos_in_the_given_order_and_keeps_the_order_of_captions() -> None:
    data = make().select([2, 0])
    assert data.video_ids == ("c", "a")
    assert data.paths == (Path("c.mp4"), Path("a.mp4"))
    assert data.groups == ("x", "x")
    assert pairs(data) == [("c", "c one"), ("a", "a one"), ("a", "a two")]
    assert data.name == "three"
    assert make(groups=None).select([1]).groups is None


@given(st.data())
def test_select_keeps_what_is_said_of_each_video(data) -> None:
    n_videos = data.draw(st.integers(1, 6))
    captions = {f"v{i}": [f"{i} {k}" for k in range(data.draw(st.integers(1, 3)))] for i in range(n_videos)}
    whole = gather("all", captions, {video_id: Clip(Path(video_id)) for video_id in captions})
    keep = data.draw(st.lists(st.integers(0, n_videos - 1), min_size=1, unique=True))
    part = whole.select(keep)
    assert part.video_ids == tuple(whole.video_ids[i] for i in keep)
    assert [str(path) for path in part.paths] == list(part.video_ids)
    expected = [(video_id, caption) for video_id in part.video_ids for caption in captions[video_id]]
    assert sorted(pairs(part)) == sorted(expected)
    assert part.select(range(len(keep))) == part


@pytest.mark.parametrize(
    ("keep", "said"),
    [
        ([], "found no video"),
        ([3], "video indices 3, expected 0 to 2"),
        ([-1], "video indices -1,"),
        ([1, 0, 1], "video indices twice: 1,"),
    ],
)
def test_select_refuses(keep, said) -> None:
    with pytest.raises(InputError) as caught:
        make().select(keep)
    assert said in str(caught.value)


def test_gather_makes_captions_of_one_video_neighbours() -> None:
    clips = {"a": Clip(Path("1.mp4")), "b": Clip(Path("2.mp4"))}
    data = gather("two", {"b": ["x", "y"], "a": ["z"]}, clips, {"a": "g", "b": "h"})
    assert data == RetrievalData("two", ("b", "a"), (clips["b"], clips["a"]), ("x", "y", "z"), (0, 0, 1), ("h", "g"))


def test_missing_lists_what_is_not_a_file(tmp_path) -> None:
    there, folder = tmp_path / "b.mp4", tmp_path / "c.mp4"
    there.touch()
    folder.mkdir()
    unusable = (Path("x" * 5000), there, Path("a\0b"))  # a name too long, one that no system has
    for paths, expected in (
        ((tmp_path / "a.mp4", there, folder), [0, 2]),
        (unusable, [0, 2]),
        ((there, there, there), []),
    ):
        assert missing(make(clips=tuple(map(Clip, paths)))) == expected


def test_words_for_lists() -> None:
    assert some([]) == ""
    assert some(list("abcde")) == "a, b, c, d, e"
    assert some(list("abcdefg")) == "a, b, c, d, e and 2 more, 7 in all"
    assert some(["a", "b"], "; ") == "a; b"
    assert repeated(["b", "a", "b", "c", "a", "b"]) == ["b", "a"]
    assert clean(" a\n man\t runs \u00a0") == "a man runs"
