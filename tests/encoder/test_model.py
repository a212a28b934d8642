"""The fast encoder against the reference, and plain CLIP against open_clip itself."""

import dataclasses

import pytest
import torch

from tempme_export.encoder.checkpoint import from_state_dict
from tempme_export.encoder.model import Merges, TextEncoder, VideoEncoder
from tempme_export.encoder.profile import BatchRange, Profile
from tempme_export.encoder.recipe import prepare
from tempme_export.encoder.reference import MergeLog, ReferenceText, ReferenceVideo
from tempme_export.encoder.schedule import MergePolicy
from tempme_export.kernels import SNAP_STEPS
from tempme_export.parity.selftest import SAFE_GAP

SMALL = ["tiny_default", "tiny_schedule", "tiny_clamp"]
NONE = MergePolicy(0, (), (), 0, 0, size_bias=False, clip_position=False)
TOME = MergePolicy(1, (), (), 0, 0, size_bias=True, clip_position=False)


def one_minus_cosine(a, b):
    return 1 - torch.cosine_similarity(a.double(), b.double(), dim=-1)


def unit(x):
    return torch.nn.functional.normalize(x, dim=-1)


def with_activation(recipe, activation):
    return dataclasses.replace(recipe, backbone=dataclasses.replace(recipe.backbone, activation=activation))


def without_clip_positions(recipe, merge):
    """The same weights under a policy that has no clip layers."""
    tensors = {name: t for name, t in recipe.checkpoint.tensors.items() if "Video" not in name}
    profile = dataclasses.replace(recipe.profile, merge=merge)
    return prepare(from_state_dict(tensors, "lora alone"), profile)


def some_video(recipe, batch, seed=42):
    torch.manual_seed(seed)
    return torch.randn(batch, recipe.profile.frames, 3, recipe.backbone.image_size, recipe.backbone.image_size)


@pytest.fixture
def same_as_reference(video_rounding):
    """Compares decisions, merged tokens and embeddings of both encoders; returns the fast one's embedding.

    In float32 a decision by less than SAFE_GAP may turn with the order of addition, and with it all that follows.
    """

    def check(recipe, video, mask=None, dtype=torch.float32):
        log, merges = MergeLog(), Merges()
        expected = unit(ReferenceVideo(recipe, dtype).video_feature(video, mask, log))
        found = VideoEncoder(recipe, dtype).encode(video, mask, merges)
        limits = video_rounding(recipe.backbone, dtype)
        assert len(merges) == len(log.steps) == sum((b.r_cross > 0) + (b.r_intra > 0) for b in recipe.schedule.blocks)
        for (assign, tokens), step in zip(merges, log.steps, strict=True):
            assert dtype == torch.float64 or float(step.gap.min()) >= SAFE_GAP, "the seed drew an unsafe decision"
            torch.testing.assert_close(assign, step.assign, rtol=0, atol=0)
            assert ((tokens - step.tokens).norm(dim=-1) <= limits.difference * step.tokens.norm(dim=-1)).all()
        assert found.dtype == expected.dtype and found.shape == (len(video), recipe.backbone.embed)
        torch.testing.assert_close(found, expected, rtol=0, atol=limits.difference)
        counted = torch.ones(len(video), dtype=torch.bool) if mask is None else mask.any(dim=1)
        torch.testing.assert_close(found[counted].norm(dim=-1), torch.ones(int(counted.sum()), dtype=found.dtype))
        return found

    return check


@pytest.fixture
def video_limit(video_rounding):
    """`video_limit(recipe, dtype)`: how far embeddings of the same clip may lie apart, by default float32's."""
    return lambda recipe, dtype=torch.float32: video_rounding(recipe.backbone, dtype).difference


@pytest.fixture
def text_limit(text_rounding):
    """The same of a text's."""
    return lambda recipe, dtype=torch.float32: text_rounding(recipe.backbone, dtype).difference


