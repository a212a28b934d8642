"""Finds the files of videos that annotations know by name only: any folder layout, any suffix."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tempme_export.data.records import some
from tempme_export.errors import InputError
from tempme_export.media.video import is_video

SUFFIXES = frozenset(
    (
        *(".mp4", ".avi", ".mkv", ".webm", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".asf", ".flv", ".3gp", ".3g2"),
        *(".ts", ".mts", ".m2ts", ".vob", ".dv", ".ogv", "."),  # "a.": a file whose suffix was lost
    )
)


def without_suffix(name: str) -> str:
    """A file name without its video suffixes, in any case; "a.mov.mp4" is a converted "a.mov" and gives "a"."""
    stem, suffix = os.path.splitext(name)
    while suffix.lower() in SUFFIXES:
        name = stem
        stem, suffix = os.path.splitext(name)
    return name


@dataclass(frozen=True)
class Index:
    """Files below a folder, as sorted paths relative to it.

    names   every file by its whole name
    stems   those of a common suffix by their name without it
    others  the other files by their name without suffix
    """

    names: Mapping[str, Sequence[PurePosixPath]]
    stems: Mapping[str, Sequence[PurePosixPath]]
    others: Mapping[str, Sequence[PurePosixPath]]


def index_files(folder: Path) -> Index:
    """Look through a folder. Links to folders are followed, each folder is visited once.

    Raises InputError when a folder cannot be read.
    """
    names: dict[str, list[PurePosixPath]] = {}
    waiting, seen = [PurePosixPath()], {os.path.realpath(folder)}
    while waiting:
        here = waiting.pop()
        try:
            with os.scandir(folder / here) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    if entry.is_dir():
                        real = os.path.realpath(entry.path)
                        if real not in seen:
                            seen.add(real)
                            waiting.append(here / entry.name)
                    elif entry.is_file():
                        names.setdefault(entry.name, []).append(here / entry.name)
        except OSError as error:
            raise InputError(
                f"{folder / here}: found a folder that cannot be read ({error.strerror}), expected the videos. "
                "Mend its permissions or name another folder."
            ) from error
    stems: dict[str, list[PurePosixPath]] = {}
    others: dict[str, list[PurePosixPath]] = {}
    for name, paths in names.items():
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in SUFFIXES:
            stems.setdefault(without_suffix(name), []).extend(paths)
        else:
            others.setdefault(stem, []).extend(paths)
    return Index(*({key: sorted(paths) for key, paths in found.items()} for found in (names, stems, others)))


def find_videos(folder: Path, search: Path, expected: Mapping[str, Sequence[str]]) -> dict[str, Path]:
    """Find the file of each video.

    folder    where a video that is not found is expected
    search    the folder that is searched, with all below it; it need not exist
    expected  {video id: paths relative to the folder, likeliest first}
    A file at an expected path is taken first, then one of the same name wherever it lies, then one whose name differs
    by a common suffix, at last one with a suffix of any kind that the decoder takes for a video.
    Returns {video id: path}: the first expected path where nothing was found.
    Raises InputError when several files have the name of a video and none lies where it is expected.
    """
    index = index_files(search) if search.is_dir() else Index({}, {}, {})
    paths, ambiguous = {}, []
    for video_id, names in expected.items():
        given = [PurePosixPath(name) for name in names]
        exact = [[path] for path in given if path in index.names.get(path.name, ())]
        named = [index.names.get(path.name, ()) for path in given]
        alike = [index.stems.get(without_suffix(path.name), ()) for path in given]
        files = next((files for files in (*exact, *named, *alike) if files), ())
        if not files:
            others = [path for name in given for path in index.others.get(without_suffix(name.name), ())]
            files = [path for path in others if is_video(search / path)]
        if len(files) > 1:
            ambiguous.append(f"{video_id} ({some([str(file) for file in files])})")
        paths[video_id] = search / files[0] if files else folder / names[0]
    if ambiguous:
        raise InputError(
            f"{search}: found several files for one video: {some(ambiguous)}, expected one each. "
            "Name the folder that holds the ones you mean, or remove the others."
        )
    return paths
