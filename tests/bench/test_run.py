"""Gates and rows on a model of four small blocks, also with backends that misbehave."""

import dataclasses

import numpy as np
import pytest
import torch

from tempme_export.bench.cases import BACKENDS, Backend, benchmark_clips, open_case
from tempme_export.bench.run import Request, batches_of, chosen_backends, run
from tempme_export.bench.timing import Protocol
from tempme_export.errors import BackendError, ParityError, UsageError
from tempme_export.reference import ReferenceVideo, Trace
from tempme_export.runtime.pytorch import TorchRunner
from tempme_export.selftest import SAFE_GAP


@pytest.fixture
def case(tiny):
    checkpoint, profile = tiny
    return open_case(str(checkpoint), str(profile), None)


def request(**changes):
    protocol = Protocol(seconds=0.05, samples=5, resamples=20)
    plain = Request(backends=("torch",), batches=(1,), device="cpu", protocol=protocol, command="tempme-bench")
    return dataclasses.replace(plain, **changes)


def quiet(_):
    pass


class Altered(TorchRunner):
    """Computes something else: every embedding times `factor`, plus `shift`."""

    factor, shift = np.float32(1), np.float32(0)

    def _infer(self, inputs):
        return {"video_embedding": super()._infer(inputs)["video_embedding"] * self.factor + self.shift}


def load_altered(name="altered", **changes):
    runner = type("Changed", (Altered,), changes)
    return lambda case, artifact, device: runner(ReferenceVideo(case.recipe), case.recipe, name, "video", device)


def absent(*_):
    raise BackendError("the runtime is not installed.")


def with_backend(monkeypatch, name, backend):
    monkeypatch.setattr("tempme_export.bench.run.BACKENDS", {"original": BACKENDS["original"], name: backend})


def test_rows_hold_speed_accuracy_and_counts(case):
    done = run(case, request(batches=(1, 2)), stage=quiet, progress=quiet)
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
    with_backend(monkeypatch, "altered", Backend(load_altered(shift=np.float32(0.01))))
    done = run(case, request(backends=None), stage=quiet, progress=quiet)
    assert [row.backend for row in done.rows] == ["original"]
    assert done.comparisons[1].order == ("original",)
    assert "batch 1: embedding: 1 - cosine is" in done.failed["altered"]


def test_an_original_that_gives_nan_leaves_nothing_to_time(case, monkeypatch):
    nan = Backend(load_altered("original", factor=np.float32("nan")))
    monkeypatch.setattr("tempme_export.bench.run.BACKENDS", {"original": nan, "torch": BACKENDS["torch"]})
    done = run(case, request(backends=None), stage=quiet, progress=quiet)
    assert not done.rows and not done.comparisons
    assert done.failed.keys() == {"original", "torch"}


def test_a_missing_backend_is_reported_once_and_no_failure(case, monkeypatch):
    with_backend(monkeypatch, "absent", Backend(absent))
    done = run(case, request(backends=None, batches=(1, 2)), stage=quiet, progress=quiet)
    assert done.missing == {"absent": "the runtime is not installed."}
    assert [row.backend for row in done.rows] == ["original", "original"]
    done.check(strict=False)


def test_a_missing_backend_that_was_named_is_an_error(case, monkeypatch):
    with_backend(monkeypatch, "absent", Backend(absent))
    with pytest.raises(BackendError, match="not installed") as caught:
        run(case, request(backends=("absent",)), stage=quiet, progress=quiet)
    assert caught.value.exit_code == 4


def test_a_missing_package_is_found_before_anything_is_built(case, monkeypatch):
    def build(case, folder):
        pytest.fail("built for nothing")

    with_backend(monkeypatch, "ort", Backend(absent, build, require=absent))
    with pytest.raises(BackendError, match="not installed"):
        run(case, request(backends=("ort",)), stage=quiet, progress=quiet)


def test_every_clip_is_judged_whatever_the_batch():
    clips = np.arange(4, dtype=np.float32)
    assert [batch.tolist() for batch in batches_of(clips, 1)] == [[0], [1], [2], [3]]
    assert [batch.tolist() for batch in batches_of(clips, 3)] == [[0, 1, 2], [3, 0, 1]]
    assert [batch.tolist() for batch in batches_of(clips, 6)] == [[0, 1, 2, 3, 0, 1]]


def test_batch_outside_the_profile(case):
    with pytest.raises(UsageError, match=r"--batch 8: profile tiny is made for 1 to 4 videos"):
        run(case, request(batches=(1, 8)), stage=quiet, progress=quiet)


def test_unknown_backend():
    with pytest.raises(UsageError, match=r"unknown backends: tensorflow\. Choose of: original, torch, ort"):
        chosen_backends(("torch", "tensorflow"))
    assert chosen_backends(None) == list(BACKENDS)
    assert chosen_backends(("ort", "original")) == ["original", "ort"]


def test_clips_are_seeded_and_different_and_hang_on_no_near_tie(case):
    clips = benchmark_clips(case.recipe, seed=3)
    assert clips.shape == (4, 4, 3, 64, 64) and clips.dtype == np.float32
    assert np.array_equal(clips, benchmark_clips(case.recipe, seed=3))
    assert not np.array_equal(clips, benchmark_clips(case.recipe, seed=4))
    patches = clips.reshape(4, 4, 3, 4, 16, 4, 16).transpose(0, 1, 3, 5, 2, 4, 6).reshape(256, -1)
    assert len(np.unique(patches, axis=0)) == 256
    trace = Trace()
    ReferenceVideo(case.recipe).frame_features(torch.from_numpy(clips), trace)
    assert min(float(step.gap.min()) for step in trace.steps) >= SAFE_GAP


def test_features_without_differences_offer_no_clips(case, monkeypatch):
    monkeypatch.setattr("tempme_export.bench.cases.SAFE_GAP", 1.0)
    with pytest.raises(ParityError, match="only 0 of 64 moving clips"):
        benchmark_clips(case.recipe, seed=0)
