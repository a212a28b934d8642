"""Finding video files by name, in any folder and with any suffix."""

import os
from pathlib import Path

import pytest

from tempme_export.data.video_files import find_videos, index_files, without_suffix
from tempme_export.errors import InputError
from tempme_export.media.render import render_clip


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("video7.mp4", "video7"),
        ("video7.MOV", "video7"),
        ("a.mov.mp4", "a"),
        ("0001_Film_00.00.51.926-00.00.54.129.avi", "0001_Film_00.00.51.926-00.00.54.129"),
        ("0001_Film_00.00.51.926-00.00.54.129", "0001_Film_00.00.51.926-00.00.54.129"),
        ("notes.txt", "notes.txt"),
        (".mp4", ".mp4"),
    ],
)
def test_suffixes_of_videos_alone_are_taken_off(name, stem) -> None:
    assert without_suffix(name) == stem


def test_the_index_has_every_video_below_the_folder(tmp_path) -> None:
    put(tmp_path, "a.mp4", "deep/er/b.WebM", "deep/a.avi", "deep/notes.txt", "c.json")
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "broken.mp4").symlink_to(tmp_path / "nowhere.mp4")
    found = {stem: [str(path) for path in paths] for stem, paths in index_files(tmp_path).stems.items()}
    assert found == {"a": ["a.mp4", "deep/a.avi"], "b": ["deep/er/b.WebM"]}


def test_links_to_folders_are_followed_once(tmp_path) -> None:
    videos, other = tmp_path / "videos", tmp_path / "other"
    put(videos, "here/a.mp4")
    put(other, "b.mp4")
    (videos / "link").symlink_to(other)
    (videos / "again").symlink_to(other)
    (videos / "here" / "up").symlink_to(videos)
    found = {stem: [str(path) for path in paths] for stem, paths in index_files(videos).stems.items()}
    assert found == {"a": ["here/a.mp4"], "b": ["again/b.mp4"]}


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path) -> None:
    """Whoever asks: one that lies so deep that it has no path."""
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("d" * 250, dir_fd=here)
        inner = os.open("d" * 250, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)
    with pytest.raises(InputError, match=r"ddd: found a folder that cannot be read \(File name too long\)"):
        index_files(tmp_path)


def test_the_expected_place_comes_first(tmp_path) -> None:
    put(tmp_path, "a.mp4", "other/a.mp4", "a.avi", "x/b.mkv", "second/c.mp4", "elsewhere/c.mp4")
    expected = {"a": ["a.mp4"], "b": ["b.mp4"], "c": ["first/c.mp4", "second/c.mp4"], "d": ["movie/d.avi", "d.avi"]}
    assert find_videos(tmp_path, tmp_path, expected) == {
        "a": tmp_path / "a.mp4",
        "b": tmp_path / "x/b.mkv",
        "c": tmp_path / "second/c.mp4",
        "d": tmp_path / "movie/d.avi",
    }


def test_other_names_are_tried_in_order(tmp_path) -> None:
    put(tmp_path, "v_a.webm", "a.avi", "b.mkv")
    expected = {"v_a": ["v_a.mp4", "a.mp4"], "v_b": ["v_b.mp4", "b.mp4"]}
    found = find_videos(tmp_path, tmp_path, expected)
    assert found == {"v_a": tmp_path / "v_a.webm", "v_b": tmp_path / "b.mkv"}


def test_names_differ_in_case(tmp_path) -> None:
    put(tmp_path, "x/abc.mkv")
    assert find_videos(tmp_path, tmp_path, {"ABC": ["ABC.mp4"]}) == {"ABC": tmp_path / "ABC.mp4"}


def test_a_video_that_is_not_there_keeps_its_expected_place(tmp_path) -> None:
    put(tmp_path, "all/a.mp4")
    videos = tmp_path / "videos"
    expected = {"a": ["a.mp4"], "b": ["b.mp4"]}
    assert find_videos(videos, tmp_path, expected) == {"a": tmp_path / "all/a.mp4", "b": videos / "b.mp4"}
    assert find_videos(videos, videos, expected) == {"a": videos / "a.mp4", "b": videos / "b.mp4"}


def test_several_files_for_one_video_are_refused(tmp_path) -> None:
    put(tmp_path, *(f"{size}/video{i}.mp4" for size in ("small", "large") for i in range(7)))
    with pytest.raises(InputError) as caught:
        find_videos(tmp_path, tmp_path, {f"video{i}": [f"video{i}.mp4"] for i in range(7)})
    said = str(caught.value)
    assert "video0 (large/video0.mp4, small/video0.mp4), video1 (" in said
    assert "and 2 more, 7 in all" in said and "video5 (" not in said
    assert find_videos(tmp_path / "small", tmp_path / "small", {"video0": ["video0.mp4"]})


def test_any_suffix_that_the_decoder_knows(tmp_path):
    pytest.importorskip("av")
    render_clip(tmp_path / "clip.mp4", seconds=1, size=(64, 48))
    (tmp_path / "clip.mp4").rename(tmp_path / "a.divx")
    (tmp_path / "a.txt").write_text("a note\n")
    assert find_videos(tmp_path, tmp_path, {"a": ["a.mp4"]}) == {"a": tmp_path / "a.divx"}
