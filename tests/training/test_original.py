"""The update of the weights as the original makes it, written afresh in plain torch, against ours."""

import copy
import math

import pytest
import torch

from tempme_export.media.preprocess import preprocess_for
from tempme_export.training.distributed import World
from tempme_export.training.loss import contrastive_loss
from tempme_export.training.optimizer import make_optimizer
from tempme_export.training.schedule import rate_at
from tempme_export.training.step import Stepper

STEPS, TOTAL, PEAK = 7, 30, 0.02  # a rate so high that every setting shows
CPU = torch.device("cpu")
RISING = 3  # a tenth of the steps
CLIP = 0.5  # the original's is 1; every step here is longer than this


def plain_rate(step):
    """Linear from 0, then half a cosine to 0."""
    if step < RISING:
        return PEAK * step / RISING
    return PEAK * (1 + math.cos(math.pi * (step - RISING) / (TOTAL - RISING))) / 2


def is_trained(name):
    return "LoRA" in name or "Video_Positional" in name


def gradients_of(model, pixels, token_ids):
    """Of LoRA and clip positions, by autograd alone; nothing is left in the model. The same operations on the same
    shapes as ours, and so the same to the bit: what is compared is what becomes of them."""
    named = {name: p for name, p in model.named_parameters() if is_trained(name)}
    video, text = model(pixels, token_ids)
    every = torch.ones(len(text), dtype=torch.bool)
    loss = contrastive_loss(text, video, model.logit_scale.detach().exp(), every)
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(named.items(), found, strict=True)}


@pytest.fixture(scope="module")
def both(recipe, trainable):
    """After STEPS steps: our model, the weights of the plain optimizer, both norms, and what the model began with."""
    model = trainable(recipe, "lora", rank=2)
    model.logit_scale.data.fill_(math.log(100))
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if "Video_Positional" in name:  # zero at the start, where decay shows nothing
            parameter.data.normal_(generator=generator)
    begun = {name: p.detach().clone() for name, p in model.named_parameters()}
    stepper = Stepper(model, make_optimizer(model, 1.0, 0.2), preprocess_for(recipe), World(0, 1, CPU), "fp32", CLIP)
    plain = {name: p.clone().requires_grad_() for name, p in begun.items() if is_trained(name)}
    adamw = torch.optim.AdamW(plain.values(), lr=1.0, betas=(0.9, 0.999), weight_decay=0.2, foreach=False, fused=False)
    norms, first = [], None
    for step in range(STEPS):
        pixels = torch.randint(0, 256, (5, 4, 64, 64, 3), generator=generator, dtype=torch.uint8)
        token_ids = torch.zeros(5, 12, dtype=torch.int64)
        token_ids[:, 0], token_ids[:, 4] = 49406, 49407
        token_ids[:, 1:4] = torch.randint(1, 40000, (5, 3), generator=generator)
        gradients = gradients_of(model, stepper.normalise(pixels), token_ids)
        norm = math.sqrt(sum(float(g.double().pow(2).sum()) for g in gradients.values()))
        for name, parameter in plain.items():
            parameter.grad = gradients[name] * min(1.0, CLIP / norm)
        for group in adamw.param_groups:
            group["lr"] = plain_rate(step)
        adamw.step()
        outcome = stepper(pixels, token_ids, torch.ones(5, dtype=torch.bool), rate_at(step, TOTAL, 0.1, PEAK))
        norms.append((outcome.gradient_norm, norm))
        first = copy.deepcopy(model.state_dict()) if step == 0 else first
    return model, plain, norms, begun, first


def norm_rounding(parameters):
    """Relative error of the length of all gradients in float32: their squares' roundings are independent."""
    return 2**-23 * math.sqrt(sum(p.numel() for p in parameters))


def test_the_weights_after_several_steps(both):
    """Each step rounds each weight a few times: eight halves of 2^-23 of the largest a step are allowed.

    Each also cuts its gradient to a length that two orders of addition disagree on. Adam's mean and its root mean
    square both err by that, relative to the longest of the gradients, at most sqrt(STEPS) times the latter.
    """
    model, plain, _, begun, _ = both
    ours = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    cut = PEAK * 2 * math.sqrt(STEPS) * norm_rounding(plain.values())
    assert ours.keys() == plain.keys() and len(ours) > 8
    for name, expected in plain.items():
        largest = max(float(expected.detach().abs().max()), float(begun[name].abs().max()))
        limit = STEPS * (8 * 2**-24 * largest + cut)
        torch.testing.assert_close(ours[name], expected.detach(), rtol=0, atol=limit)
        assert float((expected.detach() - begun[name]).abs().max()) > 1e-3, name


def test_the_length_of_the_gradient_is_that_of_what_trains(both):
    _, plain, norms, _, _ = both
    rounding = norm_rounding(plain.values())
    assert [found for found, _ in norms] == pytest.approx([norm for _, norm in norms], rel=rounding)
    assert min(norm for _, norm in norms) > CLIP, "every step is cut"


def test_the_first_step_moves_nothing(both):
    _, _, _, begun, first = both
    assert all(torch.equal(first[name], tensor) for name, tensor in begun.items())


def test_the_temperature_stays(both):
    model, _, _, begun, _ = both
    assert torch.equal(model.logit_scale.detach(), begun["logit_scale"])
    assert float(model.logit_scale.detach()) == pytest.approx(math.log(100), abs=2**-22)


def test_everything_else_stays(both):
    model, plain, _, begun, _ = both
    for name, parameter in model.named_parameters():
        assert name in plain or torch.equal(parameter.detach(), begun[name]), name


@pytest.mark.parametrize("temperature", [False, True])
def test_full_trains_every_weight_of_the_towers(recipe, trainable, temperature):
    model = trainable(recipe, "full", train_temperature=temperature)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == (set() if temperature else {"logit_scale"})
