"""The reference encoder against outputs of the original implementation, and on videos full of ties."""

import dataclasses

import pytest
import torch

from tempme_export.encoder.recipe import folded_weights
from tempme_export.encoder.reference import MergeLog, ReferenceText, ReferenceVideo
from tempme_export.kernels import SNAP_STEPS
from tempme_export.kernels.reference import match_tokens_ref, merge_tokens_ref

SMALL = ["tiny_default", "tiny_schedule", "tiny_clamp"]
CASES = [*SMALL, "vit_b32_f12"]


@dataclasses.dataclass
class Run:
    frames: torch.Tensor
    video: torch.Tensor
    text: torch.Tensor
    logits: torch.Tensor
    log: MergeLog


def one_minus_cosine(a, b):
    return 1 - torch.cosine_similarity(a.double(), b.double(), dim=-1)


def run(case, dtype):
    log = MergeLog()
    video, text = ReferenceVideo(case.recipe, dtype), ReferenceText(case.recipe, dtype)
    frames = video.frame_features(case.video, log)
    mask = case.video_mask.to(dtype).unsqueeze(-1)
    feature = (frames * mask).sum(1) / mask.sum(1)
    rounding = torch.finfo(dtype).eps * frames.shape[1]  # of a mean of numbers of at most 1, in any order
    torch.testing.assert_close(feature, video.video_feature(case.video, case.video_mask), rtol=0, atol=rounding)
    scale = case.recipe.checkpoint.tensors["logit_scale"].to(dtype).exp()
    similarity = text(case.text_ids) @ torch.nn.functional.normalize(feature, dim=-1).mT
    return Run(frames, feature, text.text_feature(case.text_ids), scale * similarity, log)


@pytest.fixture(scope="module")
def runs(golden_case):
    """Every case run once per dtype."""
    done = {}

    def get(name, dtype):
        if (name, dtype) not in done:
            done[name, dtype] = run(golden_case(name), dtype)
        return golden_case(name), done[name, dtype]

    return get


every_case = pytest.mark.parametrize("name", CASES)
every_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


@every_case
def test_the_inputs_are_the_ones_the_original_had(golden_case, name):
    case = golden_case(name)
    told = case.document["inputs_sha256"] | {"checkpoint": case.document["checkpoint_sha256"]}
    assert case.digests == {key: told[key] for key in ("checkpoint", "video", "video_mask", "text_ids")}


@every_case
@every_dtype
def test_every_decision_is_the_original_s(runs, name, dtype):
    case, done = runs(name, dtype)
    steps = case.document["steps"]
    assert [(s.block, s.kind, s.n_cls, s.r) for s in done.log.steps] == [
        (s["layer"], s["kind"], s["cls"], s["r"]) for s in steps
    ]
    for index, (step, told) in enumerate(zip(done.log.steps, steps, strict=True)):
        src, dst, unm = (case.array(f"step{index:02}_{part}").long() for part in ("src", "dst", "unm"))
        first_a, first_b = told["cls"] + told["cls"] % 2, told["cls"] + 1 - told["cls"] % 2
        first_b_row = told["cls"] + told["n_a"] - told["r"]
        n_tokens = told["cls"] + told["n_a"] + told["n_b"]
        expected = torch.full((len(src), n_tokens), -1)
        expected[:, : told["cls"]] = torch.arange(told["cls"])
        expected[:, first_b::2] = first_b_row + torch.arange(told["n_b"])
        expected.scatter_(1, first_a + 2 * unm, torch.arange(told["cls"], first_b_row).expand_as(unm))
        expected.scatter_(1, first_a + 2 * src, first_b_row + dst)
        assert (expected >= 0).all()
        torch.testing.assert_close(step.assign.long(), expected, rtol=0, atol=0)


@every_case
@every_dtype
def test_every_size_is_the_original_s(runs, name, dtype):
    case, done = runs(name, dtype)
    assert len(done.log.sizes) == case.recipe.backbone.layers
    for block, sizes in enumerate(done.log.sizes):
        torch.testing.assert_close(sizes.double(), case.array(f"size{block:02}").double(), rtol=0, atol=0)


@every_case
def test_the_margin_of_the_decisions(runs, name):
    case, done = runs(name, torch.float64)
    smallest = min(step.gap.min().item() for step in done.log.steps)
    assert smallest == pytest.approx(case.document["smallest_decision_gap"], abs=2**-20)


def is_original(found, stored, limit):
    """Every row lies within `limit` of the original's, relative to its length, and what storing that has rounded."""
    expected, limit = stored.double(), limit + torch.finfo(stored.dtype).eps / 2
    assert ((found.double() - expected).norm(dim=-1) <= limit * expected.norm(dim=-1)).all()


