"""Readers of the annotation files in which the field shares its text-video datasets.

Each reader takes a folder and a split and returns the captions; `annotations.open_data` says which files it expects.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tempme_export.data.json_files import entries, kind, read_json, read_text
from tempme_export.data.records import clean, repeated, some
from tempme_export.data.tables import read_columns
from tempme_export.data.video_files import without_suffix
from tempme_export.errors import InputError

Split = Literal["train", "test"]


FILES: dict[str, dict[Split, tuple[str, ...]]] = {
    "msrvtt": {
        "train": ("MSRVTT_data.json", "MSRVTT_train.9k.csv", "MSRVTT_train.7k.csv"),
        "test": ("MSRVTT_JSFUSION_test.csv",),
    },
    "activitynet": {
        "train": ("train.json", "train_ids.json"),
        "test": ("val_1.json", "val_1_ids.json", "val_ids.json"),
    },
    "didemo": {
        "train": ("train_data.json", "train_list.txt"),
        "test": ("test_data.json", "test_list.txt"),
    },
    "lsmdc": {
        "train": ("LSMDC16_annos_training.csv",),
        "test": ("LSMDC16_challenge_1000_publictect.csv",),
    },
}
"""The annotations of each split, then the lists of its videos, of which the first that is there is read."""


@dataclass(frozen=True)
class Annotations:
    """The captions of one split, and what the video files are called.

    captions  {video id: captions}, in the order of the split
    files     {video id: paths relative to the folder of videos, likeliest first}
    sources   names of the annotation files that were read
    end       seconds: what is described ends there; None: with the file
    """

    name: str
    captions: Mapping[str, Sequence[str]]
    files: Mapping[str, Sequence[str]]
    sources: Sequence[str]
    end: float | None = None


def read_msrvtt(folder: Path, split: Split) -> Annotations:
    """MSR-VTT: training on the 9k or 7k split with all captions, test on 1k-A with one caption per video."""
    path, listed = _files(folder, "msrvtt", split)
    captions = _msrvtt_train(path, listed) if split == "train" else _msrvtt_test(path)
    name = f"msrvtt {listed.name.split('.')[1]} train" if split == "train" else "msrvtt 1k-A test"
    files = {video_id: (f"{video_id}.mp4",) for video_id in captions}
    return Annotations(name, captions, files, (path.name, listed.name))


def _msrvtt_train(path: Path, list_path: Path) -> dict[str, list[str]]:
    listed = read_columns(list_path, ("video_id",)).columns["video_id"]
    document = read_json(path, "the videos and sentences of MSR-VTT")
    if not isinstance(document, dict) or not {"videos", "sentences"} <= document.keys():
        raise InputError(
            f"{path}: found {kind(document)}, expected an object with videos and sentences. "
            "Copy the MSRVTT_data.json that is shared for retrieval."
        )
    videos = [entry["video_id"] for entry in entries(path, document["videos"], "videos", ("video_id",))]
    if len(set(videos)) < len(videos):
        raise InputError(f"{path}: found videos twice: {some(repeated(videos))}, expected each once. Copy it again.")
    unknown = sorted(set(listed) - set(videos))
    if unknown:
        raise InputError(
            f"{list_path}: found videos that {path.name} does not have: {some(unknown)}, expected a part of its "
            f"{len(videos)} videos. Take both files from one source."
        )
    captions: dict[str, list[str]] = {video_id: [] for video_id in listed}
    empty = []
    for i, entry in enumerate(entries(path, document["sentences"], "sentences", ("video_id", "caption"))):
        if entry["video_id"] in captions:
            caption = clean(entry["caption"])
            captions[entry["video_id"]].append(caption)
            if not caption:
                empty.append(f"sentences[{i}]")
    _check_empty(path, empty)
    return _listed(captions, listed, list_path, path)


def _msrvtt_test(path: Path) -> dict[str, list[str]]:
    table = read_columns(path, ("video_id", "sentence"))
    videos, sentences = table.columns["video_id"], table.columns["sentence"]
    captions = {video_id: [clean(sentence)] for video_id, sentence in zip(videos, sentences, strict=True)}
    return _listed(captions, videos, path, path)


def read_activitynet(folder: Path, split: Split) -> Annotations:
    """ActivityNet Captions: all sentences of a video are one paragraph; test on val1."""
    path, list_path = _files(folder, "activitynet", split)
    document = read_json(path, "the sentences of ActivityNet Captions")
    if not isinstance(document, dict):
        raise InputError(f"{path}: found {kind(document)}, expected an object of videos. Copy the file again.")
    wrong = [
        video_id
        for video_id, entry in document.items()
        if not (
            isinstance(entry, dict)
            and isinstance(entry.get("sentences"), list)
            and all(isinstance(sentence, str) for sentence in entry["sentences"])
        )
    ]
    if wrong:
        raise InputError(f"{path}: found videos without a list of sentences: {some(wrong)}, expected one for each.")
    source, listed = path, list(document)
    if list_path.exists():
        source, ids = list_path, read_json(list_path, "a list of video ids")
        if not isinstance(ids, list) or not all(isinstance(one, str) for one in ids):
            raise InputError(f"{list_path}: found {kind(ids)}, expected a list of video ids, all text. Correct it.")
        listed = [one if one in document or f"v_{one}" not in document else f"v_{one}" for one in ids]
    captions = _paragraphs({video_id: entry["sentences"] for video_id, entry in document.items()})
    captions = _listed(captions, listed, source, path)
    files = {one: (f"{one}.mp4", f"{one.removeprefix('v_')}.mp4") for one in captions}
    name = {"train": "activitynet train", "test": "activitynet val1 test"}[split]
    return Annotations(name, captions, files, (path.name, source.name))


DIDEMO_END = 31.0
"""Seconds. Who described DiDeMo saw the first 30 s of each video; the original's loader, with which the published
checkpoints were trained and evaluated, reads the frame at 31 s too, and so does this one."""


def read_didemo(folder: Path, split: Split) -> Annotations:
    """DiDeMo: all descriptions of a video are one paragraph, in the order of the file."""
    path, list_path = _files(folder, "didemo", split)
    document = read_json(path, "the descriptions of DiDeMo")
    described: dict[str, list[str]] = {}
    for entry in entries(path, document, "descriptions", ("video", "description")):
        described.setdefault(entry["video"], []).append(entry["description"])
    source, listed = path, list(described)
    if list_path.exists():
        source, lines = list_path, read_text(list_path, "one video a line").split("\n")
        listed = _didemo_names(path, list_path, described, [line.strip() for line in lines if line.strip()])
    captions = _listed(_paragraphs(described), listed, source, path)
    shared = set(repeated([without_suffix(name) for name in captions]))
    if shared and source == path:
        several = [name for name in captions if without_suffix(name) in shared]
        raise InputError(
            f"{path}: found names that differ by their suffix only: {some(several)}, expected one each. Put "
            f"{list_path.name}, which says which are meant, beside it."
        )
    ids = {name: name if without_suffix(name) in shared else without_suffix(name) for name in captions}
    files = {ids[name]: (name,) if without_suffix(name) != name else (f"{name}.mp4", name) for name in captions}
    said = {ids[name]: paragraph for name, paragraph in captions.items()}
    return Annotations(f"didemo {split}", said, files, (path.name, source.name), DIDEMO_END)


def _didemo_names(path: Path, list_path: Path, described: Mapping[str, Any], lines: Sequence[str]) -> list[str]:
    """The name in the annotations that each line of a list means: an equal one, or the one that differs by its suffix.

    Raises InputError for a line that could mean several.
    """
    alike: dict[str, list[str]] = {}
    for name in described:
        alike.setdefault(without_suffix(name), []).append(name)
    meant = [[line] if line in described else alike.get(without_suffix(line), [line]) for line in lines]
    several = [f"{line} ({some(names)})" for line, names in zip(lines, meant, strict=True) if len(names) > 1]
    if several:
        raise InputError(
            f"{list_path}: found videos that {path.name} has under several names: {some(several)}, expected one of "
            "these names. Correct the list."
        )
    return [name for (name,) in meant]


_LSMDC_COLUMNS = ("clip", "start_aligned", "end_aligned", "start_extracted", "end_extracted", "sentence")


def read_lsmdc(folder: Path, split: Split) -> Annotations:
    """LSMDC: one sentence per clip, now and then several; test on the 1000 clips of the public challenge."""
    path, _ = _files(folder, "lsmdc", split)
    lines = read_text(path, f"{len(_LSMDC_COLUMNS)} columns between tabs").split("\n")
    rows = [(f"line {i}", line.split("\t")) for i, line in enumerate(lines, 1) if line.strip()]
    if rows and rows[0][1][-1].strip() == "sentence":
        rows = rows[1:]
    wrong = [f"{place} has {len(row)}" for place, row in rows if len(row) != len(_LSMDC_COLUMNS)]
    if wrong:
        raise InputError(
            f"{path}: found another number of columns: {some(wrong)}, expected {len(_LSMDC_COLUMNS)} between tabs: "
            f"{', '.join(_LSMDC_COLUMNS)}."
        )
    nameless = [place for place, row in rows if not row[0].strip()]
    if nameless:
        raise InputError(f"{path}: found no clip id at {some(nameless)}, expected one. Correct the lines.")
    captions: dict[str, list[str]] = {}
    for _, row in rows:
        captions.setdefault(row[0].strip(), []).append(clean(row[-1]))
    _check_empty(path, [place for place, row in rows if not row[-1].strip()])
    listed = _listed(captions, list(captions), path, path)
    name = {"train": "lsmdc train", "test": "lsmdc 1000 test"}[split]
    return Annotations(name, listed, {clip: _lsmdc_files(clip) for clip in listed}, (path.name,))


def _lsmdc_files(clip: str) -> tuple[str, ...]:
    """Files that may hold a clip. It is called MOVIE_START-END, and the times hold no underscore."""
    movie = clip.rpartition("_")[0]
    return (f"{movie}/{clip}.avi", f"{clip}.avi") if movie else (f"{clip}.avi",)


def _files(folder: Path, dataset: str, split: Split) -> tuple[Path, Path]:
    """The annotations of a split and the list of its videos: the first that is there, or the first of all; the
    annotations themselves where there is no such list."""
    first, *lists = (folder / name for name in FILES[dataset][split])
    return first, next((path for path in lists if path.exists()), (*lists, first)[0])


READERS: dict[str, Callable[[Path, Split], Annotations]] = {
    "msrvtt": read_msrvtt,
    "activitynet": read_activitynet,
    "didemo": read_didemo,
    "lsmdc": read_lsmdc,
}


def _paragraphs(sentences: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """One paragraph per video; none where no sentence has words."""
    joined = {video_id: clean(" ".join(said)) for video_id, said in sentences.items()}
    return {video_id: [paragraph] if paragraph else [] for video_id, paragraph in joined.items()}


def _listed(
    captions: Mapping[str, list[str]], listed: Sequence[str], list_path: Path, path: Path
) -> dict[str, list[str]]:
    """The captions of the listed videos, in the order of the list, which is in `list_path`; those of others are left.

    Raises InputError when the list is empty, names a video twice, or names one without captions in `path`.
    """
    if not listed:
        raise InputError(f"{list_path}: found no video, expected at least 1. Copy the file again.")
    twice = repeated(listed)
    if twice:
        raise InputError(
            f"{list_path}: found videos twice: {some(twice)}, expected each once. Remove the repeated ones."
        )
    silent = [video_id for video_id in listed if not captions.get(video_id)]
    if silent:
        where = "it" if list_path == path else path.name
        raise InputError(
            f"{list_path}: found videos without a caption in {where}: {some(silent)}, expected at least 1 each. "
            "Take both files from one source, or take these videos out."
        )
    return {video_id: captions[video_id] for video_id in listed}


def _check_empty(path: Path, places: Sequence[str]) -> None:
    if places:
        raise InputError(f"{path}: found empty captions at {some(places)}, expected words. Fill or remove them.")
