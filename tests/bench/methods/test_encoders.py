"""Methods run: token counts against the schedules, EViT against its rule written out in numpy."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from tempme_export.bench.methods.catalogue import METHODS, chosen
from tempme_export.bench.methods.derive import derive
from tempme_export.bench.methods.encoders import EvitVideo, class_attention, encoder, keep_attentive
from tempme_export.bench.methods.recipes import with_policy
from tempme_export.bench.methods.schedules import evit_schedule
from tempme_export.encoder.checkpoint import expected_shapes, from_state_dict
from tempme_export.encoder.recipe import folded_weights, prepare
from tempme_export.encoder.reference import MergeLog, ReferenceVideo
from tempme_export.encoder.schedule import MergePolicy
from tempme_export.errors import CheckpointError, UsageError

RUNNING = [method.key for method in METHODS if method.runs]
NOTHING = MergePolicy(0, (), (), 0, 0)


def logged(module, frames):
    log = MergeLog()
    module.frame_features(frames, log)
    return log


def assert_tokens(module, schedule, frames):
    """The running encoder has the schedule's tokens after every block, and the schedule's merges."""
    log, batch = logged(module, frames), len(frames)
    assert [tuple(x.shape[:2]) for x in log.tokens] == [(batch * b.clips, b.tokens_mlp) for b in schedule.blocks]
    assert all(x.shape[:2] == size.shape for x, size in zip(log.tokens, log.sizes, strict=True))
    originals = schedule.frames * schedule.tokens_per_frame
    for size in log.sizes:
        torch.testing.assert_close(size.view(batch, -1).sum(1), torch.full((batch,), float(originals)))
    return log


@pytest.mark.parametrize("key", RUNNING)
def test_running_tokens_are_the_schedules(deep, frames_for, key):
    (method,) = chosen(key)
    schedule, module = derive(method, deep.profile, deep.backbone).schedule, encoder(method, deep)
    assert module.schedule == schedule
    log = assert_tokens(module, schedule, frames_for(deep))
    if method.exports:
        assert [(s.block, s.kind, s.r) for s in log.steps] == [(m.block, m.kind, m.r) for m in schedule.merges]


@pytest.mark.parametrize("key", ["none", "tome", "tempme", "temporal", "evit"])
def test_running_tokens_of_another_depth(shallow, frames_for, key):
    (method,) = chosen(key)
    assert_tokens(
        encoder(method, shallow), derive(method, shallow.profile, shallow.backbone).schedule, frames_for(shallow)
    )


@pytest.mark.parametrize("key", RUNNING)
def test_embeddings_are_unit_vectors_and_differ_between_methods(deep, frames_for, key):
    frames = frames_for(deep)
    found = encoder(chosen(key)[0], deep)(frames)
    assert found.shape == (2, 32)
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(2))
    others = [other for other in RUNNING if other != key]
    assert all((encoder(chosen(o)[0], deep)(frames[:1]) - found[:1]).abs().max() > 1e-5 for o in others[:2])


def test_tempme_is_the_original_recipe_bitwise(deep, frames_for):
    frames = frames_for(deep)
    assert torch.equal(encoder(chosen("tempme")[0], deep)(frames), ReferenceVideo(deep)(frames))


def test_none_encodes_every_frame_on_its_own(deep, frames_for, video_rounding):
    """No merging is a vision transformer per frame: frames change places with their features."""
    module, frames = encoder(chosen("none")[0], deep, dtype=torch.float64), frames_for(deep, 1, torch.float64)
    together = module.frame_features(frames)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    limit = video_rounding(deep.backbone, torch.float64).difference
    torch.testing.assert_close(module.frame_features(frames[:, order]), together[:, order], rtol=0, atol=limit)
    changed = frames.clone()
    changed[:, 4] += 1
    assert [
        bool((a - b).abs().max() > 1e-9) for a, b in zip(module.frame_features(changed)[0], together[0], strict=True)
    ] == [i == 4 for i in range(12)]


def numpy_norm(x, w, name):
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]


def numpy_attention(x, w, heads):
    """One frame [N, D] -> output of the attention [N, D] and its weights [heads, N, N]."""
    d = x.shape[-1]
    q, k, v = np.split(x @ w["attn.in_proj_weight"].T + w["attn.in_proj_bias"], 3, axis=-1)
    outputs, probabilities = [], []
    for head in range(heads):
        part = slice(head * d // heads, (head + 1) * d // heads)
        logits = q[:, part] @ k[:, part].T / math.sqrt(d // heads)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        probabilities.append(weights)
        outputs.append(weights @ v[:, part])
    return np.concatenate(outputs, -1) @ w["attn.out_proj.weight"].T + w["attn.out_proj.bias"], np.stack(probabilities)


def numpy_mlp(x, w):
    h = x @ w["mlp.c_fc.weight"].T + w["mlp.c_fc.bias"]
    return h / (1 + np.exp(-1.702 * h)) @ w["mlp.c_proj.weight"].T + w["mlp.c_proj.bias"]


def numpy_evit_block(x, w, heads, fuses):
    """EViT's rule for one frame [N, D], one patch at a time."""
    out, probabilities = numpy_attention(numpy_norm(x, w, "ln_1"), w, heads)
    x = x + out
    if fuses:
        attentive = [np.mean([probabilities[head][0][i] for head in range(heads)]) for i in range(len(x))]
        ranked = sorted(range(1, len(x)), key=lambda i: (-attentive[i], i))
        keep = math.ceil(0.7 * (len(x) - 1))
        total = sum(attentive[i] for i in ranked[keep:])
        fused = sum(attentive[i] / total * x[i] for i in ranked[keep:])
        x = np.stack([x[0], *(x[i] for i in sorted(ranked[:keep])), fused])
    return x + numpy_mlp(numpy_norm(x, w, "ln_2"), w)


