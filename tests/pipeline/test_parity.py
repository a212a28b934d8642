"""Parity must fail when it should: every check against a value worked out by hand, every wrong artifact caught."""

import dataclasses
import json
import math

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tempme_export.artifacts.backend import Folder
from tempme_export.artifacts.registry import TEXT_ONNX, VIDEO_ONNX
from tempme_export.errors import BackendError, BundleError, ParityError
from tempme_export.media.preprocess import Preprocess, preprocess_for
from tempme_export.parity.checks import (
    Check,
    ParityReport,
    centred_cosine,
    check_batches,
    check_text,
    check_video,
    cosine_distance,
    decision_checks,
    embedding_checks,
    rank_agreement,
)
from tempme_export.parity.selftest import SAFE_GAP
from tempme_export.parity.tolerance import INT8, PRECISIONS, TOLERANCES, Tolerance
from tempme_export.parity.verification import Standard
from tempme_export.pipeline import export, verify
from tempme_export.runtime.base import Runner

pytestmark = pytest.mark.usefixtures("one_thread")

FP32, FP16 = TOLERANCES["fp32"], TOLERANCES["fp16"]


def failures(checks):
    return [check.name for check in checks if not check.passed]


class TestCheck:
    def test_the_value_is_the_smallest_limit_that_passes(self):
        check = Check("x", value=0.25, limit=0.1)
        assert not check.passed
        assert dataclasses.replace(check, limit=check.value).passed
        assert not dataclasses.replace(check, limit=np.nextafter(check.value, 0)).passed

    def test_the_value_is_the_largest_limit_that_passes_where_more_is_better(self):
        check = Check("x", value=0.97, limit=0.98, at_least=True)
        assert not check.passed
        assert dataclasses.replace(check, limit=check.value).passed
        assert not dataclasses.replace(check, limit=np.nextafter(check.value, 1)).passed

    @pytest.mark.parametrize("at_least", [False, True])
    @pytest.mark.parametrize("limit", [0.0, 1.0, math.inf, -math.inf])
    def test_nan_never_passes(self, at_least, limit):
        assert not Check("x", math.nan, limit, at_least).passed


class TestReport:
    def test_status(self):
        good, bad = Check("good", 0.0, 1.0), Check("bad", 2.0, 1.0)
        assert ParityReport("video.onnx", "ort", (good,)).status == "passed"
        assert ParityReport("video.onnx", "ort", (good, bad)).status == "failed"
        assert ParityReport("video.onnx", "ort", ()).status == "failed", "nothing compared"
        assert ParityReport("video.onnx", "ort", (), reason="no kernel").status == "not run"

    def test_document(self):
        report = ParityReport("video.onnx", "ort", (Check("bad", 2.0, 1.0, detail="3 of 4"),))
        check = {"name": "bad", "value": 2.0, "limit": 1.0, "at_least": False, "detail": "3 of 4", "passed": False}
        expected = {"artifact": "video.onnx", "backend": "ort", "checks": [check], "reason": "", "status": "failed"}
        assert json.loads(json.dumps(report.to_dict())) == expected


class TestCosineDistance:
    def test_by_hand(self):
        a = np.array([[3.0, 4.0], [1.0, 0.0]])
        assert cosine_distance(a, a) == 0
        assert cosine_distance(a, 7 * a) == pytest.approx(0, abs=1e-15)
        assert cosine_distance(a, np.array([[4.0, 3.0], [1.0, 0.0]])) == pytest.approx(1 - 24 / 25)
        assert cosine_distance(a, np.array([[3.0, 4.0], [-2.0, 0.0]])) == pytest.approx(2), "the worst row counts"

    def test_zero_rows(self):
        zero, one = np.zeros((1, 3)), np.ones((1, 3))
        assert cosine_distance(zero, zero) == 0
        assert cosine_distance(zero, one) == cosine_distance(one, zero) == 1

    @pytest.mark.filterwarnings("ignore:invalid value")
    @pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
    def test_what_is_not_finite_never_passes(self, wrong):
        a = np.ones((2, 3))
        b = a.copy()
        b[1, 2] = wrong
        assert math.isnan(cosine_distance(a, b))
        assert math.isnan(cosine_distance(b, b))

    def test_small_distances_of_float32_rows_are_not_lost(self):
        angle = 1e-5
        a = np.array([[1.0, 0.0]], np.float32)
        b = np.array([[np.cos(angle), np.sin(angle)]], np.float32)
        assert cosine_distance(a, b) == pytest.approx(angle**2 / 2, rel=1e-3)


