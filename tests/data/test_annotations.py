"""The annotation files of the four datasets, and how a request names them."""

import json
from pathlib import Path

import polars as pl
import pytest

from tempme_export.data.annotations import missing, open_data
from tempme_export.errors import InputError


def put(path: Path, content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def said_of(data) -> dict[str, list[str]]:
    said = {video_id: [] for video_id in data.video_ids}
    for caption, owner in zip(data.captions, data.owner, strict=True):
        said[data.video_ids[owner]].append(caption)
    return said


def refusal(spec, split="train", **options) -> str:
    with pytest.raises(InputError) as caught:
        open_data(spec, split, **options)
    return str(caught.value)


# MSR-VTT

SENTENCES = [
    {"video_id": "video2", "caption": "a dog  runs"},
    {"video_id": "video1", "caption": "a cat sits"},
    {"video_id": "video9", "caption": "a test video"},
    {"video_id": "video2", "caption": "a dog runs"},
]


@pytest.fixture
def msrvtt(tmp_path):
    put(
        tmp_path / "MSRVTT_data.json",
        {"videos": [{"video_id": f"video{i}"} for i in range(10)], "sentences": SENTENCES},
    )
    put(tmp_path / "MSRVTT_train.9k.csv", "video_id\nvideo1\nvideo2\n")
    put(
        tmp_path / "MSRVTT_JSFUSION_test.csv",
        'key,vid_key,video_id,sentence\nret0,msr9,video9,"one, two"\nret1,msr8,video8,three\n',
    )
    return tmp_path


def test_msrvtt_train_has_every_caption_of_the_listed_videos(msrvtt) -> None:
    data = open_data(f"msrvtt:{msrvtt}", "train")
    assert data.name == "msrvtt 9k train"
    assert said_of(data) == {"video1": ["a cat sits"], "video2": ["a dog runs", "a dog runs"]}
    assert data.video_ids == ("video1", "video2")
    assert data.paths == (msrvtt / "videos/video1.mp4", msrvtt / "videos/video2.mp4")
    assert data.groups is None
    assert missing(data) == [0, 1]


def test_msrvtt_test_has_one_caption_a_video(msrvtt) -> None:
    data = open_data(f"MSRVTT:{msrvtt}", "test")
    assert data.name == "msrvtt 1k-A test"
    assert said_of(data) == {"video9": ["one, two"], "video8": ["three"]}


def test_videos_are_searched_in_the_usual_and_in_another_folder(msrvtt, tmp_path) -> None:
    put(msrvtt / "TrainValVideo/video1.webm", "")
    assert open_data(f"msrvtt:{msrvtt}", "train").paths[0] == msrvtt / "TrainValVideo/video1.webm"
    put(msrvtt / "videos/all/video2.mp4", "")
    data = open_data(f"msrvtt:{msrvtt}", "train")
    assert data.paths == (msrvtt / "videos/video1.mp4", msrvtt / "videos/all/video2.mp4")
    assert missing(data) == [0]
    other = msrvtt / "TrainValVideo"
    assert open_data(f"msrvtt:{msrvtt}", "train", other).paths == (other / "video1.webm", other / "video2.mp4")


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("MSRVTT_train.9k.csv", None, "MSRVTT_train.9k.csv: found no such file"),
        ("MSRVTT_train.9k.csv", "name\nvideo1\n", "the columns 'name', expected video_id"),
        ("MSRVTT_train.9k.csv", "video_id\nvideo1\nvideo1\n", "videos twice: video1,"),
        ("MSRVTT_train.9k.csv", "video_id\nvideo3\n", "without a caption in MSRVTT_data.json: video3,"),
        ("MSRVTT_train.9k.csv", "video_id\nvideo77\n", "videos that MSRVTT_data.json does not have: video77,"),
        ("MSRVTT_data.json", None, "MSRVTT_data.json: found no such file"),
        ("MSRVTT_data.json", '{"videos": [', "no JSON (Expecting value in line 1, column 13)"),
        ("MSRVTT_data.json", [], "found a list, expected an object with videos and sentences"),
        ("MSRVTT_data.json", {"images": 1, "videos": []}, "an object with the keys 'images', 'videos', expected"),
        (
            "MSRVTT_data.json",
            {"videos": {}, "sentences": []},
            "an object with the keys none for videos, expected a list",
        ),
        (
            "MSRVTT_data.json",
            {"videos": [{}, {"video_id": "a"}, 3], "sentences": []},
            "video_id as text: videos[0], videos[2],",
        ),
        ("MSRVTT_data.json", {"videos": [{"video_id": ""}], "sentences": []}, "videos[0],"),
        ("MSRVTT_data.json", {"videos": [{"video_id": "a"}] * 2, "sentences": []}, "videos twice: a,"),
    ],
)
def test_msrvtt_refuses(msrvtt, file, content, said) -> None:
    (msrvtt / file).unlink() if content is None else put(msrvtt / file, content)
    assert said in refusal(f"msrvtt:{msrvtt}")


