"""Tables of videos and captions: CSV and Parquet."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from tempme_export.data.records import RetrievalData, clean, gather, some
from tempme_export.errors import InputError

SUFFIXES = (".csv", ".parquet")
_TEXT = (pl.String, pl.Categorical, pl.Enum)


@dataclass(frozen=True)
class Table:
    """Columns of text, all filled, and where each row stands in the file ("line 3", "row 2")."""

    columns: dict[str, list[str]]
    places: list[str]


def read_columns(path: Path, required: Sequence[str], optional: Sequence[str] = ()) -> Table:
    """Read columns of a CSV (comma separated, UTF-8, with a header) or Parquet file; others are ignored.

    Whole numbers in optional columns become text. Raises InputError when the file is missing or of another kind, a
    required column is missing, a column is there twice or holds no text, a value is empty, or there is no row.
    """
    frame = _read(path)
    wanted = [column for column in (*required, *optional) if column in frame.columns]
    found = f"{path}: found the columns {', '.join(map(repr, frame.columns)) or 'none'}"
    absent = [column for column in required if column not in wanted]
    if absent:
        may = f" (and may have {', '.join(optional)})" if optional else ""
        raise InputError(
            f"{found}; expected {', '.join(required)}{may}; add {', '.join(absent)}, or rename the column that is meant"
        )
    again = [column for column in wanted if f"{column}_duplicated_0" in frame.columns]
    if again:
        raise InputError(f"{found}, so {', '.join(again)} is there twice; expected each once; rename one of them")
    for column in wanted:
        kind = frame.schema[column]
        if not (isinstance(kind, _TEXT) or (column in optional and kind.is_integer())):
            raise InputError(f"{path}: found {kind} in the column {column!r}; expected text, one per row; convert it")
    places = _places(path, frame)
    columns = {column: [value or "" for value in frame[column].cast(pl.String).to_list()] for column in wanted}
    if not places:
        raise InputError(f"{path}: found no rows; expected at least 1; write the file again")
    for name, values in columns.items():
        empty = [place for place, value in zip(places, values, strict=True) if not value.strip()]
        if empty:
            raise InputError(f"{path}: found an empty {name} at {some(empty)}; expected text; fill or remove the rows")
    return Table(columns, places)


def _read(path: Path) -> pl.DataFrame:
    if not os.path.isfile(path):
        kind = "a folder or device" if os.path.exists(path) else "no such file"
        raise InputError(f"{path}: found {kind}; expected a table of videos and captions; check the path")
    words = "a Parquet file" if path.suffix.lower() == ".parquet" else "comma separated UTF-8 text, a comma in quotes"
    try:
        if path.suffix.lower() == ".parquet":
            return pl.read_parquet(path, glob=False)
        frame = pl.read_csv(path.read_bytes(), infer_schema_length=0)
    except (OSError, pl.exceptions.PolarsError) as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(
            f"{path}: found a file that cannot be read ({reason}); expected {words}; write it again"
        ) from error
    while frame.height and not any(frame.row(-1)):  # blank lines at the end
        frame = frame.head(-1)
    return frame


def _places(path: Path, frame: pl.DataFrame) -> list[str]:
    """Where each row begins. Quoted fields may hold line breaks; nulls in a CSV are empty fields."""
    if path.suffix.lower() != ".csv":
        return [f"row {i + 1}" for i in range(frame.height)]
    line, places = 2, []
    for row in frame.iter_rows():
        places.append(f"line {line}")
        line += 1 + sum(value.count("\n") for value in row if value)
    return places


def read_table(path: Path, videos: Path | None = None, name: str | None = None) -> RetrievalData:
    """Read a CSV or Parquet file with the columns `video`, `caption` and, if it has them, `video_id`, `group`.

    video     path of the video file; a relative one is taken from `videos`, or from the table's folder
    caption   one per row; a video with several captions has several rows
    video_id  the path, where there is no such column
    group     the same in all rows of a video
    Raises InputError as `read_columns` does; also when an id has two files or a file two ids, a video two groups, or
    a video the same caption twice. All these name the lines.
    """
    table = read_columns(path, ("video", "caption"), ("video_id", "group"))
    files = [os.path.normpath(video) for video in table.columns["video"]]
    ids = table.columns.get("video_id", files)
    captions = [clean(caption) for caption in table.columns["caption"]]

    _check_one_each(path, "ids with several files", zip(ids, files, table.places, strict=True))
    _check_one_each(path, "files with several ids", zip(files, ids, table.places, strict=True))
    groups = table.columns.get("group")
    if groups is not None:
        _check_one_each(path, "videos with several groups", zip(ids, groups, table.places, strict=True))
    _check_pairs(path, table.places, list(zip(ids, captions, strict=True)))

    root = path.parent if videos is None else videos
    said: dict[str, list[str]] = {}
    for video_id, caption in zip(ids, captions, strict=True):
        said.setdefault(video_id, []).append(caption)
    return gather(
        name or path.name,
        said,
        {video_id: root / file for video_id, file in zip(ids, files, strict=True)},
        None if groups is None else dict(zip(ids, groups, strict=True)),
    )


def _check_one_each(path: Path, what: str, rows: Iterable[tuple[str, str, str]]) -> None:
    """Check that rows (key, value, place) with equal keys have equal values."""
    seen: dict[str, dict[str, str]] = {}
    for key, value, place in rows:
        seen.setdefault(key, {}).setdefault(value, place)
    wrong = [
        f"{key!r} ({some([f'{value!r} at {place}' for value, place in found.items()])})"
        for key, found in seen.items()
        if len(found) > 1
    ]
    if wrong:
        raise InputError(f"{path}: found {what}: {some(wrong, '; ')}; expected one for each; correct the rows")


def _check_pairs(path: Path, places: Sequence[str], pairs: Sequence[tuple[str, str]]) -> None:
    where: dict[tuple[str, str], list[str]] = {}
    for pair, place in zip(pairs, places, strict=True):
        where.setdefault(pair, []).append(place)
    twice = [f"{pair[0]!r} at {some(found)}" for pair, found in where.items() if len(found) > 1]
    if twice:
        raise InputError(
            f"{path}: found videos with the same caption again: {some(twice, '; ')}; expected each pair once; "
            "remove the repeated rows"
        )