class TestCentredCosine:
    def test_by_hand(self):
        """Mean (10, 10): the rows are (1, 0), (-1, 0) and (0, 0) from there, found turned by 90 degrees."""
        expected = np.array([[11.0, 10.0], [9.0, 10.0], [10.0, 10.0]])
        assert centred_cosine(expected, expected) == 1
        turned = np.array([[10.0, 11.0], [10.0, 9.0], [10.0, 10.0]])
        assert centred_cosine(expected, turned) == pytest.approx(0)
        assert cosine_distance(expected, turned) < 0.01, "which the raw cosine hardly sees"
        half = np.array([[10.5, 10.0], [9.5, 10.0], [10.0, 10.0]])
        assert centred_cosine(expected, half) == pytest.approx(1)
        swapped = expected[[1, 0, 2]]
        assert centred_cosine(expected, swapped) == pytest.approx(-1)

    def test_the_mean_is_of_what_was_expected(self):
        """A constant shift must show."""
        expected = np.array([[1.0, 0.0], [-1.0, 0.0]])
        assert centred_cosine(expected, expected + np.array([0.0, 1.0])) == pytest.approx(math.sqrt(0.5))


class TestRankAgreement:
    def test_by_hand(self):
        """One query, four candidates; rho = 1 - 6 sum d^2 / (n (n^2 - 1)) with n = 4."""
        ranks = np.array([[1.0, 2.0, 3.0, 4.0]])
        assert rank_agreement(ranks, 10 * ranks) == pytest.approx(1)
        assert rank_agreement(ranks, -ranks) == pytest.approx(-1)
        assert rank_agreement(ranks, np.array([[1.0, 3.0, 2.0, 4.0]])) == pytest.approx(1 - 6 * 2 / 60)
        assert rank_agreement(ranks, np.array([[2.0, 1.0, 4.0, 3.0]])) == pytest.approx(1 - 6 * 4 / 60)

    def test_mean_over_queries(self):
        a = np.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
        b = np.array([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]])
        assert rank_agreement(a, b) == pytest.approx(0)

    def test_one_candidate_cannot_change_places(self):
        assert rank_agreement(np.array([[0.3], [0.1]]), np.array([[0.1], [0.9]])) == 1

    def test_neighbours_changing_places_costs_what_the_table_says(self):
        """The comment of the table: one swap in one of eight queries of six candidates costs 0.007."""
        table = np.tile(np.arange(6.0), (8, 1))
        swapped = table.copy()
        swapped[3, [2, 3]] = swapped[3, [3, 2]]
        assert 1 - rank_agreement(table, swapped) == pytest.approx(0.007, abs=0.0005)


class TestEmbeddingChecks:
    def test_float32_is_gated_on_the_raw_cosine(self):
        a = np.eye(3)
        (check,) = embedding_checks("video", a, a, FP32, against=a)
        assert (check.name, check.value, check.limit, check.at_least) == ("video: 1 - cosine", 0.0, 1e-6, False)

    def test_lower_precision_is_gated_on_centred_cosine_and_ranks(self):
        a = np.eye(3)
        checks = embedding_checks("video", a, a, FP16, against=a)
        assert [(c.name, c.limit, c.at_least) for c in checks] == [
            ("video: centred cosine", 0.99, True),
            ("video: rank agreement", 0.98, True),
        ]
        assert all(check.passed for check in checks)

    def test_videos_that_change_places_fail_the_ranks(self):
        texts = np.eye(4)
        videos = np.array([[4.0, 3, 2, 1], [3, 4, 1, 2], [2, 1, 4, 3], [1, 2, 3, 4]])
        checks = embedding_checks("video", videos, videos[[1, 0, 2, 3]], FP16, against=texts)
        assert "video: rank agreement" in failures(checks)