class TestReferenceOutputs:
    @pytest.mark.parametrize("name", [*SMALL, "vit_b32_f12"])
    def test_video(self, same_as_reference, video_rounding, golden_case, name):
        case = golden_case(name)
        assert case.video_mask.all()
        found = same_as_reference(case.recipe, case.video)
        limits = video_rounding(case.recipe.backbone)
        assert (one_minus_cosine(found, case.array("video_feat")) <= limits.distance).all()

    @pytest.mark.parametrize("name", [*SMALL, "vit_b32_f12"])
    def test_text(self, text_rounding, golden_case, name):
        case = golden_case(name)
        found, limits = TextEncoder(case.recipe)(case.text_ids.long()), text_rounding(case.recipe.backbone)
        assert found.dtype == torch.float32
        assert (one_minus_cosine(found, case.array("text_feat")) <= limits.distance).all()
        torch.testing.assert_close(found, ReferenceText(case.recipe)(case.text_ids), rtol=0, atol=limits.difference)
        torch.testing.assert_close(found.norm(dim=-1), torch.ones(len(found)))

    @pytest.mark.parametrize("name", SMALL)
    def test_float64(self, same_as_reference, video_limit, text_limit, golden_case, name):
        case = golden_case(name)
        found = same_as_reference(case.recipe, case.video.double(), dtype=torch.float64)
        expected = unit(case.array("video_feat"))
        torch.testing.assert_close(found, expected, rtol=0, atol=video_limit(case.recipe, torch.float64))
        text = TextEncoder(case.recipe, torch.float64)(case.text_ids.long())
        expected = unit(case.array("text_feat"))
        torch.testing.assert_close(text, expected, rtol=0, atol=text_limit(case.recipe, torch.float64))


# Real data is full of exact ties: the same frame again, borders, frames repeated to fill a short video.
def frozen(video):
    return video[:, :1].expand_as(video).contiguous()


def black(video):
    return torch.full_like(video, -1.79)


def repeated(video):
    return video[:, torch.linspace(0, 2, video.shape[1]).round().long()]


def letterboxed(video):
    boxed = video.clone()
    boxed[..., :16, :] = boxed[..., -16:, :] = -1.79
    return boxed


# What ties in exact numbers may differ in the last bit of float32, where a processor adds up in another order for it,
# and be rounded to either side of a step. Float64's last bit is too far below a step for that.
@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("tied", [frozen, black, repeated, letterboxed])
def test_ties_are_decided_as_by_the_reference(
    same_as_reference, golden_case, check_optimal, decided, watched, video_rounding, name, tied
):
    case = golden_case(name)
    video, log, merges = tied(case.video), MergeLog(), Merges()
    same_as_reference(case.recipe, video.double(), dtype=torch.float64)
    expected = unit(ReferenceVideo(case.recipe, torch.float64).video_feature(video, None, log))
    assigns = [step.assign for step in log.steps]
    found = decided(VideoEncoder(case.recipe), assigns).encode(video, None, merges)
    assert (one_minus_cosine(found, expected) <= video_rounding(case.recipe.backbone).distance).all()
    metrics = watched(case.recipe, video, assigns, torch.float64).metrics
    for (assign, _), (metric, n_cls, r) in zip(merges, metrics, strict=True):
        check_optimal(metric, assign, n_cls, r, within=2 / SNAP_STEPS)


@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("name", ["tiny_default", "tiny_schedule"])
def test_batches(same_as_reference, video_limit, golden_case, name, batch):
    recipe = golden_case(name).recipe
    video = some_video(recipe, batch, seed=43)  # 42 draws a near tie
    found = same_as_reference(recipe, video)
    encoder = VideoEncoder(recipe)
    for i in range(batch):
        alone = encoder(video[i : i + 1])
        torch.testing.assert_close(alone[0], found[i], rtol=0, atol=video_limit(recipe))


def test_neighbours_in_a_batch_do_not_matter(video_limit, safe_embedding, tiny_recipe):
    encoder = VideoEncoder(tiny_recipe)
    video = some_video(tiny_recipe, 3)
    expected = torch.from_numpy(safe_embedding(tiny_recipe, video))
    changed = video.clone()
    changed[0], changed[2] = 0, 100 * changed[2].flip(0)
    found = encoder(changed)
    torch.testing.assert_close(found[1], expected[1], rtol=0, atol=video_limit(tiny_recipe))
    assert (one_minus_cosine(found[[0, 2]], expected[[0, 2]]) > 1e-4).all()
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(encoder(video[order]), expected[order], rtol=0, atol=video_limit(tiny_recipe))