def msrvtt_sentences(folder, sentences) -> None:
    put(folder / "MSRVTT_data.json", {"videos": [{"video_id": f"video{i}"} for i in range(10)], "sentences": sentences})


def test_msrvtt_captions_of_listed_videos_are_checked_and_those_of_others_are_not(msrvtt) -> None:
    stranger = {"video_id": "video77", "caption": " "}
    msrvtt_sentences(msrvtt, [*SENTENCES, stranger])
    assert len(open_data(f"msrvtt:{msrvtt}", "train").captions) == 3
    msrvtt_sentences(msrvtt, [*SENTENCES, {"video_id": "video1", "caption": " "}])
    assert "empty captions at sentences[4]," in refusal(f"msrvtt:{msrvtt}")
    msrvtt_sentences(msrvtt, [*SENTENCES, {"video_id": "video1", "caption": None}])
    assert "video_id, caption as text: sentences[4]," in refusal(f"msrvtt:{msrvtt}")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("video_id,caption\nvideo1,one\n", "'video_id', 'caption', expected video_id, sentence"),
        ("video_id,sentence\nvideo1,one\nvideo2,\n", "an empty sentence at line 3,"),
        ("video_id,sentence\nvideo1,one\nvideo1,two\n", "videos twice: video1,"),
    ],
)
def test_msrvtt_test_refuses(msrvtt, content, said) -> None:
    put(msrvtt / "MSRVTT_JSFUSION_test.csv", content)
    assert said in refusal(f"msrvtt:{msrvtt}", "test")


# ActivityNet


@pytest.fixture
def activitynet(tmp_path):
    put(
        tmp_path / "train.json",
        {
            "v_b": {
                "duration": 2.5,
                "timestamps": [[0, 1], [1, 2]],
                "sentences": [" A man\n runs. ", " ", "He falls."],
            },
            "v_v_a": {"sentences": ["It rains."]},
        },
    )
    put(tmp_path / "val_1.json", {"v_c": {"sentences": ["Snow.", "Ice."]}, "v_d": {"sentences": ["Sun."]}})
    return tmp_path


def test_activitynet_sentences_become_a_paragraph(activitynet) -> None:
    data = open_data(f"activitynet:{activitynet}", "train")
    assert data.name == "activitynet train"
    assert said_of(data) == {"v_b": ["A man runs. He falls."], "v_v_a": ["It rains."]}
    data = open_data(f"activitynet:{activitynet}", "test")
    assert data.name == "activitynet val1 test"
    assert said_of(data) == {"v_c": ["Snow. Ice."], "v_d": ["Sun."]}


def test_activitynet_videos_go_with_and_without_their_prefix(activitynet) -> None:
    put(activitynet / "videos/v_b.mkv", "")
    put(activitynet / "videos/v_a.mp4", "")
    data = open_data(f"activitynet:{activitynet}", "train")
    assert data.paths == (activitynet / "videos/v_b.mkv", activitynet / "videos/v_a.mp4")
    assert open_data(f"activitynet:{activitynet}", "test").paths[0] == activitynet / "videos/v_c.mp4"


