"""A row of a table, or a data set, may mean a part of a file: only frames of that part are used."""

import json

import numpy as np
import polars as pl
import pytest

F, FPS = 12, 6  # pictures of a scene, and their rate: a scene takes two seconds


def table(path, **columns):
    frame = pl.DataFrame(columns)
    frame.write_parquet(path) if path.suffix == ".parquet" else frame.write_csv(path)
    return path


@pytest.fixture(scope="module")
def alone(tmp_path_factory, scenes, write_film, evaluate):
    """The evaluation of all scenes, each in a file of its own."""
    folder = tmp_path_factory.mktemp("alone")
    for i, (pictures, _) in enumerate(scenes):
        write_film(folder / f"{i}.avi", pictures, FPS)
    names, captions = [f"{i}.avi" for i in range(len(scenes))], [caption for _, caption in scenes]
    found = evaluate(table(folder / "data.csv", video=names, caption=captions))
    assert found["retrieval"]["text-to-video"]["r1"] > 50, "the frames have to matter"
    return found["retrieval"]


@pytest.fixture(scope="module")
def joined(tmp_path_factory, scenes, write_film):
    """One file of all scenes, one after the other."""
    path = tmp_path_factory.mktemp("joined") / "all.avi"
    write_film(path, np.concatenate([pictures for pictures, _ in scenes]), FPS)
    return path


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_ranges_of_one_file_are_clips_of_their_own(joined, scenes, evaluate, alone, kind, tmp_path):
    """A range ends before the first picture of the next scene, which its last second would show."""
    starts = [F / FPS * i for i in range(len(scenes))]
    ends = [start + F / FPS - 0.1 for start in starts]
    captions, names = [caption for _, caption in scenes], [str(joined)] * len(scenes)
    path = table(tmp_path / f"data.{kind}", video=names, caption=captions, start=starts, end=ends)
    cache = ("--cache", tmp_path / "frames", "--features", tmp_path / "features") if kind == "csv" else ()
    found = evaluate(path, *cache)
    assert found["skipped"] == {} and found["retrieval"] == alone
    if cache:  # the others first, so that no key can be mixed up
        order = range(len(scenes) - 1, -1, -1)
        columns = {"video": names, "caption": captions, "start": starts, "end": ends}
        table(path, **{name: [values[i] for i in order] for name, values in columns.items()})
        assert evaluate(path, *cache)["retrieval"] == alone


def test_a_range_behind_the_end_is_no_video(joined, evaluate, tmp_path):
    path = table(
        tmp_path / "data.csv", video=[str(joined)] * 3, caption=["a", "b", "c"], start=[None, 1, 99], end=[None, 3, 100]
    )
    found = evaluate(path)
    assert found["retrieval"]["text-to-video"]["candidates"] == 2
    ((name, reason),) = found["skipped"].items()
    assert "99" in name and "99" in reason


@pytest.mark.parametrize(
    ("columns", "rows", "said"),
    [
        ("start,end", ["0,2", "3,2.5", "4,5"], ["line 3"]),
        ("start,end", ["0,2", "-1,2", "2,2", "nan,3", "1,inf"], ["line 3", "line 4", "line 5", "line 6"]),
        ("start,end", ["0,2", "1,", ",2", ","], ["line 3", "line 4"]),
        ("start,end", ["0,2", "0:01,0:02"], ["line 3", "'0:01'"]),
        ("start", ["1"], ["start", "end"]),
        ("end", ["1"], ["start", "end"]),
    ],
)
def test_what_is_no_range_is_refused_by_row(evaluate, tmp_path, columns, rows, said):
    path = tmp_path / "data.csv"
    lines = [f"{i}.avi,caption {i},{row}" for i, row in enumerate(rows)]
    path.write_text("\n".join([f"video,caption,{columns}", *lines, ""]))
    found = evaluate(path)
    assert found["code"] == 3 and all(words in found["said"] for words in said), found["said"]
    assert "line 2" not in found["said"], "a good row"


def test_didemo_uses_what_people_described(scenes, write_film, evaluate, tmp_path):
    """Files of 32 pictures, one a second, and files that go on for minutes with another scene: the same clips."""
    found = {}
    for kind in ("short", "long"):
        entries = []
        for i, (pictures, caption) in enumerate(scenes):
            film = pictures[np.linspace(0, F - 1, 32, dtype=int)]
            other = scenes[(i + 1) % len(scenes)][0][np.linspace(0, F - 1, 150, dtype=int)]
            whole = film if kind == "short" else np.concatenate([film, other])
            write_film(tmp_path / kind / "videos" / f"{i}.avi", whole, fps=1)
            entries.append({"video": f"{i}.avi", "description": caption})
        (tmp_path / kind / "test_data.json").write_text(json.dumps(entries))
        found[kind] = evaluate(f"didemo:{tmp_path / kind}")
        assert "the first 31 s" in found[kind]["said"]
    assert found["long"]["retrieval"] == found["short"]["retrieval"]
