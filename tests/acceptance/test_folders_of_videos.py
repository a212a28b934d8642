"""Folders of videos whose suffixes nobody foresaw: the decoder says what is a video."""

import json

import pytest


@pytest.fixture
def clips(world):
    return sorted((world / "test").iterdir())


def test_calibration_asks_the_decoder(tmp_path, run, mini, clips):
    folder = tmp_path / "videos"
    folder.mkdir()
    for number, clip in enumerate(clips[:3]):
        (folder / f"{number}{('.divx', '.f4v', '')[number]}").write_bytes(clip.read_bytes())
    (folder / "notes.txt").write_text("nothing to see\n")
    done = run("tempme-export", mini, "--precision", "int8", "--calibrate", folder, "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["calibration"]
    assert found["clips"] == 3
    assert [name.rpartition("/")[2] for name in found["skipped"]] == ["notes.txt"]
    assert "notes.txt" in done.stderr
