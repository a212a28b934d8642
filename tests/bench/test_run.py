"""Gates and rows on a model of four small blocks, also with backends that misbehave."""

import dataclasses

import numpy as np
import pytest
import torch

from tempme_export.bench.candidates import chosen_candidates, known_candidates, on_backends
from tempme_export.bench.cases import benchmark_clips, open_case
from tempme_export.bench.core.candidate import Candidate
from tempme_export.bench.core.protocol import Protocol
from tempme_export.bench.run import batches_of, run, slowed
from tempme_export.bench.run_settings import RunSettings, check_batches, sweep
from tempme_export.encoder.reference import MergeLog, ReferenceVideo
from tempme_export.errors import BackendError, ParityError, UsageError
from tempme_export.parity.selftest import SAFE_GAP
from tempme_export.runtime.pytorch import TorchRunner


@pytest.fixture
def case(tiny):
    checkpoint, profile = tiny
    return open_case(str(checkpoint), str(profile), None)


def request(**changes):
    protocol = Protocol(seconds=0.05, samples=5, budget=0.2, resamples=20)
    plain = RunSettings(batches=(1,), device="cpu", protocol=protocol, command="tempme-bench")
    return dataclasses.replace(plain, **changes)


def measure(case, folder, backends=("torch",), known=None, **changes):
    """The report of backends beside the original path, and what is missing."""
    candidates, missing = on_backends(case, backends, "cpu", folder, quiet, known)
    return run(candidates, request(**changes), stage=quiet, progress=quiet), missing


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


def together(*candidates):
    """The original path, unless one is so called, and other candidates, by name."""
    return {"original": known_candidates()["original"]} | {one.name: one for one in candidates}


def test_rows_hold_speed_accuracy_and_counts(case, tmp_path):
    done, missing = measure(case, tmp_path, batches=(1, 2))
    assert [(row.candidate, row.batch) for row in done.rows] == [
        ("original", 1),
        ("torch", 1),
        ("original", 2),
        ("torch", 2),
    ]
    for row in done.rows:
        assert row.videos_per_s == pytest.approx(row.batch / row.p50_ms * 1e3)
        assert row.frames_per_s == pytest.approx(4 * row.videos_per_s)
        assert (row.final_clips, row.final_tokens) == (1, case.recipe.schedule.final_tokens)
        assert row.method == "tempme" and row.backend == row.candidate
        assert row.parity and row.one_minus_cosine <= 1e-6 and 0 <= row.centred_loss <= 1e-3
        assert row.load_s > 0 and row.build_s is None and row.artifact_mb is None and row.artifact_sha256 is None
        assert row.ratio_low <= row.ratio <= row.ratio_high
        assert row.slowdown_percent == 0
        assert (row.resident_ms, row.device_ms, row.device_mb) == (None, None, None)
    assert done.rows[0].ratio == done.rows[0].ratio_low == 1
    assert not missing and not done.failed and not done.interrupted


def test_ratios_are_to_both_baselines(case, tmp_path):
    done, _ = measure(case, tmp_path, ("original-bf16", "torch"))
    original, autocast, fast = done.rows
    assert (autocast.candidate, autocast.precision, autocast.ratio_bf16) == ("original-bf16", "bf16", 1.0)
    rounds = {name: one.seconds for name, one in done.measured[0].comparison.timings.items()}
    n = min(len(rounds["torch"]), len(rounds["original-bf16"]))
    expected = np.median(np.array(rounds["original-bf16"][:n]) / np.array(rounds["torch"][:n]))
    assert fast.ratio_bf16 == pytest.approx(expected) and original.ratio_bf16 > 0
    assert measure(case, tmp_path)[0].rows[1].ratio_bf16 is None


def test_another_computation_is_not_timed(case, tmp_path):
    known = together(Candidate("altered", load_altered(shift=np.float32(0.01))))
    done, _ = measure(case, tmp_path, None, known)
    assert [row.candidate for row in done.rows] == ["original"]
    assert done.measured[0].comparison.order == ("original",)
    assert "batch 1: embedding: 1 - cosine is" in done.failed["altered"]


def test_an_original_that_gives_nan_leaves_nothing_to_time(case, tmp_path):
    known = together(
        Candidate("original", load_altered("original", factor=np.float32("nan"))), known_candidates()["torch"]
    )
    done, _ = measure(case, tmp_path, None, known)
    assert not done.rows and not done.measured
    assert done.failed.keys() == {"original", "torch"}