def test_table_of_tolerances():
    assert tuple(TOLERANCES) == PRECISIONS
    assert (FP32.changed_decisions, FP32.cosine_distance) == (0.0, 1e-6), "equal decisions and 1 - cosine <= 1e-6"
    assert FP32.merged_tokens <= 2e-5 and FP32.fragile_distance <= 5e-3
    for precision in ("fp16", "bf16"):
        tolerance = TOLERANCES[precision]
        assert tolerance.centred_cosine is not None and tolerance.rank_agreement is not None


class Fake(Runner):
    """A runner that answers with a function of its inputs."""

    def __init__(self, answer, inputs):
        self.name, self.inputs, self._answer = "fake", inputs, answer

    def _infer(self, inputs):
        return self._answer(inputs)


@pytest.fixture
def preprocess(small_recipe):
    return preprocess_for(small_recipe)


@pytest.fixture
def honest(small_selftest, small_recipe, preprocess):
    """What a right artifact answers to the self-test: looks the clips up."""
    pixels = [preprocess(clip) for clip in small_selftest.clips]

    def answer(inputs):
        rows = [next(i for i, p in enumerate(pixels) if np.array_equal(p, frames)) for frames in inputs["frames"]]
        found = {"video_embedding": small_selftest.video_embedding[rows].copy()}
        for merge, assign, tokens in zip(
            small_recipe.schedule.merges, small_selftest.assigns, small_selftest.tokens, strict=True
        ):
            for name, array in ((merge.assign_name, assign), (merge.tokens_name, tokens)):
                found[name] = array.reshape(6, -1, *array.shape[1:])[rows].reshape(-1, *array.shape[1:]).copy()
        return found

    return answer


FRAMES = {"frames": (np.dtype(np.float32), (None, 4, 3, 48, 48))}
TOKENS = {"token_ids": (np.dtype(np.int64), (None, 8))}


def checks_of(selftest, recipe, preprocess, answer, tolerance=FP32):
    return check_video(selftest, recipe.schedule, preprocess, Fake(answer, FRAMES), tolerance)


def test_a_right_artifact_passes(small_selftest, small_recipe, preprocess, honest):
    for precision in PRECISIONS:
        checks = checks_of(small_selftest, small_recipe, preprocess, honest, TOLERANCES[precision])
        assert failures(checks) == []
        assert checks[0].value == 0 and checks[1].detail == "30 of 30 merges compared"


def test_a_changed_decision_fails(small_selftest, small_recipe, preprocess, honest):
    """Tokens 5 and 7 of block 1's cross merge, second clip of the fourth video, change places."""

    def answer(inputs):
        found = honest(inputs)
        assign = found["assign_01"].reshape(6, 2, -1)
        assign[3, 1, [5, 7]] = assign[3, 1, [7, 5]]
        return found

    assert small_selftest.assigns[1].shape == (12, 18)
    checks = checks_of(small_selftest, small_recipe, preprocess, answer)
    assert failures(checks) == ["decisions changed"]
    total = sum(assign.size for assign in small_selftest.assigns)
    assert checks[0].value == pytest.approx(2 / total)
    assert f"2 of {total} tokens, first in block 1 (cross)" in checks[0].detail
    assert f"decided there by {small_selftest.gaps[3, 1]:.1e} or less" in checks[0].detail
    assert checks[1].detail == "26 of 30 merges compared", "that video's four later merges are not comparable"


