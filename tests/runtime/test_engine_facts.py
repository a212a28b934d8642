"""What the manifest says about an engine survives JSON, and nothing else is taken for it."""

import dataclasses
import json

import pytest

from tempme_export.errors import BundleError
from tempme_export.runtime.engine_facts import EngineFacts

FACTS = EngineFacts(
    tensorrt="11.4.0.106",
    gpu="NVIDIA H100 80GB HBM3",
    capability="sm_90",
    driver="580.65.06",
    precision="fp16",
    batch=(1, 8, 64),
    inputs={"frames": ("float32", (None, 12, 3, 224, 224)), "frame_mask": ("bool", (None, 12))},
    outputs={"video_embedding": ("float32", (None, 512))},
    target="sm_90",
    plugins={"MatchKeys": 4, "MergeNorm": 1},
    engine_plugins=5,
    layers={"fp32": 12, "fp16": 84, "none": 4},
    products={"fp16": 49},
    attentions=12,
    seconds=61.5,
)


def test_round_trip_through_json():
    assert EngineFacts.from_dict(json.loads(json.dumps(FACTS.to_dict()))) == FACTS


def test_shares_add_up_and_the_largest_comes_first():
    assert FACTS.shares == {"fp16": 0.84, "fp32": 0.12, "none": 0.04}
    assert list(FACTS.shares) == ["fp16", "fp32", "none"]
    assert dataclasses.replace(FACTS, layers={}).shares == {}


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.pop("gpu"),
        lambda d: d.update(colour="red"),
        lambda d: d.update(batch=[1, 8]),
        lambda d: d.update(batch=None),
        lambda d: d.update(inputs=["frames"]),
        lambda d: d.pop("outputs"),
    ],
)
def test_other_documents_are_refused(change):
    document = FACTS.to_dict()
    change(document)
    with pytest.raises(BundleError, match="tempme-export rebuild"):
        EngineFacts.from_dict(document)


def test_no_document():
    with pytest.raises(BundleError, match="does not describe an engine"):
        EngineFacts.from_dict(None)
