"""An earlier version's bundle is read, and computes what it computed then; one of another format is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import tempme_export
from tempme_export.artifacts import bundle as bundles
from tempme_export.artifacts.bundle import FORMAT, MANIFEST, open_bundle
from tempme_export.cli.export import main
from tempme_export.errors import BundleError, InputError
from tempme_export.runtime.ort import OrtRunner
from tempme_export.serving.repository import write_repository

EARLIER = Path(__file__).parent / "earlier" / "bundle"


@pytest.fixture(scope="module")
def limit(rounding):
    """How far apart two roundings of an embedding may lie: its towers have one block each, in float16."""
    return rounding(torch.float16, 1).difference


@pytest.fixture(scope="module")
def expected():
    """What the version that wrote it made of two videos and three texts."""
    with np.load(EARLIER.with_name("expected.npz")) as stored:
        return {name: stored[name] for name in stored.files}


def test_it_lacks_what_came_later():
    manifest = json.loads((EARLIER / MANIFEST).read_text())
    assert manifest["format"] == FORMAT
    assert "conventions" not in manifest and "remarks" not in manifest["checkpoint"]
    assert {path.name for path in EARLIER.iterdir()} == {MANIFEST, "selftest.npz", "text.onnx", "video.onnx"}


def test_its_videos_are_as_they_were(expected, limit):
    with tempme_export.load(EARLIER) as model:
        found = model.encode_video(list(expected["videos"]))
    assert (np.linalg.norm(found - expected["video_embedding"], axis=-1) <= limit).all()
    apart = np.linalg.norm(expected["video_embedding"][0] - expected["video_embedding"][1])
    assert apart > 50 * limit, "the limit tells two videos apart"


def test_its_texts_are_as_they_were(expected, limit):
    with OrtRunner(EARLIER / "text.onnx", "cpu") as runner:
        found = runner.infer({"token_ids": expected["token_ids"]})["text_embedding"]
    assert (np.linalg.norm(found - expected["text_embedding"], axis=-1) <= limit).all()
    with tempme_export.load(EARLIER) as model, pytest.raises(InputError, match=r"Run text\.onnx on token ids instead"):
        model.encode_text(["it names no tokenizer"])


def test_it_is_verified():
    reports = tempme_export.verify(EARLIER)
    assert {report.artifact: report.status for report in reports} == {"video.onnx": "passed", "text.onnx": "passed"}


def test_it_is_served(tmp_path):
    written = write_repository(open_bundle(EARLIER), tmp_path / "models")
    assert sorted(path.parent.name for path in written if path.name == "config.pbtxt") == ["text", "video"]


def test_another_format_is_refused(tmp_path, run_command):
    """With its own hash right: nothing of it is damaged, it is only of another time."""
    folder = shutil.copytree(EARLIER, tmp_path / "later")
    manifest = json.loads((folder / MANIFEST).read_text()) | {"format": FORMAT + 1}
    manifest["sha256"] = bundles._self_sha256(manifest)
    (folder / MANIFEST).write_bytes(bundles._dump(manifest))
    with pytest.raises(BundleError, match=rf"format {FORMAT + 1}, this version reads {FORMAT}\. Export again"):
        tempme_export.load(folder)
    code, out, err = run_command(main, "verify", folder)
    assert (code, out) == (3, "") and "Export again" in err
