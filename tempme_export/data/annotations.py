"""Datasets of videos and captions, from the annotation files that the field shares or from a plain table.

Nothing is downloaded: the annotation files lie in one folder, DIR, and the video files below DIR/videos, or anywhere
below DIR when there is no DIR/videos. A video is found by its name in any sub-folder and with any common suffix.

`msrvtt:DIR`       train: MSRVTT_train.9k.csv or MSRVTT_train.7k.csv (column video_id) names the videos,
                   MSRVTT_data.json ({"videos": [{"video_id"}], "sentences": [{"video_id", "caption"}]}) has all their
                   captions;
                   test: MSRVTT_JSFUSION_test.csv (columns video_id, sentence), the 1k-A split, one caption per video.
                   Videos: videoN.mp4
`activitynet:DIR`  train: train.json; test: val_1.json ({"v_...": {"sentences": [...]}}). train_ids.json and
                   val_1_ids.json or val_ids.json, lists of ids, restrict and order the videos where they exist. The
                   sentences of a video are joined to one paragraph. Videos: v_ID.mp4 or ID.mp4
`didemo:DIR`       train_data.json, test_data.json ([{"video", "description"}]). train_list.txt and test_list.txt,
                   one video a line, restrict and order the videos where they exist. The descriptions of a video are
                   joined to one paragraph, in the order of the file. Frames are of the first 31 s: people described 30,
                   and the original's loader reads the frame at 31 too. Videos: as named there
`lsmdc:DIR`        train: LSMDC16_annos_training.csv; test: LSMDC16_challenge_1000_publictect.csv (between tabs: clip,
                   start_aligned, end_aligned, start_extracted, end_extracted, sentence; no header).
                   Videos: MOVIE/CLIP.avi or CLIP.avi, where CLIP is MOVIE_START-END
`synthetic:DIR`    train.csv, test.csv, which `tempme-train --data synthetic` writes
`FILE.csv`, `FILE.parquet`
                   columns video (path, from the file's folder) and caption, one row per caption; and, where wanted,
                   video_id (otherwise the path), group (candidates that differ in one respect only), start and end
                   (seconds: the part of the file that is meant). Commas, semicolons or tabs separate a CSV's columns

A list or table that lies beside the annotations and is not read is named in `RetrievalData.notes`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from tempme_export.data.clip import Clip
from tempme_export.data.datasets import FILES, READERS, Split
from tempme_export.data.records import RetrievalData, gather, missing, some
from tempme_export.data.tables import SUFFIXES, read_table
from tempme_export.data.video_files import find_videos
from tempme_export.errors import InputError

__all__ = ["RetrievalData", "Split", "missing", "open_data"]

_SYNTHETIC = "synthetic"
_RENDERS = "`tempme-train --data synthetic:DIR` and `python examples/demo.py` render one"
_LISTS = (".csv", ".json", ".txt")
_KNOWN = f"{', '.join(f'{name}:DIR' for name in (*READERS, _SYNTHETIC))}, or the path of a .csv or .parquet file"


def open_data(spec: str | Path, split: Split, videos: Path | None = None) -> RetrievalData:
    """Read the annotations of one split; the module's text says which files each kind of `spec` needs.

    spec    `msrvtt:DIR`, `activitynet:DIR`, `didemo:DIR`, `lsmdc:DIR`, `synthetic:DIR`, or a .csv or .parquet file
    split   "train" or "test"; a table has no splits and is read whole
    videos  the folder of the video files, instead of DIR/videos or the table's folder

    A video whose file is not there keeps the path it was expected at: see `missing`. Raises InputError for an unknown
    spec, a folder that is not there, and annotation files that are missing, malformed or contradict each other.
    """
    if split not in get_args(Split):
        raise InputError(f"found the split {split!r}, expected {' or '.join(get_args(Split))}.")
    if videos is not None and not videos.is_dir():
        raise InputError(f"{videos}: found no such folder, expected the folder of the video files. Check the path.")
    kind, colon, rest = str(spec).partition(":")
    kind = kind.lower()
    if colon and (kind in READERS or kind == _SYNTHETIC):
        folder = _folder(kind, rest)
        return _synthetic(folder, split, videos) if kind == _SYNTHETIC else _dataset(kind, folder, split, videos)
    path = Path(spec).expanduser()
    if path.suffix.lower() in SUFFIXES and (not colon or path.exists()):
        return read_table(path, videos)
    raise InputError(f"found the data {str(spec)!r}, expected {_KNOWN}.")


def _folder(kind: str, name: str) -> Path:
    folder = Path(name).expanduser()
    if not name or not folder.is_dir():
        found = f"found no folder {name!r}" if name else "found no folder"
        holds = f"a rendered world. {_RENDERS}" if kind == _SYNTHETIC else "the annotation files."
        raise InputError(f"{kind}:{name}: {found}, expected {kind}:DIR, where DIR holds {holds}")
    return folder


def _dataset(kind: str, folder: Path, split: Split, videos: Path | None) -> RetrievalData:
    read = READERS[kind](folder, split)
    usual = folder / "videos"
    search = videos or (usual if usual.is_dir() else folder)
    files = find_videos(videos or usual, search, read.files)
    clips = {one: Clip(file, None if read.end is None else 0.0, read.end) for one, file in files.items()}
    notes = (
        []
        if read.end is None
        else [f"frames are of the first {read.end:g} s of each video, as in the original's loader"]
    )
    return gather(read.name, read.captions, clips, notes=[*notes, *_unread(kind, folder, split, read.sources)])


def _unread(kind: str, folder: Path, split: Split, sources: Sequence[str]) -> list[str]:
    """Notes on lists and tables in the folder that were not read, and are not for another split."""
    read = {*sources, *(name for other in get_args(Split) if other != split for name in FILES[kind][other])}
    files = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in _LISTS and path.is_file())
    unread = [name for name in files if name not in read]
    return [f"{some(unread)} not read; {' and '.join(dict.fromkeys(sources))} read"] if unread else []


def _synthetic(folder: Path, split: Split, videos: Path | None) -> RetrievalData:
    path = folder / f"{split}.csv"
    if not path.is_file():
        raise InputError(f"{path}: found no such file, expected the {split} table of a rendered world. {_RENDERS}")
    return read_table(path, videos, f"synthetic {split}")