def test_merged_tokens_are_compared_only_before_the_first_other_decision(
    small_selftest, small_recipe, preprocess, honest
):
    def answer(inputs, changed):
        found = honest(inputs)
        found["tokens_04"].reshape(6, -1)[2] += 1.0
        if changed:
            found["assign_03"].reshape(6, -1)[2, :2] = [1, 0]
        return found

    wrong = checks_of(small_selftest, small_recipe, preprocess, lambda inputs: answer(inputs, False))
    assert failures(wrong) == ["merged tokens, relative RMS"]
    changed = checks_of(small_selftest, small_recipe, preprocess, lambda inputs: answer(inputs, True))
    assert failures(changed) == ["decisions changed"]


class TestNearTies:
    """A clip that the reference itself decides by a rounding may take the other way, and only there."""

    @pytest.fixture
    def fragile(self, small_selftest):
        """The self-test as if the repeated clip's second merge hung on next to nothing."""
        gaps = small_selftest.gaps.copy()
        gaps[4, 1] = SAFE_GAP / 2
        return dataclasses.replace(small_selftest, gaps=gaps)

    def turned(self, honest, video, merge, embedding=1.0):
        def answer(inputs):
            found = honest(inputs)
            assign = found[f"assign_{merge:02d}"].reshape(6, -1)
            assign[video, -2:] = assign[video, -1:-3:-1]
            found[f"tokens_{merge:02d}"].reshape(6, -1)[video] += 1.0
            found["video_embedding"][video, 0] *= embedding
            found["video_embedding"][video] /= np.linalg.norm(found["video_embedding"][video])
            return found

        return answer

    def test_turning_at_the_near_tie_passes_and_is_told(self, fragile, small_recipe, preprocess, honest):
        checks = checks_of(fragile, small_recipe, preprocess, self.turned(honest, 4, 1, embedding=1.1))
        assert failures(checks) == []
        assert checks[0].value == 0 and "1 of 6 videos turned at a near tie" in checks[0].detail
        near = next(check for check in checks if check.name.endswith("near ties"))
        assert near.limit == FP32.fragile_distance and 0 < near.value < near.limit

    def test_whatever_follows_the_near_tie_is_not_counted(self, fragile, small_recipe, preprocess, honest):
        def answer(inputs):
            return self.turned(lambda _: self.turned(honest, 4, 1)(inputs), 4, 3)(inputs)

        assert failures(checks_of(fragile, small_recipe, preprocess, answer)) == []

    @pytest.mark.parametrize(("video", "merge"), [(4, 0), (4, 2), (3, 1)])
    def test_turning_elsewhere_fails(self, fragile, small_recipe, preprocess, honest, video, merge):
        """Before the near tie, behind it without having turned there, and in another clip."""
        checks = checks_of(fragile, small_recipe, preprocess, self.turned(honest, video, merge))
        assert failures(checks) == ["decisions changed"]

    def test_its_embedding_has_a_limit_too(self, fragile, small_recipe, preprocess, honest):
        """A strict one while its decisions are the reference's, a wider one once it has turned."""

        def answer(inputs):
            found = honest(inputs)
            found["video_embedding"][4] = found["video_embedding"][0]
            return found

        checks = checks_of(fragile, small_recipe, preprocess, answer)
        assert failures(checks) == ["video, batch 6: 1 - cosine"]
        checks = checks_of(fragile, small_recipe, preprocess, self.turned(answer, 4, 1))
        assert failures(checks) == ["video, batch 6: 1 - cosine, near ties"]

    def test_the_other_clips_keep_their_limit(self, fragile, small_recipe, preprocess, honest):
        def answer(inputs):
            found = honest(inputs)
            found["video_embedding"][0, 0] *= 1.1
            found["video_embedding"][0] /= np.linalg.norm(found["video_embedding"][0])
            return found

        assert failures(checks_of(fragile, small_recipe, preprocess, answer)) == ["video, batch 6: 1 - cosine"]