class TestPolicies:
    @pytest.mark.parametrize("activation", ["quickgelu", "gelu"])
    def test_activations(self, same_as_reference, text_limit, tiny_recipe, activation):
        recipe = with_activation(tiny_recipe, activation)
        video = some_video(recipe, 2)
        found = same_as_reference(recipe, video)
        ids = torch.randint(1, 600, (2, 32), generator=torch.Generator().manual_seed(42))
        text = TextEncoder(recipe)(ids)
        torch.testing.assert_close(text, ReferenceText(recipe)(ids), rtol=0, atol=text_limit(recipe))
        other = with_activation(tiny_recipe, {"gelu": "quickgelu", "quickgelu": "gelu"}[activation])
        assert (one_minus_cosine(VideoEncoder(other)(video), found) > 1e-6).all(), "it makes a difference"
        assert (one_minus_cosine(TextEncoder(other)(ids), text) > 1e-6).all()

    @pytest.mark.parametrize("merge", [NONE, TOME, dataclasses.replace(TOME, size_bias=False)])
    def test_without_clip_layers(self, same_as_reference, video_limit, tiny_recipe, merge):
        recipe = without_clip_positions(tiny_recipe, merge)
        video = some_video(recipe, 2)
        whole = same_as_reference(recipe, video)
        frames = VideoEncoder(dataclasses.replace(recipe, schedule=dataclasses.replace(recipe.schedule, frames=1)))
        each = frames(video.flatten(0, 1)[:, None]).unflatten(0, (2, 12))
        torch.testing.assert_close(unit(each.mean(dim=1)), whole, rtol=0, atol=video_limit(recipe))  # frames stay apart

    @pytest.mark.parametrize(
        "changes",
        [
            {"size_bias": False},
            {"clip_factors": (2, 2, 3), "cross_percent": 0},
            {"intra_percent": 0},
            {"image_r": 0},
            {"image_r": 0, "cross_percent": 0, "intra_percent": 0},
            {"cross_percent": 100, "intra_percent": 100},
        ],
    )
    def test_other_settings(self, same_as_reference, tiny_recipe, changes):
        merge = dataclasses.replace(tiny_recipe.profile.merge, **changes)
        profile = dataclasses.replace(tiny_recipe.profile, merge=merge)
        recipe = prepare(tiny_recipe.checkpoint, profile)
        same_as_reference(recipe, some_video(recipe, 2))

    @pytest.mark.parametrize("factors", [(12,), (3, 4), (3, 2)])
    def test_other_joins_of_plain_clip(self, same_as_reference, tiny_recipe, factors):
        tensors = {n: t for n, t in tiny_recipe.checkpoint.tensors.items() if "TVPt" not in n}
        merge = MergePolicy(1, (4, 9)[: len(factors)], factors, 30, 20)
        profile = dataclasses.replace(tiny_recipe.profile, merge=merge)
        recipe = prepare(from_state_dict(tensors, "plain"), profile)
        same_as_reference(recipe, some_video(recipe, 2))

    def test_joins_without_clip_positions(self, same_as_reference, tiny_recipe):
        merge = MergePolicy(1, (0, 5), (2, 3), 30, 20, clip_position=False)
        recipe = without_clip_positions(tiny_recipe, merge)
        same_as_reference(recipe, some_video(recipe, 2))


class TestFrameMask:
    def test_masks(self, same_as_reference, video_limit, tiny_recipe):
        video = some_video(tiny_recipe, 4)
        torch.manual_seed(1)
        mask = torch.rand(4, 12) < 0.5
        mask[0], mask[1] = True, False
        found = same_as_reference(tiny_recipe, video, mask)
        assert not found[1].any() and found.isfinite().all()
        torch.testing.assert_close(found[0], VideoEncoder(tiny_recipe)(video)[0], rtol=0, atol=video_limit(tiny_recipe))

    def test_a_single_frame(self, video_limit, safe_embedding, tiny_recipe):
        video = some_video(tiny_recipe, 1)
        safe_embedding(tiny_recipe, video)
        frames = ReferenceVideo(tiny_recipe).frame_features(video)
        encoder = VideoEncoder(tiny_recipe)
        for frame in (0, 5, 11):
            mask = torch.arange(12)[None] == frame
            torch.testing.assert_close(encoder(video, mask), frames[:, frame], rtol=0, atol=video_limit(tiny_recipe))


