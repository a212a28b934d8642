"""Tables of videos and captions: CSV and Parquet."""

import csv
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import polars as pl

from tempme_export.data.clip import Clip
from tempme_export.data.records import RetrievalData, clean, gather, some
from tempme_export.errors import InputError

SUFFIXES = (".csv", ".parquet")
_TEXT = (pl.String, pl.Categorical, pl.Enum)
_SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab"}
_RANGE = ("start", "end")


@dataclass(frozen=True)
class Table:
    """Columns of text, all filled, and where each row stands in the file ("line 3", "row 2").

    numbers  columns of numbers
    others   names of the columns that were not read
    """

    columns: dict[str, list[str]]
    places: list[str]
    numbers: dict[str, list[float | None]] = field(default_factory=dict)
    others: tuple[str, ...] = ()


def read_columns(
    path: Path, required: Sequence[str], optional: Sequence[str] = (), numeric: Sequence[str] = ()
) -> Table:
    """Read columns of a CSV (UTF-8, with a header, separated by commas, semicolons or tabs) or Parquet file.

    numeric  optional columns of numbers, which may be empty
    Other columns are ignored. Whole numbers in optional columns become text. Raises InputError when the file is missing
    or of another kind, a required column is missing, a column is there twice or holds no text or no numbers, a value is
    empty, or there is no row.
    """
    frame = _read(path, required)
    used = [column for column in (*required, *optional, *numeric) if column in frame.columns]
    found = f"{path}: found the columns {', '.join(map(repr, frame.columns)) or 'none'}"
    absent = [column for column in required if column not in used]
    if absent:
        may = f" (and may have {', '.join((*optional, *numeric))})" if optional or numeric else ""
        raise InputError(
            f"{found}, expected {', '.join(required)}{may}. "
            f"Add {', '.join(absent)}, or rename the column that is meant."
        )
    again = [column for column in used if f"{column}_duplicated_0" in frame.columns]
    if again:
        raise InputError(f"{found}, so {', '.join(again)} is there twice, expected each once. Rename one of them.")
    texts = [column for column in used if column not in numeric]
    for column in texts:
        kind = frame.schema[column]
        if not (isinstance(kind, _TEXT) or (column in optional and kind.is_integer())):
            raise InputError(f"{path}: found {kind} in the column {column!r}, expected text, one per row. Convert it.")
    places = _places(path, frame)
    columns = {column: [value or "" for value in frame[column].cast(pl.String).to_list()] for column in texts}
    if not places:
        raise InputError(f"{path}: found no rows, expected at least 1. Write the file again.")
    for name, values in columns.items():
        empty = [place for place, value in zip(places, values, strict=True) if not value.strip()]
        if empty:
            raise InputError(f"{path}: found an empty {name} at {some(empty)}, expected text. Fill or remove the rows.")
    numbers = {column: _numbers(path, frame[column], places) for column in used if column in numeric}
    return Table(columns, places, numbers, tuple(column for column in frame.columns if column not in used))


def _numbers(path: Path, column: pl.Series, places: Sequence[str]) -> list[float | None]:
    """The numbers of a column; None where a row is empty."""
    kind = column.dtype
    if not (isinstance(kind, _TEXT) or kind.is_numeric()):
        raise InputError(f"{path}: found {kind} in the column {column.name!r}, expected numbers. Convert it.")
    numbers: list[float | None] = []
    wrong = []
    for place, value in zip(places, column.cast(pl.String).to_list(), strict=True):
        text = (value or "").strip()
        try:
            numbers.append(float(text) if text else None)
        except ValueError:
            wrong.append(f"{place} ({text!r})")
    if wrong:
        raise InputError(
            f"{path}: found no number as {column.name} at {some(wrong)}, expected a decimal number, as 12.5. Correct "
            "the rows."
        )
    return numbers


def _separator(data: bytes, required: Sequence[str]) -> str:
    """Separator of the columns of a CSV: the first known one by which its header has all that are required."""
    header = data.partition(b"\n")[0].decode("utf-8-sig", "replace")
    for separator in _SEPARATORS:
        try:
            columns = next(csv.reader([header], delimiter=separator), [])
        except csv.Error:  # whoever reads the whole file says what is wrong with it
            continue
        if set(required) <= set(columns):
            return separator
    return ","


