"""CSV and Parquet tables: what is read, and what is said about rows that are wrong."""

from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tempme_export.data.clip import Clip
from tempme_export.data.records import RetrievalData
from tempme_export.data.tables import read_columns, read_table
from tempme_export.errors import InputError


@pytest.fixture
def table(tmp_path):
    def write(text: str | bytes, name: str = "pairs.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


def parquet(path: Path, **columns) -> Path:
    pl.DataFrame(columns).write_parquet(path)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_table(path)
    assert str(caught.value).startswith(f"{path}: found ")
    return str(caught.value)


def test_a_plain_table(table, tmp_path) -> None:
    data = read_table(table('video,caption,note\nb.mp4,"a dog,  running",x\nsub/a.mp4,a cat,y\n./b.mp4,dog\n,\n\n'))
    assert data == RetrievalData(
        name="pairs.csv",
        video_ids=("b.mp4", "sub/a.mp4"),
        clips=(Clip(tmp_path / "b.mp4"), Clip(tmp_path / "sub/a.mp4")),
        captions=("a dog, running", "dog", "a cat"),
        owner=(0, 0, 1),
        groups=None,
    )


def test_ranges_make_clips(table, tmp_path) -> None:
    text = "video,caption,start,end\na.mp4,one,,\na.mp4,two,1.50,3\n./a.mp4,three,1.5,3.0\na.mp4,four,1.5,1e1\n"
    data = read_table(table(text))
    file = tmp_path / "a.mp4"
    assert data.clips == (Clip(file), Clip(file, 1.5, 3.0), Clip(file, 1.5, 10.0))
    assert data.video_ids == ("a.mp4", "a.mp4#t=1.5,3", "a.mp4#t=1.5,10")
    assert (data.captions, data.owner) == (("one", "two", "three", "four"), (0, 1, 1, 2))
    whole = parquet(tmp_path / "p.parquet", video=["a.mp4"] * 2, caption=["a", "b"], start=[0, 7], end=[7, 9])
    assert read_table(whole).clips == (Clip(file, 0.0, 7.0), Clip(file, 7.0, 9.0))


def test_ids_are_of_one_range(table) -> None:
    said = refusal(table("video,caption,video_id,start,end\na.mp4,one,7,0,1\na.mp4,two,7,1,2\n"))
    assert "ids with several files: '7' ('a.mp4#t=0,1' at line 2, 'a.mp4#t=1,2' at line 3)," in said


def test_what_is_not_read_is_said(table) -> None:
    assert read_table(table("video,start_time,caption,x\na.mp4,1,one,\n")).notes == ("columns not read: start_time, x",)
    assert read_table(table("video,caption\na.mp4,one\n")).notes == ()


def test_repeated_captions_stay(table) -> None:
    data = read_table(table("video,caption\na.mp4,one\nb.mp4,one\na.mp4,one \n"))
    assert (data.captions, data.owner) == (("one", "one", "one"), (0, 0, 1))


def test_ids_groups_and_another_folder(table, tmp_path) -> None:
    text = "group,video,video_id,caption\ng1,/abs/x.avi,7,one\ng2,y.avi,8,two\ng1,/abs/x.avi,7,three\n"
    data = read_table(table(text), videos=tmp_path / "clips", name="mine")
    assert data.name == "mine"
    assert data.video_ids == ("7", "8")
    assert data.paths == (Path("/abs/x.avi"), tmp_path / "clips/y.avi")
    assert data.captions == ("one", "three", "two")
    assert data.groups == ("g1", "g2")


def test_line_ends_and_byte_order_marks_do_not_matter(table) -> None:
    plain = read_table(table("video,caption\na.mp4,one\n"))
    assert read_table(table(b"\xef\xbb\xbfvideo,caption\r\na.mp4,one\r\n\r\n")) == plain
    assert read_table(table("video,caption\na.mp4,one")) == plain


def test_a_parquet_file(tmp_path) -> None:
    path = parquet(
        tmp_path / "p.parquet",
        video=pl.Series(["a.mp4", "b.mp4"], dtype=pl.Categorical),
        caption=["one", "two"],
        video_id=[10, 9],
        group=[1, 1],
        other=[0.5, 0.5],
    )
    data = read_table(path)
    assert (data.video_ids, data.groups) == (("10", "9"), ("1", "1"))
    assert data.paths == (tmp_path / "a.mp4", tmp_path / "b.mp4")
    assert data.captions == ("one", "two")


_TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=8)
_NAME = _TEXT.map(lambda text: f"v{text.replace('/', '').replace(chr(92), '')}.mp4")
_CAPTION = _TEXT.map(lambda text: f"say {text}")