@every_case
@every_dtype
def test_every_output_is_the_original_s(runs, video_rounding, text_rounding, sum_error, name, dtype):
    """But for rounding. The original was stored from a run in float64; its tokens, as float32."""
    case, done = runs(name, dtype)
    backbone = case.recipe.backbone
    video, text = (tower(backbone, dtype).difference for tower in (video_rounding, text_rounding))
    for found, key, limit in (
        (done.frames, "frame_feat", video),
        (done.video, "video_feat", video),
        (done.text, "text_feat", text),
    ):
        assert found.dtype == dtype
        is_original(found, case.array(key), limit)
    cosine = video + text + sum_error(backbone.embed, dtype)
    scale = float(case.recipe.checkpoint.tensors["logit_scale"].double().exp())
    torch.testing.assert_close(done.logits.double(), case.array("logits"), rtol=0, atol=scale * cosine)
    for block, tokens in enumerate(done.log.tokens):
        if f"tokens{block:02}" in case.arrays:
            is_original(tokens, case.array(f"tokens{block:02}"), video)


def test_tokens_are_compared_somewhere(golden_case):
    arrays = golden_case("tiny_default").arrays
    assert sum(name.startswith("tokens") for name in arrays) == 12


def with_rules(match=match_tokens_ref, merge=merge_tokens_ref):
    """The reference with other definitions of a match or a merge."""

    class Changed(ReferenceVideo):
        def _merge(self, x, size, metric, block, kind, log):
            r = block.r_cross if kind == "cross" else block.r_intra
            return merge(x, size, match(metric, block.n_cls, r), x.shape[1] - r) if r else (x, size)

    return Changed


class TestOneWrongRule:
    """Each moves the video feature by far more than rounding does: the tests above would fail."""

    def moves(self, case, recipe=None, reference=ReferenceVideo):
        feature = reference(recipe or case.recipe, torch.float64).video_feature(case.video, case.video_mask)
        moved = one_minus_cosine(feature, case.array("video_feat"))
        assert (moved >= 1.6e-3).all()

    @pytest.fixture(params=SMALL)
    def case(self, request, golden_case):
        return golden_case(request.param)

    def test_no_size_term_in_attention(self, case):
        self.moves(case, case.with_merge(size_bias=False))

    def test_no_clip_position(self, case):
        self.moves(case, case.with_merge(clip_position=False))

    def test_the_right_rules_move_nothing(self, case):
        found, expected = (
            reference(case.recipe, torch.float64).video_feature(case.video, case.video_mask)
            for reference in (with_rules(), ReferenceVideo)
        )
        assert torch.equal(found, expected)

    def test_parity_of_the_sets(self, case):
        def shifted(metric, n_cls, r):
            one_more = torch.cat([metric[:, :1], metric], dim=1)
            return match_tokens_ref(one_more, n_cls + 1, r)[:, 1:] - 1

        self.moves(case, reference=with_rules(match=shifted))

    def test_order_of_the_kept_tokens(self, case):
        def b_first(metric, n_cls, r):
            assign = match_tokens_ref(metric, n_cls, r).long()
            n_tokens = metric.shape[1]
            n_b = len(range(n_cls + 1 - n_cls % 2, n_tokens, 2))
            patches, n_out = assign[:, n_cls:] - n_cls, n_tokens - r - n_cls
            return torch.cat([assign[:, :n_cls], n_cls + (patches + n_b) % n_out], dim=1).int()

        self.moves(case, reference=with_rules(match=b_first))

    def test_unweighted_average(self, case):
        def unweighted(x, size, assign, n_out):
            merged, _ = merge_tokens_ref(x, torch.ones_like(size), assign, n_out)
            return merged, merge_tokens_ref(x, size, assign, n_out)[1]

        self.moves(case, reference=with_rules(merge=unweighted))

    @pytest.mark.parametrize("third", [0, 1, 2], ids=["q", "k", "v"])
    def test_lora_missing_on_one_of(self, case, third):
        tensors = dict(case.recipe.checkpoint.tensors)
        for name, tensor in tensors.items():
            if name.startswith("visual.") and name.endswith("TVPt_LoRA_b"):
                tensors[name] = tensor.clone()
                tensors[name].chunk(3)[third].zero_()
        checkpoint = dataclasses.replace(case.recipe.checkpoint, tensors=tensors)
        self.moves(case, dataclasses.replace(case.recipe, checkpoint=checkpoint))

    def test_the_metric_after_the_clip_position(self, case):
        class LateMetric(ReferenceVideo):
            def _merge(self, x, size, metric, block, kind, log):
                return super()._merge(x, size, x if kind == "cross" else metric, block, kind, log)

        feature = LateMetric(case.recipe, torch.float64).video_feature(case.video, case.video_mask)
        assert (one_minus_cosine(feature, case.array("video_feat")) > 1e-6).any()


