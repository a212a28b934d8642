"""Gates and rows on a model of four small blocks, also with backends that misbehave."""

import dataclasses

import numpy as np
import pytest

from tempme_export.bench.cases import BACKENDS, Backend, check_device, moving_clips, open_case
from tempme_export.bench.run import Request, chosen_backends, farthest, run
from tempme_export.bench.timing import Protocol
from tempme_export.errors import BackendError, UsageError
from tempme_export.reference import ReferenceVideo
from tempme_export.runtime.pytorch import TorchRunner


@pytest.fixture
def case(tiny):
    checkpoint, profile = tiny
    return open_case(str(checkpoint), str(profile), None)


def request(**changes):
    protocol = Protocol(seconds=0.05, samples=5, resamples=20)
    plain = Request(
        backends=("torch",), batches=(1,), device="cpu", protocol=protocol, command="tempme-bench"
    )
    return dataclasses.replace(plain, **changes)


def quiet(_):
    pass


class Shifted(TorchRunner):
    """Computes something else."""

    def infer(self, inputs):
        return {"video_embedding": super().infer(inputs)["video_embedding"] + np.float32(0.01)}


def load_shifted(case, artifact, device):
    return Shifted(ReferenceVideo(case.recipe), "shifted", device)


def load_absent(case, artifact, device):
    raise BackendError("the runtime is not installed.")


def with_backend(monkeypatch, name, backend):
    monkeypatch.setattr("tempme_export.bench.run.BACKENDS", {"original": BACKENDS["original"], name: backend})


def test_rows_hold_speed_accuracy_and_counts(case):
    done = run(case, request(batches=(1, 2)), quiet)
    assert [(row.backend, row.batch) for row in done.rows] == [
        ("original", 1),
        ("torch", 1),
        ("original", 2),
        ("torch", 2),
    ]
    for row in done.rows:
        assert row.videos_per_s == pytest.approx(row.batch / row.p50_ms * 1e3)
        assert row.frames_per_s == pytest.approx(4 * row.videos_per_s)
        assert row.final_tokens == case.recipe.plan.final_tokens
        assert row.parity and row.one_minus_cosine <= 1e-6
        assert row.load_s > 0 and row.build_s is None and row.artifact_sha256 is None
        assert row.ratio_low <= row.ratio <= row.ratio_high
    assert done.rows[0].ratio == done.rows[0].ratio_low == 1
    assert not done.missing and not done.failed


def test_another_computation_is_not_timed(case, monkeypatch):
    with_backend(monkeypatch, "shifted", Backend(load_shifted))
    done = run(case, request(backends=None), quiet)
    assert [row.backend for row in done.rows] == ["original"]
    assert done.comparisons[1].order == ("original",)
    assert "1 - cosine" in done.failed["shifted"]


def test_a_missing_backend_is_reported_once_and_no_failure(case, monkeypatch):
    with_backend(monkeypatch, "absent", Backend(load_absent))
    done = run(case, request(backends=None, batches=(1, 2)), quiet)
    assert done.missing == {"absent": "the runtime is not installed."}
    assert [row.backend for row in done.rows] == ["original", "original"]
    done.check(strict=False)


def test_a_missing_backend_that_was_named_is_an_error(case, monkeypatch):
    with_backend(monkeypatch, "absent", Backend(load_absent))
    with pytest.raises(BackendError, match="not installed") as caught:
        run(case, request(backends=("absent",)), quiet)
    assert caught.value.exit_code == 4


def test_a_missing_package_is_found_before_anything_is_built(case, monkeypatch):
    def build(case, folder):
        pytest.fail("built for nothing")

    with_backend(monkeypatch, "ort", Backend(load_absent, build, package=("no_such_runtime", "cpu")))
    with pytest.raises(
        BackendError, match=r"no_such_runtime is not installed. Run: pip install 'tempme-export\[cpu\]'"
    ):
        run(case, request(backends=("ort",)), quiet)


def test_not_a_number_is_not_parity():
    original = np.ones((2, 3), np.float32)
    assert farthest(original, original) == pytest.approx(0)
    assert farthest(-original, original) == pytest.approx(2)
    assert not farthest(original * np.nan, original) <= 1e-6


def test_batch_outside_the_profile(case):
    with pytest.raises(UsageError, match=r"--batch 8: profile tiny is made for 1 to 4 videos"):
        run(case, request(batches=(1, 8)), quiet)


def test_unknown_backend():
    with pytest.raises(UsageError, match=r"unknown backends: tensorflow\. Choose of: original, torch, ort"):
        chosen_backends(("torch", "tensorflow"))
    assert chosen_backends(None) == list(BACKENDS)
    assert chosen_backends(("ort", "original")) == ["original", "ort"]


@pytest.mark.parametrize("device", ["tpu", "cpu:1", "cuda:x", "cuda:99", ""])
def test_devices_that_are_not_there(device):
    with pytest.raises(BackendError) as caught:
        check_device(device)
    assert caught.value.exit_code == 4


def test_clips_are_seeded_and_move_and_repeat_nothing():
    clips = moving_clips(batch=2, frames=4, size=64, seed=3)
    assert clips.shape == (2, 4, 3, 64, 64) and clips.dtype == np.float32
    assert np.array_equal(clips, moving_clips(2, 4, 64, 3))
    assert not np.array_equal(clips, moving_clips(2, 4, 64, 4))
    patches = clips.reshape(2, 4, 3, 4, 16, 4, 16).transpose(0, 1, 3, 5, 2, 4, 6).reshape(128, -1)
    assert len(np.unique(patches, axis=0)) == 128
    neighbours = np.corrcoef(clips[0, 0].ravel(), clips[0, 1].ravel())[0, 1]
    assert neighbours > np.corrcoef(clips[0, 0].ravel(), clips[1, 0].ravel())[0, 1] + 0.3
    assert 0.5 < clips.std() < 2