def test_activitynet_ids_restrict_and_order(activitynet) -> None:
    put(activitynet / "val_1_ids.json", ["v_d", "v_c"])
    assert open_data(f"activitynet:{activitynet}", "test").video_ids == ("v_d", "v_c")
    put(activitynet / "train_ids.json", ["v_a"])
    assert open_data(f"activitynet:{activitynet}", "train").video_ids == ("v_v_a",)
    put(activitynet / "train.json", {"v_v_a": {"sentences": ["Rain."]}, "v_a": {"sentences": ["Sun."]}})
    assert open_data(f"activitynet:{activitynet}", "train").video_ids == ("v_a",), "an id as written comes first"


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("train.json", None, "train.json: found no such file"),
        ("train.json", [{"video": "a"}], "found a list, expected an object of videos"),
        (
            "train.json",
            {"v_a": ["one"], "v_b": {"sentences": "one"}, "v_c": {"sentences": [1]}},
            "sentences: v_a, v_b, v_c,",
        ),
        ("train.json", {}, "found no video,"),
        ("train.json", {"v_a": {"sentences": []}, "v_b": {"sentences": [" "]}}, "without a caption in it: v_a, v_b,"),
        ("train.json", '{"v_a": {"sentences": ["one"]}, "v_a": {"sentences": ["two"]}}', "keys twice: 'v_a',"),
        ("train_ids.json", {"v_b": 1}, "an object with the keys 'v_b', expected a list of video ids"),
        ("train_ids.json", ["v_b", 1], "found a list, expected a list of video ids, all text"),
        ("train_ids.json", [], "train_ids.json: found no video,"),
        ("train_ids.json", ["v_b", "b"], "videos twice: v_b,"),
        ("train_ids.json", ["v_b", "v_x", "y"], "without a caption in train.json: v_x, y,"),
    ],
)
def test_activitynet_refuses(activitynet, file, content, said) -> None:
    (activitynet / file).unlink() if content is None else put(activitynet / file, content)
    assert said in refusal(f"activitynet:{activitynet}")


# DiDeMo


@pytest.fixture
def didemo(tmp_path):
    rows = [("b@N_1.mov", "a dog"), ("a@N_2.m4v", "a cat"), ("b@N_1.mov", " it runs "), ("c", "a bird")]
    data = [{"video": video, "description": description, "times": [[0, 1]]} for video, description in rows]
    put(tmp_path / "train_data.json", data)
    put(tmp_path / "test_data.json", data[1:2])
    return tmp_path


def test_didemo_descriptions_become_a_paragraph(didemo) -> None:
    data = open_data(f"didemo:{didemo}", "train")
    assert data.name == "didemo train"
    assert said_of(data) == {"b@N_1": ["a dog it runs"], "a@N_2": ["a cat"], "c": ["a bird"]}
    assert data.paths == tuple(didemo / "videos" / name for name in ("b@N_1.mov", "a@N_2.m4v", "c.mp4"))
    data = open_data(f"didemo:{didemo}", "test")
    assert (data.name, data.video_ids) == ("didemo test", ("a@N_2",))


def test_didemo_videos_may_have_been_converted(didemo) -> None:
    for name in ("b@N_1.mov.mp4", "a@N_2.mp4", "deep/c.AVI"):
        put(didemo / "videos" / name, "")
    data = open_data(f"didemo:{didemo}", "train")
    assert data.paths == tuple(didemo / "videos" / name for name in ("b@N_1.mov.mp4", "a@N_2.mp4", "deep/c.AVI"))
    assert missing(data) == []