@settings(max_examples=60)
@given(
    rows=st.lists(st.tuples(_NAME, _CAPTION), min_size=1, unique_by=lambda row: (row[0], " ".join(row[1].split()))),
    suffix=st.sampled_from([".csv", ".parquet"]),
)
def test_what_polars_writes_is_read_back(tmp_path_factory, rows, suffix) -> None:
    path = tmp_path_factory.mktemp("round") / f"t{suffix}"
    frame = pl.DataFrame({"video": [video for video, _ in rows], "caption": [caption for _, caption in rows]})
    frame.write_csv(path) if suffix == ".csv" else frame.write_parquet(path)
    data = read_table(path)
    read = {(data.video_ids[owner], caption) for caption, owner in zip(data.captions, data.owner, strict=True)}
    assert read == {(video, " ".join(caption.split())) for video, caption in rows}
    assert data.video_ids == tuple(dict.fromkeys(video for video, _ in rows))
    assert data.paths == tuple(path.parent / video for video in data.video_ids)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "file,text\na.mp4,one\n",
            "the columns 'file', 'text', expected video, caption (and may have video_id, group, start, end)",
        ),
        ("video|caption\na.mp4|one\n", "the columns 'video|caption', expected video, caption"),
        ("video, caption\na.mp4,one\n", "the columns 'video', ' caption', expected video, caption"),
        ("video,caption,caption\na.mp4,one,two\n", "so caption is there twice"),
        ("video,caption\n", "no rows"),
        ("video,caption\n\n,\n", "no rows"),
        ("", "cannot be read (empty CSV)"),
        ("video,caption\na.mp4,one, two\n", "cannot be read (found more fields"),
        (b"video,caption\na.mp4,\xff\n", "cannot be read (invalid utf-8"),
        ("video,caption\na.mp4,\nb.mp4,two\nc.mp4,  \n", "an empty caption at line 2, line 4,"),
        ("video,caption\na.mp4,one\n,two\n", "an empty video at line 3,"),
        ("video,caption\na.mp4,one\n\nb.mp4,two\n", "an empty video at line 3,"),
        ("video,caption,video_id\na.mp4,one,\n", "an empty video_id at line 2,"),
        ("video,caption,group\na.mp4,one,x\nb.mp4,two,\n", "an empty group at line 3,"),
        (
            "video,caption,video_id\na.mp4,one,7\nb.mp4,two,7\na.mp4,three,7\n",
            "ids with several files: '7' ('a.mp4' at line 2, 'b.mp4' at line 3),",
        ),
        ("video,caption,video_id\na.mp4,one,7\n./a.mp4,two,8\n", "files with several ids: 'a.mp4' ('7' at line 2, '8'"),
        (
            "video,caption,group\na.mp4,one,x\nb.mp4,one,x\na.mp4,two,y\n",
            "videos with several groups: 'a.mp4' ('x' at line 2, 'y' at line 4),",
        ),
    ],
)
def test_a_wrong_csv_is_refused(table, text, said) -> None:
    assert said in refusal(table(text))


def test_many_problems_are_counted(table) -> None:
    said = refusal(table("video,caption\n" + "".join(f"{i}.mp4,\n" for i in range(9))))
    assert "at line 2, line 3, line 4, line 5, line 6 and 4 more, 9 in all," in said


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"video": ["a"], "caption": [["one", "two"]]}, "List(String) in the column 'caption'"),
        ({"video": [1], "caption": ["one"]}, "Int64 in the column 'video'"),
        ({"video": ["a"], "caption": ["one"], "video_id": [1.5]}, "Float64 in the column 'video_id'"),
        ({"video": ["a", "b"], "caption": ["one", None]}, "an empty caption at row 2,"),
        ({"video": ["a", "b"], "caption": ["one", "two"], "group": [3, None]}, "an empty group at row 2,"),
        ({"video": pl.Series([], dtype=pl.String), "caption": pl.Series([], dtype=pl.String)}, "no rows"),
        ({"video": ["a"], "caption": ["one"], "start": [[1]], "end": [2]}, "List(Int64) in the column 'start'"),
        ({"video": ["a"], "caption": ["one"], "start": [2.0], "end": [float("nan")]}, "row 1 (2 to nan),"),
        ({"video": ["a"], "caption": ["one"], "start": [True], "end": [2]}, "Boolean in the column 'start'"),
        ({"words": ["one"]}, "the columns 'words', expected video, caption"),
    ],
)
def test_a_wrong_parquet_is_refused(tmp_path, columns, said) -> None:
    assert said in refusal(parquet(tmp_path / "p.parquet", **columns))


def test_a_file_that_is_missing_or_of_another_kind(tmp_path, table) -> None:
    assert "no such file" in refusal(tmp_path / "none.csv")
    (tmp_path / "folder.csv").mkdir()
    assert "a folder or device" in refusal(tmp_path / "folder.csv")
    assert "expected a Parquet file" in refusal(table("video,caption\na,b\n", "p.parquet"))


def test_a_name_with_wildcards_is_one_file(tmp_path) -> None:
    parquet(tmp_path / "1.parquet", video=["wrong.mp4"], caption=["wrong"])
    assert read_table(parquet(tmp_path / "[1].parquet", video=["a.mp4"], caption=["one"])).captions == ("one",)


def test_columns_alone(table) -> None:
    read = read_columns(table("key,sentence\nret0,one\nret1,two\n"), ("sentence",))
    assert (read.columns, read.places) == ({"sentence": ["one", "two"]}, ["line 2", "line 3"])