def test_without_its_base_nothing_is_compared(case, tmp_path):
    """The original path gives other embeddings from its second batch on: the others have nothing to stand beside."""
    calls = iter(range(100))

    class Fickle(TorchRunner):
        def _infer(self, inputs):
            found = super()._infer(inputs)["video_embedding"]
            return {"video_embedding": found if next(calls) < 4 else found[:, ::-1].copy()}

    def load(case, artifact, device):
        return Fickle(ReferenceVideo(case.recipe), case.recipe, "original", "video", device)

    done, _ = measure(case, tmp_path, known=together(Candidate("original", load), known_candidates()["torch"]))
    assert not done.rows and "original" in done.failed and "torch" not in done.failed


def test_a_missing_backend_is_reported_and_no_failure(case, tmp_path):
    known = together(Candidate("absent", absent))
    done, missing = measure(case, tmp_path, None, known, batches=(1, 2))
    assert missing == {"absent": "the runtime is not installed."}
    assert [row.candidate for row in done.rows] == ["original", "original"]
    done.check(strict=False)


def test_a_missing_backend_that_was_named_is_an_error(case, tmp_path):
    known = together(Candidate("absent", absent))
    with pytest.raises(BackendError, match="not installed") as caught:
        measure(case, tmp_path, ("absent",), known)
    assert caught.value.exit_code == 4


def test_a_backend_of_another_device_is_missing(case, tmp_path):
    with pytest.raises(BackendError, match="it runs on cuda only, and this measurement on cpu"):
        measure(case, tmp_path, ("ort-cuda",))


def test_a_missing_package_is_found_before_anything_is_built(case, tmp_path):
    def build(case, folder):
        pytest.fail("built for nothing")

    known = together(Candidate("ort", absent, build, require=absent))
    with pytest.raises(BackendError, match="not installed"):
        measure(case, tmp_path, ("ort",), known)


class Greedy(Altered):
    """Runs out of memory above `fits` videos."""

    fits = 0

    def _infer(self, inputs):
        if len(inputs["frames"]) > self.fits:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")
        return super()._infer(inputs)


def load_greedy(fits):
    runner = type("OfSomeSize", (Greedy,), {"fits": fits})
    return lambda case, artifact, device: runner(ReferenceVideo(case.recipe), case.recipe, "greedy", "video", device)


@pytest.mark.parametrize(
    ("fits", "asked", "measured"), [(1, (4,), [1]), (2, (4,), [2]), (2, (1, 2, 4), [1, 2]), (1, (1, 3, 4), [1])]
)
def test_out_of_memory_falls_back_to_the_largest_half_that_fits(case, tmp_path, fits, asked, measured):
    known = together(Candidate("greedy", load_greedy(fits)))
    done, _ = measure(case, tmp_path, None, known, batches=asked)
    assert [row.batch for row in done.rows if row.candidate == "greedy"] == measured
    assert f"tiny: greedy runs out of memory at batch {min(b for b in asked if b > fits)}" in done.notes[0]


def test_out_of_memory_with_one_video_is_an_error(case, tmp_path):
    known = together(Candidate("greedy", load_greedy(0)))
    with pytest.raises(BackendError, match=r"greedy runs out of memory with 1 video\(s\) per call"):
        measure(case, tmp_path, None, known, batches=(2,))


def test_what_is_not_about_memory_stays_a_fault(case, tmp_path):
    class Broken(Altered):
        def _infer(self, inputs):
            raise RuntimeError("a broken kernel")

    def load(case, artifact, device):
        return Broken(ReferenceVideo(case.recipe), case.recipe, "broken", "video", device)

    known = together(Candidate("broken", load))
    with pytest.raises(RuntimeError, match="a broken kernel"):
        measure(case, tmp_path, None, known)


def test_an_interrupted_run_keeps_its_rows(case, tmp_path):
    calls = iter(range(10**6))

    class Stopped(Altered):
        def _infer(self, inputs):
            if len(inputs["frames"]) == 2 and next(calls) > 6:
                raise KeyboardInterrupt
            return super()._infer(inputs)

    def load(case, artifact, device):
        return Stopped(ReferenceVideo(case.recipe), case.recipe, "stopped", "video", device)

    known = together(Candidate("stopped", load))
    done, _ = measure(case, tmp_path, None, known, batches=(1, 2, 4))
    assert done.interrupted
    assert [(row.candidate, row.batch) for row in done.rows][:2] == [("original", 1), ("stopped", 1)]
    assert 4 not in [row.batch for row in done.rows]
    assert "interrupted, the rows that were finished are kept" in done.notes[-1]


def test_interrupted_before_the_first_row_passes(case, tmp_path):
    class Stopped(Altered):
        def _infer(self, inputs):
            raise KeyboardInterrupt

    def load(case, artifact, device):
        return Stopped(ReferenceVideo(case.recipe), case.recipe, "stopped", "video", device)

    known = together(Candidate("stopped", load))
    with pytest.raises(KeyboardInterrupt):
        measure(case, tmp_path, None, known)