def test_wrong_merged_tokens_fail_by_their_relative_error(small_selftest, small_recipe, preprocess, honest):
    def answer(inputs):
        found = honest(inputs)
        found["tokens_00"] *= 1.001
        return found

    checks = checks_of(small_selftest, small_recipe, preprocess, answer)
    assert failures(checks) == ["merged tokens, relative RMS"]
    assert checks[1].value == pytest.approx(1e-3, rel=1e-3)


def test_nothing_comparable_fails(small_selftest, small_recipe, preprocess, honest):
    """Other decisions everywhere from the first merge on: level (b) has nothing to compare, whatever the limits."""

    def answer(inputs):
        found = honest(inputs)
        assign = found["assign_00"].reshape(6, -1)
        assign[:, 1:3] = assign[:, 2:0:-1]
        return found

    lenient = Tolerance(1.0, 1e9, 2.0, 2.0, None, None)
    checks = checks_of(small_selftest, small_recipe, preprocess, answer, lenient)
    assert failures(checks) == ["merged tokens, relative RMS"]
    assert checks[1].detail == "0 of 30 merges compared"


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("value", ["video_embedding", "tokens_02"])
def test_nan_fails(small_selftest, small_recipe, preprocess, honest, value, precision):
    def answer(inputs):
        found = honest(inputs)
        found[value].reshape(-1)[7] = np.nan
        return found

    checks = checks_of(small_selftest, small_recipe, preprocess, answer, TOLERANCES[precision])
    assert failures(checks)
    assert any(math.isnan(check.value) for check in checks)


def test_zero_output_fails(small_selftest, small_recipe, preprocess, honest):
    def answer(inputs):
        return honest(inputs) | {"video_embedding": np.zeros((len(inputs["frames"]), 32), np.float32)}

    wrong = ["video, batch 6: 1 - cosine", "unit length, video: | length - 1 |"]
    assert failures(checks_of(small_selftest, small_recipe, preprocess, answer)) == wrong
    assert failures(checks_of(small_selftest, small_recipe, preprocess, answer, FP16))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_embedding_that_was_never_normalised_fails(small_selftest, small_recipe, preprocess, honest, precision):
    """A cosine does not see it, a dot product does."""

    def answer(inputs):
        found = honest(inputs)
        return found | {"video_embedding": 1.001 * found["video_embedding"]}

    checks = checks_of(small_selftest, small_recipe, preprocess, answer, TOLERANCES[precision])
    assert failures(checks) == ["unit length, video: | length - 1 |"]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_same_embedding_for_every_clip_fails(small_selftest, small_recipe, preprocess, honest, precision):
    """The mean embedding: a raw cosine near 1 and no information at all."""
    mean = small_selftest.video_embedding.mean(axis=0)

    def answer(inputs):
        return honest(inputs) | {"video_embedding": np.tile(mean, (len(inputs["frames"]), 1))}

    assert failures(checks_of(small_selftest, small_recipe, preprocess, answer, TOLERANCES[precision]))


def test_a_plan_without_merges_is_judged_by_its_embedding(small_selftest, small_recipe, preprocess, honest):
    blocks = tuple(dataclasses.replace(block, r_cross=0, r_intra=0) for block in small_recipe.schedule.blocks)
    schedule = dataclasses.replace(small_recipe.schedule, blocks=blocks)
    checks, forked = decision_checks(small_selftest, schedule, {}, FP32)
    assert checks == [] and not forked.any()
    checks = check_video(small_selftest, schedule, preprocess, Fake(honest, FRAMES), FP32)
    assert [check.name for check in checks] == ["video, batch 6: 1 - cosine", "unit length, video: | length - 1 |"]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_output_that_depends_on_neighbours_fails(small_selftest, preprocess, honest, precision):
    """Right for each clip alone and for the first of a batch; the others lean on the one before."""

    def answer(inputs):
        found = honest(inputs)["video_embedding"]
        found[1:] += 0.5 * found[:-1]
        return {"video_embedding": found}

    runner, tolerance = Fake(answer, FRAMES), TOLERANCES[precision]
    assert failures(check_batches(small_selftest, preprocess, runner, [1], tolerance)) == []
    checks = check_batches(small_selftest, preprocess, runner, [1, 3, 8], tolerance)
    expected = {"video, batch 3", "video, batch 8"}
    assert {name.split(":")[0] for name in failures(checks)} == (
        expected | {"video"} if precision == INT8 else expected
    )


