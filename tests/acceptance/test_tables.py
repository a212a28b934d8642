"""Tables as people write them: other separators, repeated captions, paths from another system."""

import pytest


@pytest.fixture
def folder(tmp_path, scenes, write_film):
    """With sub/0.avi and sub/1.avi."""
    for i in (0, 1):
        write_film(tmp_path / "sub" / f"{i}.avi", scenes[i][0])
    return tmp_path


def counts(found):
    assert found["code"] == 0, found["said"]
    return found["retrieval"]["text-to-video"]["queries"], found["retrieval"]["text-to-video"]["candidates"]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_separators_are_recognised(folder, evaluate, separator, start):
    """The others may stand in captions, and do."""
    caption = '"one, two; three\tfour"' if separator == "," else 'one, two; three "four"'.replace(separator, "")
    rows = [["video", "note", "caption"], ["sub/0.avi", "x", caption], ["sub/1.avi", "", "another"]]
    path = folder / "data.csv"
    path.write_text(start + "".join(separator.join(row) + "\r\n" for row in rows), encoding="utf-8")
    assert counts(evaluate(path)) == (2, 2)


def test_another_separator_is_named(folder, evaluate):
    path = folder / "data.csv"
    path.write_text("video|caption\nsub/0.avi|one\n")
    found = evaluate(path)
    assert found["code"] == 3 and "'video|caption'" in found["said"]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_repeated_caption_is_a_caption(folder, evaluate, suffix):
    import polars as pl

    frame = pl.DataFrame({"video": ["sub/0.avi", "sub/1.avi", "sub/0.avi"], "caption": ["one", "two", "one "]})
    path = folder / f"data{suffix}"
    frame.write_csv(path) if suffix == ".csv" else frame.write_parquet(path)
    assert counts(evaluate(path)) == (3, 2)


def test_backslashes_are_named(folder, evaluate):
    path = folder / "data.csv"
    path.write_text("video,caption\nsub/0.avi,one\nsub\\1.avi,two\n")
    found = evaluate(path)
    assert found["code"] == 3 and "backslash" in found["said"] and "line 3" in found["said"]
    (folder / "sub/1.avi").rename(folder / "sub\\1.avi")  # a name like any other where "/" parts folders
    assert counts(evaluate(path)) == (2, 2)