def test_didemo_lists_restrict_and_order(didemo) -> None:
    put(didemo / "train_list.txt", "\ufeffc\n\nb@N_1.mov\r\n")
    assert open_data(f"didemo:{didemo}", "train").video_ids == ("c", "b@N_1")


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("train_data.json", None, "train_data.json: found no such file"),
        ("train_data.json", {"video": "a"}, "an object with the keys 'video' for descriptions, expected a list"),
        (
            "train_data.json",
            [{"video": "a"}, {"video": 1, "description": "x"}],
            "as text: descriptions[0], descriptions[1],",
        ),
        ("train_data.json", [], "found no video,"),
        ("train_data.json", "3", "found a number for descriptions"),
        ("train_data.json", '"a"', "found a text for descriptions"),
        ("train_data.json", "null", "found null for descriptions"),
        ("train_data.json", "true", "found true or false for descriptions"),
        ("train_data.json", [{"video": "a.mov", "description": "\t"}], "without a caption in it: a.mov,"),
        (
            "train_data.json",
            [{"video": "a.mov", "description": "x"}, {"video": "a.avi", "description": "y"}],
            "names that differ by their suffix only: a.mov, a.avi, expected one each. Put train_list.txt",
        ),
        ("train_list.txt", "", "train_list.txt: found no video,"),
        ("train_list.txt", "c\nc.mp4\n", "train_list.txt: found videos twice: c,"),
        ("train_list.txt", "c\nx\n", "without a caption in train_data.json: x,"),
    ],
)
def test_didemo_refuses(didemo, file, content, said) -> None:
    (didemo / file).unlink() if content is None else put(didemo / file, content)
    assert said in refusal(f"didemo:{didemo}")


# LSMDC

TIMES = "00.00.51.926\t00.00.54.129\t00.00.51.926\t00.00.54.129"
CLIPS = ("0001_American_Beauty_00.00.51.926-00.00.54.129", "1012_Unbreakable_00.05.16.065-00.05.21.941")
TRAIN, TEST = "LSMDC16_annos_training.csv", "LSMDC16_challenge_1000_publictect.csv"


@pytest.fixture
def lsmdc(tmp_path):
    # An open quotation mark and a line break of another kind belong to the sentence.
    put(
        tmp_path / TRAIN,
        f'{CLIPS[1]}\t{TIMES}\tSOMEONE says "no.\n{CLIPS[0]}\t{TIMES}\tHe\u2028 runs.\n\n'
        f"{CLIPS[1]}\t{TIMES}\tShe nods.\n",
    )
    put(tmp_path / TEST, f"{CLIPS[0]}\t{TIMES}\tHe runs.")
    return tmp_path


def test_lsmdc_clips_lie_in_the_folder_of_their_movie(lsmdc) -> None:
    data = open_data(f"lsmdc:{lsmdc}", "train")
    assert data.name == "lsmdc train"
    assert said_of(data) == {CLIPS[1]: ['SOMEONE says "no.', "She nods."], CLIPS[0]: ["He runs."]}
    assert data.paths == (
        lsmdc / f"videos/1012_Unbreakable/{CLIPS[1]}.avi",
        lsmdc / f"videos/0001_American_Beauty/{CLIPS[0]}.avi",
    )
    data = open_data(f"lsmdc:{lsmdc}", "test")
    assert (data.name, said_of(data)) == ("lsmdc 1000 test", {CLIPS[0]: ["He runs."]})


@pytest.mark.parametrize("place", ["{}.avi", "elsewhere/{}.mp4", "0001_American_Beauty/{}.avi"])
def test_lsmdc_clips_are_found_anywhere(lsmdc, place) -> None:
    file = put(lsmdc / "videos" / place.format(CLIPS[0]), "")
    assert open_data(f"lsmdc:{lsmdc}", "test").paths == (file,)


def test_lsmdc_may_have_a_header_and_clips_without_movie(lsmdc) -> None:
    header = "video\tstart_aligned\tend_aligned\tstart_extracted\tend_extracted\tsentence"
    put(lsmdc / TEST, f"{header}\r\nclip\t{TIMES}\tone\r\n")
    data = open_data(f"lsmdc:{lsmdc}", "test")
    assert (said_of(data), data.paths) == ({"clip": ["one"]}, (lsmdc / "videos/clip.avi",))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, f"{TRAIN}: found no such file, expected 6 columns between tabs"),
        ("", "found no video,"),
        (f"a_1\t{TIMES}\tone\nb_1\tone\nc_1\t{TIMES}\tone\ttwo\n", "number of columns: line 2 has 2, line 3 has 7,"),
        (f"a_1\t{TIMES}\tone\n\n \t{TIMES}\ttwo\n", "no clip id at line 3,"),
        (f"a_1\t{TIMES}\tone\nb_1\t{TIMES}\t \n", "empty captions at line 2,"),
    ],
)
def test_lsmdc_refuses(lsmdc, content, said) -> None:
    (lsmdc / TRAIN).unlink() if content is None else put(lsmdc / TRAIN, content)
    assert said in refusal(f"lsmdc:{lsmdc}")