class TestFrameMask:
    MEAN = 8 * torch.finfo(torch.float64).eps  # of a mean over 8 frames of numbers of at most 1, in any order

    @pytest.fixture(scope="class")
    def case(self, golden_case):
        return golden_case("tiny_schedule")

    def test_counts_the_masked_mean_of_unit_features(self, case):
        encoder = ReferenceVideo(case.recipe, torch.float64)
        frames = encoder.frame_features(case.video)
        torch.testing.assert_close(frames.norm(dim=-1), torch.ones(2, 8).double())
        mask = torch.tensor([[1, 1, 0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 1]])
        expected = torch.stack([frames[0, [0, 1, 4]].mean(0), frames[1, 7]])
        found = encoder.video_feature(case.video, mask)
        torch.testing.assert_close(found, expected, rtol=0, atol=self.MEAN)
        torch.testing.assert_close(encoder.video_feature(case.video, mask.bool()), found, rtol=0, atol=0)
        unit, length = encoder(case.video, mask), expected.norm(dim=-1, keepdim=True)
        assert length.min() > 0.5
        torch.testing.assert_close(unit, expected / length, rtol=0, atol=2 * self.MEAN)

    def test_all_frames_are_the_default(self, case):
        encoder = ReferenceVideo(case.recipe, torch.float64)
        expected = encoder.video_feature(case.video, torch.ones(2, 8))
        torch.testing.assert_close(encoder.video_feature(case.video), expected, rtol=0, atol=self.MEAN)

    def test_no_frame_gives_zeros(self, case):
        encoder = ReferenceVideo(case.recipe)
        mask = torch.tensor([[0] * 8, [1] * 8])
        for found in (encoder.video_feature(case.video, mask), encoder(case.video, mask)):
            assert not found[0].any() and found[1].any() and found.isfinite().all()

    def test_masked_frames_still_take_part(self, case):
        encoder = ReferenceVideo(case.recipe, torch.float64)
        mask = torch.tensor([[1, 1, 1, 1, 0, 0, 0, 0]] * 2)
        changed = case.video.clone()
        changed[:, 4:] = 0
        difference = encoder.video_feature(case.video, mask) - encoder.video_feature(changed, mask)
        assert difference.abs().max() > 1e-3


# Real data is full of exact ties: the same frame again, borders, frames repeated to fill a short video.
def frozen(video):
    return video[:, :1].expand_as(video).contiguous()


def black(video):
    return torch.full_like(video, -1.79)


def repeated(video):
    frames = video.shape[1]
    index = torch.linspace(0, 2, frames).round().long()
    return video[:, index]


def letterboxed(video):
    boxed = video.clone()
    boxed[..., :16, :] = boxed[..., -16:, :] = -1.79
    return boxed


TIED = [frozen, black, repeated, letterboxed]


# What ties in exact numbers may differ in the last bit of float32, where a processor adds up in another order for it,
# and be rounded to either side of a step: hence given the decisions of float64, and within two steps of them.
@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("tied", TIED)
def test_ties_are_decided_alike_in_every_precision(golden_case, check_optimal, watched, video_rounding, name, tied):
    case = golden_case(name)
    video, log = tied(case.video).double(), MergeLog()
    expected = ReferenceVideo(case.recipe, torch.float64).video_feature(video, None, log)
    assigns, limits = [step.assign for step in log.steps], video_rounding(case.recipe.backbone)
    wide = watched(case.recipe, video, assigns, torch.float64)
    for scale in (1.0, 1 + 1e-6):
        narrow = watched(case.recipe, video * scale, assigns)
        for (metric, n_cls, r), (exact, *_) in zip(narrow.metrics, wide.metrics, strict=True):
            check_optimal(exact, match_tokens_ref(metric, n_cls, r), n_cls, r, within=2 / SNAP_STEPS)
        assert (one_minus_cosine(narrow.feature, expected) <= limits.distance).all()


class TestText:
    def test_padding_after_the_end_changes_nothing(self, golden_case, text_rounding):
        case = golden_case("tiny_default")
        encoder = ReferenceText(case.recipe, torch.float64)
        ids = case.text_ids
        length = int(ids.argmax(dim=-1).max()) + 1
        assert length < ids.shape[1]
        expected, limits = encoder.text_feature(ids), text_rounding(case.recipe.backbone, torch.float64)
        is_original(encoder.text_feature(ids[:, :length]), expected, limits.difference)
        other = ids.clone()
        other[:, length:] = 5
        is_original(encoder.text_feature(other), expected, limits.difference)

    def test_words_before_the_end_matter_and_unit_length(self, golden_case):
        case = golden_case("tiny_default")
        encoder = ReferenceText(case.recipe, torch.float64)
        ids = case.text_ids.clone()
        ids[:, 1] = (ids[:, 1] + 1) % 500
        assert (one_minus_cosine(encoder(ids), encoder(case.text_ids)) > 1e-6).all()
        torch.testing.assert_close(encoder(ids).norm(dim=-1), torch.ones(len(ids)).double())


def test_folded_weights_are_what_runs(golden_case):
    recipe = golden_case("tiny_default").recipe
    encoder = ReferenceVideo(recipe, torch.float64)
    for name, tensor in folded_weights(recipe, "visual.", torch.float64).items():
        torch.testing.assert_close(encoder.weights[name], tensor, rtol=0, atol=0)
