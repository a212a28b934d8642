"""A bundle gives the same embeddings and the same retrieval on every backend of a processor."""

import json

import numpy as np
import pytest

import tempme_export
from tempme_export.errors import BackendError


def test_openvino_embeds_as_onnx_runtime_does(mini_bundle, mini_rounding, safe_clips):
    videos, texts = list(safe_clips), ["a red square moves left, then right", "a blue cross"]
    with tempme_export.load(mini_bundle) as usual, tempme_export.load(mini_bundle, backend="openvino") as other:
        assert (usual.backend, other.backend) == ("ort", "openvino")
        found, limit = other.encode_video(videos), mini_rounding["video"].difference
        np.testing.assert_allclose(found, usual.encode_video(videos), rtol=0, atol=limit)
        # Texts run on ONNX Runtime beside either: one file, one shape, one order of additions.
        np.testing.assert_array_equal(usual.encode_text(texts), other.encode_text(texts))


def test_openvino_retrieves_as_onnx_runtime_does(run, mini_bundle, world):
    def metrics(backend):
        done = run("tempme-eval", mini_bundle, "--data", world / "test.csv", "--backend", backend, "--json")
        assert done.returncode == 0, done.stderr
        document = json.loads(done.stdout)
        assert document["backend"] == backend
        return document["retrieval"]

    assert metrics("openvino") == metrics("ort")


def test_a_near_miss_is_named(mini_bundle):
    with pytest.raises(BackendError, match="Did you mean openvino"):
        tempme_export.load(mini_bundle, backend="openvin")