def test_an_injected_slowdown_is_in_the_row_and_in_the_time(case, tmp_path):
    done, _ = measure(case, tmp_path, slowdowns=(("torch", 900.0),))
    original, torch_row = done.rows
    assert (original.slowdown_percent, torch_row.slowdown_percent) == (0, 900)
    assert torch_row.ratio < 1
    with pytest.raises(UsageError, match="--slow-down: found ort, expected one of original, torch"):
        measure(case, tmp_path, slowdowns=(("ort", 10.0),))


def test_slowed_lengthens_by_what_was_asked():
    now = [0.0]

    def tick():
        now[0] += 0.5
        return now[0]

    def work():
        now[0] += 10
        return "done"

    assert slowed(work, 50, tick)() == "done"
    assert 15 <= now[0] <= 17.5


def test_past_saturation_larger_batches_are_left_out(case, tmp_path):
    """Videos/s are made to fall with the batch, so the second and third size are no faster than the first."""
    import time

    class Falling(Altered):
        def _infer(self, inputs):
            time.sleep(0.002 * len(inputs["frames"]) ** 2)
            return super()._infer(inputs)

    def load(case, artifact, device):
        return Falling(ReferenceVideo(case.recipe), case.recipe, "original", "video", device)

    known = {"original": Candidate("original", load)}
    done, _ = measure(case, tmp_path, None, known, batches=(1, 2, 3, 4), least_gain=100.0)
    assert [row.batch for row in done.rows] == [1, 2, 3]
    assert done.notes == ("tiny: past saturation, batches 4 are left out",)


@pytest.mark.parametrize(
    ("smallest", "largest", "sizes"),
    [(1, 1, (1,)), (1, 8, (1, 2, 4, 8)), (1, 6, (1, 2, 4, 6)), (3, 20, (3, 6, 12, 20))],
)
def test_a_sweep_doubles(smallest, largest, sizes):
    assert sweep(largest, smallest) == sizes


def test_every_clip_is_judged_whatever_the_batch():
    clips = np.arange(4, dtype=np.float32)
    assert [batch.tolist() for batch in batches_of(clips, 1)] == [[0], [1], [2], [3]]
    assert [batch.tolist() for batch in batches_of(clips, 3)] == [[0, 1, 2], [3, 0, 1]]
    assert [batch.tolist() for batch in batches_of(clips, 6)] == [[0, 1, 2, 3, 0, 1]]


def test_batch_outside_the_profile(case):
    with pytest.raises(UsageError, match=r"--batches 8: profile tiny is made for 1 to 4 videos"):
        check_batches(case.profile, (1, 8))


def test_unknown_backend():
    with pytest.raises(
        UsageError, match=r"--backends: found tensorflow, expected of original, original-bf16, original-compile"
    ):
        chosen_candidates(("torch", "tensorflow"))
    assert [one.name for one in chosen_candidates(None)] == list(known_candidates())
    assert [one.name for one in chosen_candidates(("ort", "original"))] == ["original", "ort"]


def test_clips_are_seeded_and_different_and_hang_on_no_near_tie(case):
    clips = benchmark_clips([case.recipe], seed=3)
    assert clips.shape == (4, 4, 3, 64, 64) and clips.dtype == np.float32
    assert np.array_equal(clips, benchmark_clips([case.recipe], seed=3))
    assert not np.array_equal(clips, benchmark_clips([case.recipe], seed=4))
    patches = clips.reshape(4, 4, 3, 4, 16, 4, 16).transpose(0, 1, 3, 5, 2, 4, 6).reshape(256, -1)
    assert len(np.unique(patches, axis=0)) == 256
    log = MergeLog()
    ReferenceVideo(case.recipe).frame_features(torch.from_numpy(clips), log)
    assert min(float(step.gap.min()) for step in log.steps) >= SAFE_GAP


def test_features_without_differences_offer_no_clips(case):
    with pytest.raises(ParityError, match="only 0 of 64 moving clips"):
        benchmark_clips([case.recipe], seed=0, gap=1.0)


def test_what_takes_minutes_is_measured_only_when_named(case, tmp_path):
    known = together(Candidate("slow", load_altered("slow"), slow_on=("cpu",)))
    done, missing = measure(case, tmp_path, None, known)
    assert [row.candidate for row in done.rows] == ["original"]
    assert missing == {"slow": "it is measured on cpu only when named, by --backends."}
    assert [row.candidate for row in measure(case, tmp_path, ("slow",), known)[0].rows] == ["original", "slow"]
