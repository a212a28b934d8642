"""The trained model that lies beside the demonstration, and the example with outliers."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tempme_export.artifacts.bundle import open_bundle
from tempme_export.data.annotations import open_data
from tempme_export.data.frames import FrameFiles
from tempme_export.data.synthetic import write_world
from tempme_export.encoder.checkpoint import load_checkpoint
from tempme_export.encoder.profile import load_profile
from tempme_export.evaluation.encoders import open_encoder
from tempme_export.evaluation.evaluate import evaluate
from tempme_export.quantization.calibration import CLIPS

EXAMPLES = Path(__file__).parents[2] / "examples"
MINI = EXAMPLES / "mini.pth"


@pytest.fixture(scope="module")
def unseen(tmp_path_factory):
    """50 clips that the model was not trained on: those of a held-out split are drawn from other seeds."""
    world = tmp_path_factory.mktemp("worlds") / "world"
    write_world(world, train_clips=1, test_clips=50, workers=1)
    return open_data(f"synthetic:{world}", "test")


def test_is_small_and_holds_its_profile():
    assert MINI.stat().st_size < 15e6
    checkpoint = load_checkpoint(MINI)
    assert checkpoint.profile == load_profile("mini-8f")
    assert sum(tensor.numel() for tensor in checkpoint.tensors.values()) < 4e6


def test_finds_clips_it_never_saw(unseen):
    encoder = open_encoder(MINI)
    source = FrameFiles(unseen.clips, encoder.frames, encoder.preprocess)
    evaluation = evaluate(encoder, unseen, source)
    assert evaluation.text_to_video.r1 >= 90
    assert evaluation.video_to_text.r1 >= 90


def test_the_order_of_frames_is_what_it_reads(unseen):
    """Played backwards, a clip that turns a corner shows another motion, in the same pictures."""
    encoder = open_encoder(MINI)
    straight = ("left, then right", "right, then left", "up, then down", "down, then up")
    turning = [i for i, caption in enumerate(unseen.captions) if not caption.endswith(straight)][:8]
    source = FrameFiles(unseen.clips, encoder.frames, encoder.preprocess)
    frames = np.stack([clip for _, clip in source.stream(turning)])
    forth, back = (encoder.encode_frames(f) for f in (frames, np.ascontiguousarray(frames[:, ::-1])))
    texts = encoder.encode_text([unseen.captions[i] for i in turning])
    assert ((texts * forth).sum(-1) > (texts * back).sum(-1) + 0.05).all()


def test_outliers_are_exported_and_judged(tmp_path):
    """The example with the small backbone, as its docstring runs it."""
    script = EXAMPLES / "outliers.py"
    done = subprocess.run(
        [sys.executable, script, "mini-8f", "--batch-range", "1:2:4"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    manifest = open_bundle(tmp_path / "demo" / "outliers.tempme").manifest
    assert manifest["precision"] == "int8" and manifest["quantization"]["calibration"]["clips"] == CLIPS
    checks = {check["name"]: check for report in manifest["parity"] for check in report["checks"]}
    for tower in ("video", "text"):
        assert checks[f"{tower}: change by what else is in the batch"]["value"] == 0
    assert checks["text, batch 8: centred cosine"]["value"] > 0.99