def test_a_file_that_is_no_utf8_or_no_file(lsmdc) -> None:
    (lsmdc / TRAIN).write_bytes(b"caf\xe9\n")
    assert "found the byte 0xe9 at 3, which is not UTF-8, expected 6 columns" in refusal(f"lsmdc:{lsmdc}")
    (lsmdc / TRAIN).unlink()
    (lsmdc / TRAIN).symlink_to("/proc/self/mem")  # nothing lies at its beginning, for root neither
    assert "cannot be read (Input/output error)" in refusal(f"lsmdc:{lsmdc}")
    (lsmdc / TRAIN).unlink()
    (lsmdc / TRAIN).mkdir()
    assert "found a folder or device" in refusal(f"lsmdc:{lsmdc}")


# Requests


def test_a_rendered_world_is_two_tables(tmp_path) -> None:
    put(tmp_path / "train.csv", "video,caption,group\ntrain/0.mp4,one,g\n")
    data = open_data(f"synthetic:{tmp_path}", "train")
    assert (data.name, data.paths, data.groups) == ("synthetic train", (tmp_path / "train/0.mp4",), ("g",))
    (tmp_path / "other").mkdir()
    assert open_data(f"synthetic:{tmp_path}", "train", tmp_path / "other").paths == (tmp_path / "other/train/0.mp4",)
    said = refusal(f"synthetic:{tmp_path}", "test")
    assert "test.csv: found no such file" in said and "tempme-train --data synthetic" in said


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("name", ["pairs.csv", "PAIRS.CSV", "pairs.parquet", "odd:name.csv"])
def test_a_table_is_read_whole_in_both_splits(tmp_path, name, split) -> None:
    frame = pl.DataFrame({"video": ["a.mp4"], "caption": ["one"]})
    frame.write_parquet(tmp_path / name) if name.endswith("parquet") else frame.write_csv(tmp_path / name)
    for spec in (tmp_path / name, str(tmp_path / name)):
        data = open_data(spec, split)
        assert (data.name, data.paths, data.captions) == (name, (tmp_path / "a.mp4",), ("one",))
    other = tmp_path / "other"
    other.mkdir()
    assert open_data(tmp_path / name, split, other).paths == (other / "a.mp4",)


def test_a_tilde_is_the_home_folder(msrvtt, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(msrvtt.parent))
    put(msrvtt / "pairs.csv", "video,caption\na.mp4,one\n")
    assert open_data(f"msrvtt:~/{msrvtt.name}", "train") == open_data(f"msrvtt:{msrvtt}", "train")
    assert open_data(f"~/{msrvtt.name}/pairs.csv", "train") == open_data(msrvtt / "pairs.csv", "train")


@pytest.mark.parametrize("spec", ["webvid:data", "data", "", ":x", "pairs.tsv", "webvid:pairs.csv", "msrvtt"])
def test_an_unknown_request_lists_the_known(spec) -> None:
    said = refusal(spec)
    assert said.startswith(f"found the data {spec!r}, expected ")
    for known in ("msrvtt:DIR", "activitynet:DIR", "didemo:DIR", "lsmdc:DIR", "synthetic:DIR", ".csv", ".parquet"):
        assert known in said


def test_folders_and_splits_are_checked(msrvtt) -> None:
    for kind in ("msrvtt", "synthetic"):
        assert f"{kind}:nowhere: found no folder 'nowhere', expected {kind}:DIR" in refusal(f"{kind}:nowhere")
        assert f"{kind}:: found no folder, expected {kind}:DIR" in refusal(f"{kind}:")
    assert "python examples/demo.py" in refusal("synthetic:nowhere")  # who has no world is told how to get one
    assert "found the split 'val', expected train or test" in refusal(f"msrvtt:{msrvtt}", "val")
    assert "nowhere: found no such folder" in refusal(f"msrvtt:{msrvtt}", videos=Path("nowhere"))
