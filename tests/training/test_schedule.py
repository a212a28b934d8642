"""The learning rate, and which parameters the optimizer decays."""

import math

import pytest
import torch
from torch import nn

from tempme_export.training.optimizer import clamp_scale, decays, make_optimizer
from tempme_export.training.schedule import rate_at, warmup_steps


def test_the_curve():
    rates = [rate_at(step, 10, 0.3, 2.0) for step in range(10)]
    assert rates[:4] == pytest.approx([2 / 3, 4 / 3, 2.0, 2.0])
    assert rates[3:] == pytest.approx([1 + math.cos(math.pi * k / 7) for k in range(7)])
    assert 0 < rates[-1] < 0.11


def test_no_warmup():
    assert rate_at(0, 4, 0.0, 1.0) == 1.0
    assert rate_at(2, 4, 0.0, 1.0) == pytest.approx(0.5)
    assert rate_at(4, 4, 0.0, 1.0) == pytest.approx(0.0, abs=1e-16)


@pytest.mark.parametrize("total", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5, 0.99])
def test_every_step_has_a_positive_rate_up_to_the_peak(total, warmup):
    rising = warmup_steps(total, warmup)
    rates = [rate_at(step, total, warmup, 6e-4) for step in range(total)]
    assert all(0 < rate <= 6e-4 for rate in rates)
    assert rates[:rising] == sorted(rates[:rising])
    assert rates[rising:] == sorted(rates[rising:], reverse=True)
    assert max(rates) == pytest.approx(6e-4)


DECAYED = (
    "visual.conv1.weight",
    "visual.proj",
    "text_projection",
    "visual.transformer.resblocks.0.attn.in_proj_weight",
    "visual.transformer.resblocks.0.attn.out_proj.weight",
    "visual.transformer.resblocks.0.attn.TVPt_LoRA_a",
    "transformer.resblocks.0.attn.TVPt_LoRA_b",
    "transformer.resblocks.0.mlp.c_fc.weight",
    "transformer.resblocks.0.mlp.c_proj.weight",
)
KEPT = (
    "logit_scale",
    "token_embedding.weight",
    "positional_embedding",
    "visual.positional_embedding",
    "visual.class_embedding",
    "visual.transformer.resblocks.1.TVPt_Video_Positional_embedding",
    "visual.ln_pre.weight",
    "ln_final.bias",
    "transformer.resblocks.0.ln_1.weight",
    "transformer.resblocks.0.attn.in_proj_bias",
    "transformer.resblocks.0.mlp.c_fc.bias",
)


def test_what_decays(recipe, trainable):
    """Of a whole model, every kind of parameter by name, in the layout of the checkpoint."""
    names = {
        name: decays(name, parameter)
        for tune in ("lora", "full")
        for name, parameter in trainable(recipe, tune).named_parameters()
    }
    for name in DECAYED:
        assert names[name], name
    for name in KEPT:
        assert not names[name], name


def test_the_optimizer_trains_what_asks_for_it(recipe, trainable):
    model = trainable(recipe, "lora")
    optimizer = make_optimizer(model, 1e-3, 0.2)
    decayed, kept = optimizer.param_groups
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.2, 0.0)
    assert decayed["betas"] == (0.9, 0.98) and decayed["eps"] == 1e-6
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == trained
    assert sum(p.numel() for p in decayed["params"]) == model.counts()["lora"]


def test_a_group_without_parameters_is_none():
    optimizer = make_optimizer(nn.Linear(2, 2, bias=False), 1e-3, 0.2)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.2]


def test_one_step_is_adamw_by_definition():
    layer = nn.Linear(3, 2).double()
    before = {name: p.detach().clone() for name, p in layer.named_parameters()}
    optimizer = make_optimizer(layer, 0.01, 0.2)
    layer(torch.arange(6.0, dtype=torch.float64).reshape(2, 3)).pow(2).sum().backward()
    optimizer.step()
    for name, parameter in layer.named_parameters():
        decay = 1 - 0.01 * (0.2 if name == "weight" else 0.0)
        step = parameter.grad / (parameter.grad.abs() + 1e-6)  # m and v of one step, bias-corrected
        torch.testing.assert_close(parameter.detach(), before[name] * decay - 0.01 * step, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("scale", "expected"), [(5.0, math.log(100)), (1.0, 1.0), (-3.0, -3.0)])
def test_the_temperature_has_a_floor(scale, expected):
    logit_scale = nn.Parameter(torch.tensor(scale, dtype=torch.float64))
    clamp_scale(logit_scale)
    assert float(logit_scale.detach()) == expected
