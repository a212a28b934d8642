"""Annotation files as they are published: odd names, lists under other names, lists that nobody reads."""

import json

import pytest


@pytest.fixture
def put(tmp_path, scenes, write_film):
    """Write a file below the folder: text, JSON, or, given a number, the video of that scene."""

    def put(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, int):
            write_film(path, scenes[content][0])
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content))

    return put


def described(*names):
    return [{"video": name, "description": f"clip {i} of {name}"} for i, name in enumerate(names)]


def captions(found):
    return found["retrieval"]["text-to-video"]["queries"], found["retrieval"]["text-to-video"]["candidates"]


def test_didemo_names_that_differ_by_suffix_only(put, evaluate, tmp_path):
    """Once each in the list: the annotations' other name is of nobody."""
    put("test_data.json", described("a.mov", "a.avi", "b.mp4", "b.m4v", "c.mov", "a.mov"))
    put("test_list.txt", "a.mov\nb.m4v\nc.mov\n")
    for scene, name in enumerate(("a.mov", "b.m4v", "c.mov")):
        put(f"videos/{name}", scene)
    found = evaluate(f"didemo:{tmp_path}")
    assert found["code"] == 0, found["said"]
    assert captions(found) == (3, 3) and found["skipped"] == {}


def test_didemo_lists_both_of_two_names(put, evaluate, tmp_path):
    put("test_data.json", described("a.mov", "a.avi", "b.mp4"))
    put("test_list.txt", "b.mp4\na.avi\na.mov\n")
    for scene, name in enumerate(("a.mov", "a.avi", "b.mp4")):
        put(f"videos/{name}", scene)
    found = evaluate(f"didemo:{tmp_path}")
    assert found["code"] == 0, found["said"]
    assert captions(found) == (3, 3) and found["skipped"] == {}


def test_didemo_names_without_a_common_suffix(put, evaluate, tmp_path):
    """They end in ".", in ".3g2" or in nothing known, in any folder, or were converted."""
    names = ("a@N_1.", "b.3g2", "c.odd", "d", "e.", "f.3g2")
    put("test_data.json", described(*names))
    for scene, name in enumerate(("a@N_1.", "deep/b.3g2", "c.odd", "deep/d", "e.mp4", "f.3g2.mp4")):
        put(f"videos/{name}", scene)
    found = evaluate(f"didemo:{tmp_path}")
    assert found["skipped"] == {} and captions(found) == (6, 6)


def test_the_exact_name_comes_first(put, evaluate, tmp_path):
    """Another file of that name with another suffix is no reason to ask."""
    put("test_data.json", described("a.mov", "b.mp4"))
    for scene, name in enumerate(("x/a.mov", "y/a.avi", "b.mp4", "z/b.webm")):
        put(f"videos/{name}", scene)
    found = evaluate(f"didemo:{tmp_path}")
    assert found["code"] == 0, found["said"]
    assert captions(found) == (2, 2)


@pytest.mark.parametrize("name", ["val_ids.json", "val_1_ids.json"])
def test_activitynet_lists(put, evaluate, tmp_path, name):
    put("val_1.json", {f"v_{one}": {"sentences": ["One.", f"Two {one}."]} for one in "abc"})
    put(name, ["v_c", "v_a"])
    put("ids_of_mine.json", ["v_b"])
    for scene, one in enumerate("abc"):
        put(f"videos/v_{one}.avi", scene)
    found = evaluate(f"activitynet:{tmp_path}")
    assert captions(found) == (2, 2)
    assert "ids_of_mine.json not read" in found["said"] and f"{name} read" in found["said"]


def test_of_two_lists_the_one_that_is_not_read_is_said(put, evaluate, tmp_path):
    put("val_1.json", {f"v_{one}": {"sentences": [f"Two {one}."]} for one in "abc"})
    put("val_1_ids.json", ["v_c", "v_a"])
    put("val_ids.json", ["v_b"])
    put("train.json", {})
    for scene, one in enumerate("abc"):
        put(f"videos/v_{one}.avi", scene)
    said = evaluate(f"activitynet:{tmp_path}")["said"]
    assert "val_ids.json not read" in said and "val_1_ids.json read" in said and "train.json" not in said


def test_msrvtt_trains_on_7k_where_there_is_no_9k(put, evaluate, tmp_path):
    videos, sentences = [f"video{i}" for i in range(4)], [("video3", "a dog"), ("video1", "a cat"), ("video3", "a dog")]
    put(
        "MSRVTT_data.json",
        {
            "videos": [{"video_id": one} for one in videos],
            "sentences": [{"video_id": one, "caption": caption} for one, caption in sentences],
        },
    )
    put("MSRVTT_train.7k.csv", "video_id\nvideo3\nvideo1\n")
    for scene, one in enumerate(("video1", "video3")):
        put(f"videos/{one}.avi", scene)
    found = evaluate(f"msrvtt:{tmp_path}", "--split", "train")
    assert found["data"] == "msrvtt 7k train" and captions(found) == (3, 2)
    put("MSRVTT_train.9k.csv", "video_id\nvideo1\n")
    found = evaluate(f"msrvtt:{tmp_path}", "--split", "train")
    assert found["data"] == "msrvtt 9k train" and captions(found) == (1, 1)
    assert "MSRVTT_train.7k.csv not read" in found["said"]
