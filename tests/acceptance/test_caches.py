"""What `--cache` and `--features` keep belongs to each file, its range, and all that made it."""

import json
import os
from pathlib import Path

import av
import pytest


@pytest.fixture
def films(tmp_path, scenes, write_film):
    """A folder with a table of the first scenes, as many as asked: films(n) -> its path."""
    for i, (pictures, _) in enumerate(scenes):
        write_film(tmp_path / f"{i}.avi", pictures)

    def table(n):
        rows = [f'{i}.avi,"{caption}"' for i, (_, caption) in enumerate(scenes[:n])]
        (tmp_path / "data.csv").write_text("\n".join(["video,caption", *rows, ""]))
        return tmp_path / "data.csv"

    return table


@pytest.fixture
def evaluate_with_another_decoder(run, mini_bundle, tmp_path):
    """As `evaluate`, in a process that finds another release of PyAV installed: the same but for its number."""
    installed, other = Path(av.__file__).parent, tmp_path / "other-release"
    (other / "av").mkdir(parents=True)
    for path in installed.iterdir():
        if path.name not in ("about.py", "__pycache__"):
            (other / "av" / path.name).symlink_to(path)
    (other / "av.libs").symlink_to(installed.parent / "av.libs")  # the wheel's own, found from beside it
    (other / "av" / "about.py").write_text('__version__ = "0.0.1"\n')

    def evaluate(data, *options):
        words = [mini_bundle, "--data", data, "--json", "--workers", "0", *options]
        done = run("tempme-eval", *words, env={"PYTHONPATH": other, "PYTHONDONTWRITEBYTECODE": "1"})
        return {**json.loads(done.stdout or "{}"), "said": done.stderr, "code": done.returncode}

    return evaluate


def exchange(first, second):
    """Each file has the other's content, and its own size and time of change."""
    contents = {path: other.read_bytes() for path, other in ((first, second), (second, first))}
    for path, content in contents.items():
        stat = path.stat()
        assert stat.st_size == len(content)
        path.write_bytes(content)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize("option", ["--cache", "--features"])
def test_one_more_video_is_one_more_video(films, evaluate, scenes, tmp_path, option):
    """The others' files are gone by then, so that nobody can read them again."""
    n, kept = len(scenes), tmp_path / "kept"
    expected = evaluate(films(n))["retrieval"]
    assert evaluate(films(n - 1), option, kept)["code"] == 0
    for i in range(n - 1):
        (tmp_path / f"{i}.avi").unlink()
    found = evaluate(films(n), option, kept)
    assert (found["code"], found.get("skipped")) == (0, {}), found["said"]
    assert found["retrieval"] == expected


def test_another_decoder_does_not_use_features(films, evaluate, evaluate_with_another_decoder, scenes, tmp_path):
    first = evaluate(films(len(scenes)), "--features", tmp_path / "kept")["retrieval"]
    exchange(tmp_path / "0.avi", tmp_path / "1.avi")
    assert evaluate(films(len(scenes)), "--features", tmp_path / "kept")["retrieval"] == first, "kept, so not read"
    found = evaluate_with_another_decoder(films(len(scenes)), "--features", tmp_path / "kept")
    assert found["code"] == 0, found["said"]
    again = found["retrieval"]
    assert again == evaluate(films(len(scenes)))["retrieval"] != first


def test_another_decoder_is_refused_frames(films, evaluate, evaluate_with_another_decoder, tmp_path):
    assert evaluate(films(2), "--cache", tmp_path / "kept")["code"] == 0
    found = evaluate_with_another_decoder(films(2), "--cache", tmp_path / "kept")
    assert found["code"] == 3 and "decoder" in found["said"] and "0.0.1" in found["said"], found["said"]
    assert f"Delete {tmp_path / 'kept'}" in found["said"]


@pytest.mark.parametrize("option", ["--cache", "--features"])
def test_a_replaced_file_is_read_again(films, evaluate, scenes, tmp_path, option):
    n = len(scenes)
    evaluate(films(n), option, tmp_path / "kept")
    (tmp_path / "2.avi").write_bytes((tmp_path / "3.avi").read_bytes())
    os.utime(tmp_path / "2.avi", ns=(5, 5))
    found = evaluate(films(n), option, tmp_path / "kept")
    assert found["code"] == 0, found["said"]
    assert found["retrieval"] == evaluate(films(n))["retrieval"]


def test_frames_in_an_older_layout_are_refused(films, evaluate, tmp_path):
    """As version 0.1 left them: rows in the order of a list, of which the key holds a hash."""
    kept = tmp_path / "kept"
    kept.mkdir()
    key = '{"videos": "5f", "frames": 8, "size": 64, "rows": 2, "shape": [8, 64, 64, 3], "dtype": "|u1"}'
    for name, content in (
        ("lock", b""),
        ("key.json", key.encode()),
        ("rows.bin", bytes(196608)),
        ("done.bin", b"\1\1"),
    ):
        (kept / name).write_bytes(content)
    found = evaluate(films(2), "--cache", kept)
    assert found["code"] == 3 and f"Delete {kept}" in found["said"] and "layout" in found["said"], found["said"]
    assert (kept / "key.json").read_text() == key
