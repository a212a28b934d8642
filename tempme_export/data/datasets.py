"""Readers of the annotation files in which the field shares its text-video datasets.

Each reader takes a folder and a split and returns the captions; `annotations.open_data` says which files it expects.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tempme_export.data.json_files import entries, kind, read_json, read_text
from tempme_export.data.records import clean, repeated, some
from tempme_export.data.tables import read_columns
from tempme_export.data.video_files import without_suffix
from tempme_export.errors import InputError

Split = Literal["train", "test"]


@dataclass(frozen=True)
class Annotations:
    """The captions of one split, and what the video files are called.

    captions  {video id: captions}, in the order of the split
    files     {video id: paths relative to the folder of videos, likeliest first}
    """

    name: str
    captions: Mapping[str, Sequence[str]]
    files: Mapping[str, Sequence[str]]


def read_msrvtt(folder: Path, split: Split) -> Annotations:
    """MSR-VTT: training on the 9k split with all captions, test on 1k-A with one caption per video."""
    captions = _msrvtt_train(folder) if split == "train" else _msrvtt_test(folder)
    name = {"train": "msrvtt 9k train", "test": "msrvtt 1k-A test"}[split]
    return Annotations(name, captions, {video_id: (f"{video_id}.mp4",) for video_id in captions})


def _msrvtt_train(folder: Path) -> dict[str, list[str]]:
    path, list_path = folder / "MSRVTT_data.json", folder / "MSRVTT_train.9k.csv"
    listed = read_columns(list_path, ("video_id",)).columns["video_id"]
    document = read_json(path, "the videos and sentences of MSR-VTT")
    if not isinstance(document, dict) or not {"videos", "sentences"} <= document.keys():
        raise InputError(
            f"{path}: found {kind(document)}; expected an object with videos and sentences; "
            "copy the MSRVTT_data.json that is shared for retrieval"
        )
    videos = [entry["video_id"] for entry in entries(path, document["videos"], "videos", ("video_id",))]
    if len(set(videos)) < len(videos):
        raise InputError(f"{path}: found videos twice: {some(repeated(videos))}; expected each once; copy it again")
    unknown = sorted(set(listed) - set(videos))
    if unknown:
        raise InputError(
            f"{list_path}: found videos that {path.name} does not have: {some(unknown)}; expected a part of its "
            f"{len(videos)} videos; take both files from one source"
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


def _msrvtt_test(folder: Path) -> dict[str, list[str]]:
    path = folder / "MSRVTT_JSFUSION_test.csv"
    table = read_columns(path, ("video_id", "sentence"))
    videos, sentences = table.columns["video_id"], table.columns["sentence"]
    captions = {video_id: [clean(sentence)] for video_id, sentence in zip(videos, sentences, strict=True)}
    return _listed(captions, videos, path, path)


def read_activitynet(folder: Path, split: Split) -> Annotations:
    """ActivityNet Captions: all sentences of a video are one paragraph; test on val1."""
    stem = {"train": "train", "test": "val_1"}[split]
    path, list_path = folder / f"{stem}.json", folder / f"{stem}_ids.json"
    document = read_json(path, "the sentences of ActivityNet Captions")
    if not isinstance(document, dict):
        raise InputError(f"{path}: found {kind(document)}; expected an object of videos; copy the file again")
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
        raise InputError(f"{path}: found videos without a list of sentences: {some(wrong)}; expected one for each")
    source, listed = path, list(document)
    if list_path.exists():
        source, ids = list_path, read_json(list_path, "a list of video ids")
        if not isinstance(ids, list) or not all(isinstance(one, str) for one in ids):
            raise InputError(f"{list_path}: found {kind(ids)}; expected a list of video ids, all text; correct it")
        listed = [one if one in document or f"v_{one}" not in document else f"v_{one}" for one in ids]
    captions = _paragraphs({video_id: entry["sentences"] for video_id, entry in document.items()})
    captions = _listed(captions, listed, source, path)
    files = {one: (f"{one}.mp4", f"{one.removeprefix('v_')}.mp4") for one in captions}
    name = {"train": "activitynet train", "test": "activitynet val1 test"}[split]
    return Annotations(name, captions, files)


def read_didemo(folder: Path, split: Split) -> Annotations:
    """DiDeMo: all descriptions of a video are one paragraph, in the order of the file."""
    path, list_path = folder / f"{split}_data.json", folder / f"{split}_list.txt"
    document = read_json(path, "the descriptions of DiDeMo")
    described: dict[str, list[str]] = {}
    names: dict[str, str] = {}
    several = []
    for entry in entries(path, document, "descriptions", ("video", "description")):
        video_id = without_suffix(entry["video"])
        described.setdefault(video_id, []).append(entry["description"])
        if names.setdefault(video_id, entry["video"]) != entry["video"]:
            several.append(f"{names[video_id]} and {entry['video']}")
    if several:
        raise InputError(f"{path}: found one video under several file names: {some(several)}; expected one each")
    source, listed = path, list(described)
    if list_path.exists():
        source, lines = list_path, read_text(list_path, "one video a line").split("\n")
        listed = [without_suffix(line.strip()) for line in lines if line.strip()]
    captions = _listed(_paragraphs(described), listed, source, path)
    files = {one: (names[one] if names[one] != one else f"{one}.mp4",) for one in captions}
    return Annotations(f"didemo {split}", captions, files)


_LSMDC_COLUMNS = ("clip", "start_aligned", "end_aligned", "start_extracted", "end_extracted", "sentence")


def read_lsmdc(folder: Path, split: Split) -> Annotations:
    """LSMDC: one sentence per clip, now and then several; test on the 1000 clips of the public challenge."""
    stems = {"train": "LSMDC16_annos_training.csv", "test": "LSMDC16_challenge_1000_publictect.csv"}
    path = folder / stems[split]
    lines = read_text(path, f"{len(_LSMDC_COLUMNS)} columns between tabs").split("\n")
    rows = [(f"line {i}", line.split("\t")) for i, line in enumerate(lines, 1) if line.strip()]
    if rows and rows[0][1][-1].strip() == "sentence":
        rows = rows[1:]
    wrong = [f"{place} has {len(row)}" for place, row in rows if len(row) != len(_LSMDC_COLUMNS)]
    if wrong:
        raise InputError(
            f"{path}: found another number of columns: {some(wrong)}; expected {len(_LSMDC_COLUMNS)} between tabs: "
            f"{', '.join(_LSMDC_COLUMNS)}"
        )
    nameless = [place for place, row in rows if not row[0].strip()]
    if nameless:
        raise InputError(f"{path}: found no clip id at {some(nameless)}; expected one; correct the lines")
    captions: dict[str, list[str]] = {}
    for _, row in rows:
        captions.setdefault(row[0].strip(), []).append(clean(row[-1]))
    _check_empty(path, [place for place, row in rows if not row[-1].strip()])
    listed = _listed(captions, list(captions), path, path)
    name = {"train": "lsmdc train", "test": "lsmdc 1000 test"}[split]
    return Annotations(name, listed, {clip: _lsmdc_files(clip) for clip in listed})


def _lsmdc_files(clip: str) -> tuple[str, ...]:
    """Where a clip may lie. It is called MOVIE_START-END, and the times hold no underscore."""
    movie = clip.rpartition("_")[0]
    return (f"{movie}/{clip}.avi", f"{clip}.avi") if movie else (f"{clip}.avi",)


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
        raise InputError(f"{list_path}: found no video; expected at least 1; copy the file again")
    twice = repeated(listed)
    if twice:
        raise InputError(
            f"{list_path}: found videos twice: {some(twice)}; expected each once; remove the repeated ones"
        )
    silent = [video_id for video_id in listed if not captions.get(video_id)]
    if silent:
        where = "it" if list_path == path else path.name
        raise InputError(
            f"{list_path}: found videos without a caption in {where}: {some(silent)}; expected at least 1 each; "
            "take both files from one source, or take these videos out"
        )
    return {video_id: captions[video_id] for video_id in listed}


def _check_empty(path: Path, places: Sequence[str]) -> None:
    if places:
        raise InputError(f"{path}: found empty captions at {some(places)}; expected words; fill or remove them")
