"""Finds the files of videos that annotations know by name only: any folder layout, any common suffix."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from tempme_export.data.records import some
from tempme_export.errors import InputError

SUFFIXES = frozenset(
    (".mp4", ".avi", ".mkv", ".webm", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", ".mts", ".m2ts", ".ogv")
)


def without_suffix(name: str) -> str:
    """A file name without its video suffixes, in any case; "a.mov.mp4" is a converted "a.mov" and gives "a"."""
    stem, suffix = os.path.splitext(name)
    while suffix.lower() in SUFFIXES:
        name = stem
        stem, suffix = os.path.splitext(name)
    return name


def index_videos(folder: Path) -> dict[str, list[PurePosixPath]]:
    """Every video file below `folder` by its name without suffix, as sorted paths relative to `folder`.

    Links to folders are followed, each folder is visited once. Raises InputError when a folder cannot be read.
    """
    found: dict[str, list[PurePosixPath]] = {}
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
                    elif os.path.splitext(entry.name)[1].lower() in SUFFIXES and entry.is_file():
                        found.setdefault(without_suffix(entry.name), []).append(here / entry.name)
        except OSError as error:
            raise InputError(
                f"{folder / here}: found a folder that cannot be read ({error.strerror}); expected the videos; "
                "mend its permissions or name another folder"
            ) from error
    return {stem: sorted(paths) for stem, paths in found.items()}


def find_videos(folder: Path, search: Path, expected: Mapping[str, Sequence[str]]) -> dict[str, Path]:
    """Find the file of each video.

    folder    where a video that is not found is expected
    search    the folder that is searched, with all below it; it need not exist
    expected  {video id: paths relative to the folder, likeliest first}
    A file at an expected path is taken before any other of that name, wherever it lies and whatever its suffix.
    Returns {video id: path}: the first expected path where nothing was found.
    Raises InputError when several files have the name of a video and none lies where it is expected.
    """
    index = index_videos(search) if search.is_dir() else {}
    paths, ambiguous = {}, []
    for video_id, names in expected.items():
        named = [(PurePosixPath(name), index.get(without_suffix(PurePosixPath(name).name), [])) for name in names]
        exact = [name for name, files in named if name in files]
        files = next((files for _, files in named if files), [])
        if not exact and len(files) > 1:
            ambiguous.append(f"{video_id} ({some([str(file) for file in files])})")
        paths[video_id] = search / (exact or files)[0] if exact or files else folder / names[0]
    if ambiguous:
        raise InputError(
            f"{search}: found several files for one video: {some(ambiguous)}; expected one each; "
            "name the folder that holds the ones you mean, or remove the others"
        )
    return paths