@pytest.mark.parametrize("index", [3, 6, 9, 4])
def test_evit_block_is_its_rule_in_numpy(deep, frames_for, rounding, index):
    """Two heads, so that their mean matters; a block that fuses nothing; from block 6 on a fused token comes in."""
    log = logged(encoder(chosen("evit")[0], deep, dtype=torch.float64), frames_for(deep, 1, torch.float64))
    prefix = f"transformer.resblocks.{index}."
    weights = {
        name.removeprefix(prefix): tensor.numpy()
        for name, tensor in folded_weights(deep, "visual.", torch.float64).items()
        if name.startswith(prefix)
    }
    for before, after in zip(log.tokens[index - 1], log.tokens[index], strict=True):
        expected = numpy_evit_block(before.numpy(), weights, 2, index in (3, 6, 9))
        off, limit = np.linalg.norm(after.numpy() - expected, axis=-1), rounding(torch.float64, 1, 128).difference
        assert (off <= limit * np.linalg.norm(expected, axis=-1)).all()


def test_class_attention_is_a_row_of_the_softmax(rounding):
    generator = torch.Generator().manual_seed(5)
    h = torch.randn(3, 7, 128, generator=generator, dtype=torch.float64)
    weights = {
        "attn.in_proj_weight": torch.randn(384, 128, generator=generator, dtype=torch.float64) / 8,
        "attn.in_proj_bias": torch.randn(384, generator=generator, dtype=torch.float64),
    }
    q, k, _ = torch.nn.functional.linear(h, *weights.values()).view(3, 7, 3, 2, 64).permute(2, 0, 3, 1, 4)
    logits = q @ k.transpose(-1, -2) / 8
    expected = logits.softmax(-1).mean(1)[:, 0]
    found = class_attention(h, k, weights)
    # A softmax passes on an error of its logits, which is relative to their size.
    limit = rounding(torch.float64, 0, 128).difference * float(logits.abs().max())
    torch.testing.assert_close(found, expected[:, 1:], rtol=0, atol=limit)
    assert (found.sum(1) < 1).all(), "the class token's own share is left out"


def test_evit_that_keeps_everything_is_no_merging(deep, frames_for):
    frames = frames_for(deep)
    everything = EvitVideo(deep, evit_schedule(deep.profile.frames, deep.backbone, keep=1.0))
    assert torch.equal(everything(frames), ReferenceVideo(with_policy(deep, NOTHING, "plain"))(frames))


def test_evit_heeds_the_frame_mask(deep, frames_for):
    module, frames = encoder(chosen("evit")[0], deep), frames_for(deep)
    mask = torch.ones(2, 12)
    mean = 12 * torch.finfo(torch.float32).eps  # over 12 frames, of numbers of at most 1, in any order
    torch.testing.assert_close(module(frames, mask), module(frames), rtol=0, atol=mean)
    mask[:, 3:] = 0
    assert (module(frames, mask) - module(frames)).abs().max() > 1e-4


def test_equal_patches_stay_by_lower_index():
    """Many of them: sorts that are not stable are often stable for a few."""
    x = torch.arange(65.0)[None, :, None].expand(1, 65, 2)
    kept, size = keep_attentive(x, torch.ones(1, 65), torch.full((1, 64), 2.0**-6), 60)
    assert kept[0, :, 0].tolist() == [*range(61), 62.5]  # the fused one is the mean of 61, 62, 63 and 64
    assert size.tolist() == [[1.0] * 61 + [4]]


def test_kept_patches_keep_their_order_and_sizes_add_up():
    x = torch.tensor([9.0, 1, 2, 3, 4])[None, :, None]
    attentive = torch.tensor([[0.2, 0.1, 0.05, 0.3]])
    kept, size = keep_attentive(x, torch.tensor([[1.0, 2, 3, 4, 5]]), attentive, 2)
    torch.testing.assert_close(kept[0, :, 0], torch.tensor([9, 1, 4, (2 * 0.1 + 3 * 0.05) / 0.15]))
    assert size.tolist() == [[1, 2, 5, 7]]


def test_others_without_attention_give_a_finite_token():
    attentive = torch.tensor([[0.5, 0.0, 0.0]])
    kept, _ = keep_attentive(torch.ones(1, 4, 2), torch.ones(1, 4), attentive, 1)
    assert kept[0, 2].tolist() == [0, 0]


@pytest.mark.parametrize("key", ["reduction", "diffrate", "sta", "testa"])
def test_what_does_not_run_has_no_encoder(deep, key):
    with pytest.raises(UsageError, match="does not run here"):
        encoder(chosen(key)[0], deep)


def test_evit_refuses_prompts(deep):
    facts = dataclasses.replace(deep.checkpoint.facts, prompts=2)
    tensors = {name: torch.zeros(shape) for name, shape in expected_shapes(facts).items()}
    prompted = prepare(from_state_dict(tensors, "prompted"), deep.profile)
    with pytest.raises(CheckpointError, match=r"2 prompt tokens.*Leave evit out"):
        encoder(chosen("evit")[0], prompted)


def test_nothing_is_mutated(deep, frames_for):
    before = ReferenceVideo(deep)(frames_for(deep))
    for key in RUNNING:
        encoder(chosen(key)[0], deep)
    assert torch.equal(ReferenceVideo(deep)(frames_for(deep)), before)


def test_precision_is_that_asked_for(shallow, frames_for):
    for key in ("tome", "evit"):
        assert encoder(chosen(key)[0], shallow, dtype=torch.float64)(frames_for(shallow)).dtype == torch.float64
