"""Bundles whose manifest is written by hand, of stand-ins or of small graphs that were exported for real."""

import dataclasses

import numpy as np
import pytest
import torch

from tempme_export.artifacts.bundle import SELFTEST, open_bundle, write_manifest
from tempme_export.artifacts.registry import TEXT_ONNX, VIDEO_ONNX
from tempme_export.encoder.checkpoint import from_state_dict
from tempme_export.encoder.profile import FROM_CHECKPOINT, BatchRange, Profile
from tempme_export.encoder.recipe import prepare
from tempme_export.encoder.schedule import MergePolicy
from tempme_export.exporters.onnx import export_text, export_video


@pytest.fixture(scope="session")
def recipe(checkpoint_maker):
    """One block each, four frames of 48 pixels, joined two by two; text of 8 tokens."""
    settings = checkpoint_maker.settings(
        "tiny", image=48, layers=1, text_layers=1, merge_layer="0", merge_frame_num="2", max_frames=4
    )
    state = checkpoint_maker.make_state_dict(settings, seed=7)
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in state.items()}
    profile = Profile("small", FROM_CHECKPOINT, 4, 8, MergePolicy(1, (0,), (2,), 30, 10), BatchRange(1, 3, 6))
    return prepare(from_state_dict(tensors, source="small"), profile)


@pytest.fixture(scope="session")
def graphs(recipe, tmp_path_factory):
    """Folder with video.onnx (frame mask, merge outputs) and text.onnx. Do not write there."""
    folder = tmp_path_factory.mktemp("graphs")
    export_video(recipe, folder / VIDEO_ONNX.file, frame_mask=True, expose_merges=True)
    export_text(recipe, folder / TEXT_ONNX.file)
    return folder


@pytest.fixture
def make_bundle(recipe, tmp_path):
    """Write a bundle, with a frame mask and merge outputs: files by name, other manifest entries, another batch range.

    The graphs are stand-ins unless a folder of real ones is given.
    """

    def make(name="small.tempme", graphs=None, files=None, batch=(1, 3, 6), **changes):
        folder = tmp_path / name
        folder.mkdir()
        contents = {VIDEO_ONNX.file: b"video", TEXT_ONNX.file: b"text", SELFTEST: b"inputs"} | (files or {})
        if graphs is not None:
            contents |= {file: (graphs / file).read_bytes() for file in (VIDEO_ONNX.file, TEXT_ONNX.file)}
        for file, content in contents.items():
            (folder / file).write_bytes(content)
        backbone, profile = recipe.backbone, dataclasses.replace(recipe.profile, batch=BatchRange(*batch))
        manifest = {
            "tool_version": "0.1.0",
            "checkpoint": {"path": "small.pth", "sha256": "0" * 64},
            "profile": profile.to_dict(),
            "backbone": dataclasses.asdict(backbone),
            "schedule": dataclasses.asdict(recipe.schedule),
            "precision": "fp32",
            "frame_mask": True,
            "trace": True,
            "opset": 18,
            "logit_scale": 4.6,
            "image": {"size": backbone.image_size, "mean": list(backbone.mean), "std": list(backbone.std)},
            "versions": {},
            "tolerances": {},
            "parity": [
                {"artifact": VIDEO_ONNX.file, "status": "passed"},
                {"artifact": TEXT_ONNX.file, "status": "passed"},
            ],
            "gate": None,
        }
        write_manifest(folder, manifest | changes)
        return open_bundle(folder)

    return make