def _read(path: Path, required: Sequence[str]) -> pl.DataFrame:
    if not os.path.isfile(path):
        kind = "a folder or device" if os.path.exists(path) else "no such file"
        raise InputError(f"{path}: found {kind}, expected a table of videos and captions. Check the path.")
    holds = "a Parquet file"
    try:
        if path.suffix.lower() == ".parquet":
            return pl.read_parquet(path, glob=False)
        holds = "comma separated UTF-8 text, a comma in quotes"
        data = path.read_bytes()
        separator = _separator(data, required)
        holds = holds.replace("comma", _SEPARATORS[separator])
        frame = pl.read_csv(data, infer_schema_length=0, separator=separator)
    except (OSError, pl.exceptions.PolarsError) as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(
            f"{path}: found a file that cannot be read ({reason}), expected {holds}. Write it again."
        ) from error
    while frame.height and not any(frame.row(-1)):  # blank lines at the end
        frame = frame.head(-1)
    return frame


def _places(path: Path, frame: pl.DataFrame) -> list[str]:
    """Place at which each row begins. Quoted fields may hold line breaks; nulls in a CSV are empty fields."""
    if path.suffix.lower() != ".csv":
        return [f"row {i + 1}" for i in range(frame.height)]
    line, places = 2, []
    for row in frame.iter_rows():
        places.append(f"line {line}")
        line += 1 + sum(value.count("\n") for value in row if value)
    return places


def read_table(path: Path, videos: Path | None = None, name: str | None = None) -> RetrievalData:
    """Read a CSV or Parquet file with the columns `video`, `caption` and, if it has them, `video_id`, `group`, `start`
    and `end`.

    video       path of the video file; a relative one is taken from `videos`, or from the table's folder
    caption     one per row; a video with several captions has several rows, and a caption may be repeated
    video_id    the path, with its range, where there is no such column
    group       the same in all rows of a video
    start, end  seconds of the file that are meant, both or neither; a row without them means all of it. The same file
                with two ranges is two videos
    Raises InputError as `read_columns` does; also for a range that is none, a path with backslashes that names no file,
    an id with two clips or a clip with two ids, and a video with two groups. All these name the lines.
    """
    table = read_columns(path, ("video", "caption"), ("video_id", "group"), _RANGE)
    root = path.parent if videos is None else videos
    clips = _clips(path, table)
    names = [str(clip) for clip in clips]
    ids = table.columns.get("video_id", names)
    captions = [clean(caption) for caption in table.columns["caption"]]

    _check_backslashes(path, root, table)
    _check_one_each(path, "ids with several files", zip(ids, names, table.places, strict=True))
    _check_one_each(path, "files with several ids", zip(names, ids, table.places, strict=True))
    groups = table.columns.get("group")
    if groups is not None:
        _check_one_each(path, "videos with several groups", zip(ids, groups, table.places, strict=True))

    said: dict[str, list[str]] = {}
    for video_id, caption in zip(ids, captions, strict=True):
        said.setdefault(video_id, []).append(caption)
    return gather(
        name or path.name,
        said,
        {video_id: replace(clip, path=root / clip.path) for video_id, clip in zip(ids, clips, strict=True)},
        None if groups is None else dict(zip(ids, groups, strict=True)),
        [f"columns not read: {some(table.others)}"] if table.others else [],
    )


def _clips(path: Path, table: Table) -> list[Clip]:
    """The clip of each row, its path as in the table."""
    if len(table.numbers) == 1:
        (there,) = table.numbers
        raise InputError(f"{path}: found the column {there} alone, expected start and end, in seconds. Add the other.")
    nothing: list[float | None] = [None] * len(table.places)
    starts, ends = (table.numbers.get(name, nothing) for name in _RANGE)
    wrong = [
        f"{place} ({'none' if start is None else f'{start:g}'} to {'none' if end is None else f'{end:g}'})"
        for place, start, end in zip(table.places, starts, ends, strict=True)
        if not _is_range(start, end)
    ]
    if wrong:
        raise InputError(
            f"{path}: found ranges that are none at {some(wrong)}, expected a start from 0 on and a later end, in "
            "seconds, or neither. Correct the rows."
        )
    files = (Path(os.path.normpath(video)) for video in table.columns["video"])
    return [Clip(*clip) for clip in zip(files, starts, ends, strict=True)]


def _is_range(start: float | None, end: float | None) -> bool:
    if start is None or end is None:
        return start is end
    return 0 <= start < end and math.isfinite(end)


def _check_backslashes(path: Path, root: Path, table: Table) -> None:
    """Paths written on Windows name nothing elsewhere; a file whose name has a backslash does."""
    if os.sep == "\\":
        return
    wrong = [
        f"{place} ({video})"
        for place, video in zip(table.places, table.columns["video"], strict=True)
        if "\\" in video and not (root / video).exists()
    ]
    if wrong:
        raise InputError(
            f"{path}: found backslashes in paths at {some(wrong)}, expected forward slashes, sub/a.mp4. Replace them."
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
        raise InputError(f"{path}: found {what}: {some(wrong, '; ')}, expected one for each. Correct the rows.")