def test_int8_must_not_depend_on_neighbours_by_a_last_bit(small_selftest, preprocess, honest):
    """Within every other limit, and no embedding for an index."""

    def answer(inputs, largest):
        found = honest(inputs)["video_embedding"]
        return {"video_embedding": np.nextafter(found, 1) if len(found) == largest else found}

    for largest, failed in ((8, ["video: change by what else is in the batch"]), (0, [])):
        runner = Fake(lambda inputs, largest=largest: answer(inputs, largest), FRAMES)
        assert failures(check_batches(small_selftest, preprocess, runner, [1, 3, 8], TOLERANCES[INT8])) == failed


def test_answers_of_an_earlier_run_fail(small_selftest, preprocess):
    """A runner that replays its last answers has those of the clips in their own order; batches come in another."""
    rows = small_selftest.video_embedding

    def answer(inputs):
        return {"video_embedding": rows[np.arange(len(inputs["frames"])) % len(rows)]}

    checks = check_batches(small_selftest, preprocess, Fake(answer, FRAMES), [3, len(rows), 8], FP32)
    assert {name.split(":")[0] for name in failures(checks)} == {f"video, batch {batch}" for batch in (3, len(rows), 8)}


def test_batches_are_right_for_the_right_artifact(small_selftest, preprocess, honest):
    seen = []

    def answer(inputs):
        seen.append(len(inputs["frames"]))
        return honest(inputs)

    for precision in PRECISIONS:
        checks = check_batches(small_selftest, preprocess, Fake(answer, FRAMES), [1, 3, 8], TOLERANCES[precision])
        checked_by_itself = TOLERANCES[precision].dependence is not None
        assert len(checks) == 3 + checked_by_itself and failures(checks) == []
    assert seen == [1, 3, 8] * len(PRECISIONS)


def test_mask_is_given_to_a_graph_that_asks_for_it(small_selftest, preprocess, honest):
    masks = []

    def answer(inputs):
        masks.append(inputs["frame_mask"])
        return honest(inputs)

    runner = Fake(answer, FRAMES | {"frame_mask": (np.dtype(np.bool_), (None, 4))})
    assert failures(check_batches(small_selftest, preprocess, runner, [3], FP32)) == []
    assert masks[0].all() and masks[0].shape == (3, 4)


def test_text_together_and_alone(small_selftest):
    """A tower that is right for a batch only, or for single texts only, fails."""
    known = {row.tobytes(): small_selftest.text_embedding[i] for i, row in enumerate(small_selftest.token_ids)}

    def answer(inputs, wrong_batch):
        found = np.stack([known[row.tobytes()] for row in inputs["token_ids"]])
        return {"text_embedding": found[::-1] if len(found) == wrong_batch else found}

    right = check_text(small_selftest, Fake(lambda x: answer(x, 0), TOKENS), FP32)
    assert len(right) == 3 and failures(right) == []
    batch = check_text(small_selftest, Fake(lambda x: answer(x, 8), TOKENS), FP32)
    assert failures(batch) == ["text, batch 8: 1 - cosine"]
    alone = check_text(
        small_selftest,
        Fake(
            lambda x: {"text_embedding": answer(x, 0)["text_embedding"] * (-1 if len(x["token_ids"]) == 1 else 1)},
            TOKENS,
        ),
        FP32,
    )
    assert failures(alone) == ["text, batch 1: 1 - cosine"]

    def shifted(inputs):
        found = answer(inputs, 0)["text_embedding"]
        return {"text_embedding": np.nextafter(found, 1) if len(found) == 1 else found}

    checks = check_text(small_selftest, Fake(shifted, TOKENS), TOLERANCES[INT8])
    assert failures(checks) == ["text: change by what else is in the batch"]