# A turned decision moves an embedding by up to 1e-3, and which one turns is a processor's choice: its order of
# addition. Hence every merge here continues with the decision of float32; what half precision would have decided is
# judged by the margin at which it differs, and what is left of the embedding's distance is rounding. The shares
# of equal decisions are what the margins cannot show: that they are small beside the scores' differences.
@pytest.mark.parametrize("dtype, share", [(torch.float16, 0.95), (torch.bfloat16, 0.9)], ids=["fp16", "bf16"])
@pytest.mark.parametrize("name", SMALL)
def test_half_precision(golden_case, check_optimal, decided, watched, rounding, name, dtype, share):
    case = golden_case(name)
    video = torch.cat([case.video, black(case.video[:1]), frozen(case.video[:1])])
    narrow, wide = Merges(), Merges()
    expected = VideoEncoder(case.recipe).encode(video, None, wide)
    assigns = [assign for assign, _ in wide]
    encoder = decided(VideoEncoder(case.recipe, dtype), assigns)
    found = encoder.encode(video, None, narrow)
    limits = rounding(dtype, case.recipe.backbone.layers)
    assert found.dtype == torch.float32
    assert (one_minus_cosine(found, expected) <= limits.distance).all()
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(len(video)))
    for (assign, _), (metric, n_cls, r) in zip(narrow, watched(case.recipe, video, assigns).metrics, strict=True):
        check_optimal(metric, assign, n_cls, r, within=limits.error)
    same = torch.cat([(a == b).flatten() for (a, _), (b, _) in zip(narrow, wide, strict=True)])
    assert same.float().mean() >= share
    text = TextEncoder(case.recipe, dtype)(case.text_ids.long())
    assert text.dtype == torch.float32
    limits = rounding(dtype, case.recipe.backbone.text_layers)
    assert (one_minus_cosine(text, case.array("text_feat")) <= limits.distance).all()


def test_half_precision_sizes_are_exact(golden_case):
    """Sizes of a bfloat16 model still add up: nothing counts tokens in half precision."""
    recipe = golden_case("tiny_default").recipe
    merges, sizes = Merges(), []
    encoder = VideoEncoder(recipe, torch.bfloat16)
    for block in encoder.blocks:
        block.register_forward_hook(lambda module, args, out: sizes.append(out.size))
    encoder.encode(some_video(recipe, 2), None, merges)
    assert len(sizes) == 12
    for size, schedule in zip(sizes, recipe.schedule.blocks, strict=True):
        assert size.dtype == torch.float32
        assert size.view(2, schedule.clips, -1).sum(dim=(1, 2)).tolist() == [12 * 17] * 2


def test_the_state_is_never_changed(tiny_recipe):
    encoder = VideoEncoder(tiny_recipe)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    video = some_video(tiny_recipe, 2)
    first = encoder(video)
    torch.testing.assert_close(encoder(video), first, rtol=0, atol=0)
    after = encoder.state_dict()
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=0, atol=0)


class TestOpenClip:
    """A small random CLIP of open_clip, nothing merged: the same numbers as open_clip's own."""

    @pytest.fixture(scope="class", params=["quickgelu", "gelu"])
    def clip(self, request):
        from open_clip import CLIP, CLIPTextCfg, CLIPVisionCfg

        torch.manual_seed(42)
        module = CLIP(
            embed_dim=48,
            vision_cfg=CLIPVisionCfg(layers=3, width=128, patch_size=8, image_size=32),
            text_cfg=CLIPTextCfg(context_length=16, vocab_size=200, width=128, heads=2, layers=2),
            quick_gelu=request.param == "quickgelu",
        ).eval()
        with torch.no_grad():
            for parameter in module.parameters():  # open_clip starts biases at zero and norms at one
                parameter.add_(0.05 * torch.randn_like(parameter))
        return request.param, module

    def recipe(self, clip, frames):
        activation, module = clip
        checkpoint = from_state_dict(module.state_dict(), "open_clip")
        profile = Profile("p", "checkpoint", frames, 16, NONE, BatchRange(1, 1, 1))
        return with_activation(prepare(checkpoint, profile), activation)

    @pytest.mark.parametrize("frames", [1, 2, 3])
    def test_video(self, video_limit, clip, frames):
        recipe = self.recipe(clip, frames)
        video = some_video(recipe, 2)
        with torch.no_grad():
            each = clip[1].encode_image(video.flatten(0, 1), normalize=True).unflatten(0, (2, frames))
        expected = unit(each.mean(dim=1))
        torch.testing.assert_close(ReferenceVideo(recipe)(video), expected, rtol=0, atol=video_limit(recipe))
        torch.testing.assert_close(VideoEncoder(recipe)(video), expected, rtol=0, atol=video_limit(recipe))

    def test_text(self, text_limit, clip):
        recipe = self.recipe(clip, 1)
        torch.manual_seed(42)
        ids = torch.randint(1, 198, (5, 16))
        for row, end in enumerate((1, 4, 9, 14, 15)):
            ids[row, end], ids[row, end + 1 :] = 199, 0
        with torch.no_grad():
            expected = clip[1].encode_text(ids, normalize=True)
        torch.testing.assert_close(ReferenceText(recipe)(ids), expected, rtol=0, atol=text_limit(recipe))
        torch.testing.assert_close(TextEncoder(recipe)(ids), expected, rtol=0, atol=text_limit(recipe))
