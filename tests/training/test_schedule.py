"""The learning rate, and which parameters the optimizer decays."""

import math

import pytest
import torch
from torch import nn

from tempme_export.training.optimizer import clamp_scale, is_matrix, make_optimizer
from tempme_export.training.schedule import rate_at, warmup_steps


def test_the_curve():
    rates = [rate_at(step, 10, 0.3, 2.0) for step in range(10)]
    assert rates[:4] == pytest.approx([0.0, 2 / 3, 4 / 3, 2.0])
    assert rates[3:] == pytest.approx([1 + math.cos(math.pi * k / 7) for k in range(7)])
    assert 0 < rates[-1] < 0.11


def test_the_rise_may_begin_one_step_ahead():
    rates = [rate_at(step, 10, 0.3, 2.0, from_zero=False) for step in range(10)]
    assert rates[:4] == pytest.approx([2 / 3, 4 / 3, 2.0, 2.0])
    assert rates[3:] == [rate_at(step, 10, 0.3, 2.0) for step in range(3, 10)]


def test_no_warmup():
    assert rate_at(0, 4, 0.0, 1.0) == 1.0
    assert rate_at(2, 4, 0.0, 1.0) == pytest.approx(0.5)
    assert rate_at(4, 4, 0.0, 1.0) == pytest.approx(0.0, abs=1e-16)


@pytest.mark.parametrize("total", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("from_zero", [True, False])
def test_it_rises_to_the_peak_and_falls(total, warmup, from_zero):
    """Also of a run so short that the share is less than a step: one step rises all the same."""
    rising = warmup_steps(total, warmup)
    rates = [rate_at(step, total, warmup, 6e-4, from_zero) for step in range(total)]
    idle = int(from_zero and warmup > 0)
    assert rising >= (warmup > 0) and rates[:idle] == [0.0] * idle
    assert all(0 < rate <= 6e-4 for rate in rates[idle:])
    assert rates[:rising] == sorted(rates[:rising])
    assert rates[rising:] == sorted(rates[rising:], reverse=True)
    assert rates[rising:][:1] == pytest.approx([6e-4] if rising < total else [])


MATRICES = (
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
OTHERS = (
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


def test_what_a_matrix_is(recipe, trainable):
    """Of a whole model, every kind of parameter by name, in the layout of the checkpoint."""
    names = {
        name: is_matrix(name, parameter)
        for tune in ("lora", "full")
        for name, parameter in trainable(recipe, tune).named_parameters()
    }
    for name in MATRICES:
        assert names[name], name
    for name in OTHERS:
        assert not names[name], name


@pytest.mark.parametrize("tune", ["lora", "full"])
def test_all_that_trains_decays(recipe, trainable, tune):
    model = trainable(recipe, tune)
    (group,) = make_optimizer(model, 1e-3, 0.2).param_groups
    assert (group["weight_decay"], group["betas"], group["eps"]) == (0.2, (0.9, 0.999), 1e-8)
    assert list(map(id, group["params"])) == [id(p) for p in model.parameters() if p.requires_grad]


def test_matrices_alone_may_decay(recipe, trainable):
    model = trainable(recipe, "lora")
    decayed, kept = make_optimizer(model, 1e-3, 0.2, "matrices").param_groups
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.2, 0.0)
    found = {kind: sum(p.numel() for p in group["params"]) for kind, group in (("lora", decayed), ("rest", kept))}
    assert found == {"lora": model.counts()["lora"], "rest": model.counts()["clip positions"]}


def test_a_group_without_parameters_is_none():
    optimizer = make_optimizer(nn.Linear(2, 2, bias=False), 1e-3, 0.2, "matrices")
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.2]


@pytest.mark.parametrize(
    ("settings", "weight", "bias"),
    [
        ({}, 0.9748127925, -0.5162051955),
        ({"decay": "matrices", "betas": (0.9, 0.98), "eps": 1e-6}, 0.9748410964, -0.5192161977),
    ],
)
def test_three_steps_by_hand(settings, weight, bias):
    """Fixed values, of gradients 1, -0.5 and 2; the second settings are those of examples/mini.pth."""
    layer = nn.Linear(1, 1).double()
    nn.init.constant_(layer.weight, 1.0)
    nn.init.constant_(layer.bias, -0.5)
    optimizer = make_optimizer(layer, 0.01, 0.2, **settings)
    for gradient in (1.0, -0.5, 2.0):
        for parameter in layer.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        optimizer.step()
    assert float(layer.weight.detach()) == pytest.approx(weight, abs=1e-10)
    assert float(layer.bias.detach()) == pytest.approx(bias, abs=1e-10)


@pytest.mark.parametrize(("scale", "expected"), [(5.0, math.log(100)), (1.0, 1.0), (-3.0, -3.0)])
def test_the_temperature_has_a_floor(scale, expected):
    logit_scale = nn.Parameter(torch.tensor(scale, dtype=torch.float64))
    clamp_scale(logit_scale)
    assert float(logit_scale.detach()) == expected