def verified(folder, selftest, recipe, precision="fp32"):
    return export.verify_artifacts(
        Folder(folder, precision), Standard(selftest, recipe.schedule, preprocess_for(recipe), (1, 3)), "cpu"
    )


def test_the_real_bundle_passes(small_bundle, small_selftest, small_recipe):
    video, text = verified(small_bundle, small_selftest, small_recipe)
    assert (video.artifact, video.status, text.artifact, text.status) == (
        VIDEO_ONNX.file,
        "passed",
        TEXT_ONNX.file,
        "passed",
    )
    assert video.backend == "ONNX Runtime, cpu"
    names = [check.name.split(":")[0] for check in video.checks]
    assert names == [
        "decisions changed",
        "merged tokens, relative RMS",
        "video, batch 6",
        "unit length, video",
        "video, batch 1",
        "video, batch 3",
    ]


def spoil_weight(path, pick, change):
    """Change one initializer of an ONNX file in place; returns its name."""
    proto = onnx.load(path)
    tensor = next(tensor for tensor in proto.graph.initializer if pick(tensor))
    values = numpy_helper.to_array(tensor).copy()
    change(values)
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(proto, path)
    return tensor.name


def _is_matrix(tensor):
    return len(tensor.dims) == 2 and min(tensor.dims) >= 128


def _negate_one(values):
    place = np.unravel_index(np.abs(values).argmax(), values.shape)
    values[place] *= -1


def _to_nan(values):
    values.reshape(-1)[0] = np.nan


def test_one_wrong_weight_fails(bundle_copy, small_selftest, small_recipe):
    """The largest value of one matrix changes its sign: 1 of 710 000."""
    spoil_weight(bundle_copy / VIDEO_ONNX.file, _is_matrix, _negate_one)
    spoil_weight(bundle_copy / TEXT_ONNX.file, lambda tensor: sorted(tensor.dims) == [128, 384], _negate_one)
    video, text = verified(bundle_copy, small_selftest, small_recipe)
    assert video.status == text.status == "failed"


def test_a_weight_that_is_not_a_number_fails(bundle_copy, small_selftest, small_recipe):
    spoil_weight(bundle_copy / VIDEO_ONNX.file, _is_matrix, _to_nan)
    video, text = verified(bundle_copy, small_selftest, small_recipe)
    assert (video.status, text.status) == ("failed", "passed")


def test_a_graph_that_skips_a_merge_decision_fails(bundle_copy, small_selftest, small_recipe):
    """Matching from the scores' negative: everything is still finite, unit length and of the right shape."""
    proto = onnx.load(bundle_copy / VIDEO_ONNX.file)
    snapped = next(node for node in proto.graph.node if node.op_type == "IsNaN").input[0]
    round_node = next(node for node in proto.graph.node if node.output[0] == snapped)
    place = list(proto.graph.node).index(round_node)
    negated = onnx.helper.make_node("Neg", [round_node.output[0]], ["negated"])
    for node in proto.graph.node:
        for k, name in enumerate(node.input):
            if name == round_node.output[0]:
                node.input[k] = "negated"
    proto.graph.node.insert(place + 1, negated)
    onnx.save(proto, bundle_copy / VIDEO_ONNX.file)
    video, _ = verified(bundle_copy, small_selftest, small_recipe)
    assert video.status == "failed"
    assert video.checks[0].value > 0.01
    assert "first in block 0 (intra)" in video.checks[0].detail


def test_wrong_preprocessing_fails(bundle_copy, small_selftest, small_recipe):
    wrong = Preprocess(48, small_recipe.backbone.mean, (0.3, 0.3, 0.3))
    video, _ = export.verify_artifacts(
        Folder(bundle_copy, "fp32"), Standard(small_selftest, small_recipe.schedule, wrong, (1,)), "cpu"
    )
    assert video.status == "failed"


class TestNotRun:
    """A runtime without the precision's kernels says so; a missing device is an error at any precision."""

    @pytest.fixture(scope="class")
    def refusing(self, small_bundle, tmp_path_factory):
        """Graphs with an operator that ONNX Runtime has no kernels for in bfloat16."""
        folder = tmp_path_factory.mktemp("refusing")
        for name in (VIDEO_ONNX.file, TEXT_ONNX.file):
            proto = onnx.load(small_bundle / name)
            (output,) = proto.graph.output
            there, back = onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT
            first = next(node for node in proto.graph.node if output.name in node.output)
            first.output[list(first.output).index(output.name)] = "exact"
            proto.graph.node.extend(
                [
                    onnx.helper.make_node("Cast", ["exact"], ["rounded"], to=there),
                    onnx.helper.make_node("MatMul", ["rounded", "square"], ["product"]),
                    onnx.helper.make_node("Cast", ["product"], [output.name], to=back),
                ]
            )
            width = output.type.tensor_type.shape.dim[1].dim_value
            square = onnx.helper.make_tensor("square", there, [width, width], np.eye(width).ravel())
            proto.graph.initializer.append(square)
            onnx.save(proto, folder / name)
        return folder

    @pytest.mark.parametrize("precision", ["fp16", "bf16"])
    def test_low_precision_is_reported(self, refusing, small_selftest, small_recipe, precision):
        for report in verified(refusing, small_selftest, small_recipe, precision):
            assert report.status == "not run" and "MatMul" in report.reason
            assert report.checks == ()

    def test_float32_is_an_error(self, refusing, small_selftest, small_recipe):
        with pytest.raises(BackendError, match="MatMul"):
            verified(refusing, small_selftest, small_recipe, "fp32")

    @pytest.mark.parametrize("precision", PRECISIONS)
    @pytest.mark.parametrize("device", ["cuda:7", "tpu"])
    def test_a_missing_device_is_an_error(self, small_bundle, small_selftest, small_recipe, precision, device):
        """Whatever the precision: "not run" would publish a bundle that nobody verified."""
        with pytest.raises(BackendError, match=device.split(":")[0]):
            standard = Standard(small_selftest, small_recipe.schedule, preprocess_for(small_recipe), (1,))
            export.verify_artifacts(Folder(small_bundle, precision), standard, device)


def test_verify_fails_where_this_machine_computes_something_else(small_bundle, runs):
    """All bytes are right; the runtime is not."""
    runs("text-ort", answer=lambda found: {"text_embedding": -found["text_embedding"]})
    with pytest.raises(ParityError, match=r"text\.onnx: text, batch 8: 1 - cosine is 2, limit 1e-06") as caught:
        verify.verify(small_bundle)
    assert caught.value.exit_code == 5
    assert "does not compute here what it did where it was built" in str(caught.value)


def test_verify_passes_and_reports(small_bundle, recording):
    told = recording()
    reports = verify.verify(small_bundle, progress=told)
    assert told.kinds == ["Intact", "Parity"]
    assert [report.status for report in reports] == ["passed", "passed"]
    assert "merged tokens, relative RMS" not in [check.name for check in reports[0].checks], "not in selftest.npz"


def test_verify_checks_bytes_before_it_computes(bundle_copy, runs):
    opened = [runs(name).opened for name in ("ort", "text-ort")]
    with (bundle_copy / VIDEO_ONNX.file).open("r+b") as stream:
        stream.seek(1000)
        byte = stream.read(1)
        stream.seek(1000)
        stream.write(bytes([byte[0] ^ 1]))
    with pytest.raises(BundleError, match=r"video\.onnx was changed"):
        verify.verify(bundle_copy)
    assert opened == [[], []]
