"""Weights on the steps of 8 bits, against the definition worked out column by column in numpy's float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tempme_export.encoder.model import Linear
from tempme_export.quantization.products import ActivationStats, observe
from tempme_export.quantization.rounding import round_product

STEPS = 64


def draw(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def related(seed, rows, inputs, mean=0.0):
    """Vectors of few directions with a little of all others, as activations are."""
    directions = draw(seed, 3 + inputs // 8, inputs)
    return draw(seed + 1, rows, len(directions)) @ directions + 0.1 * draw(seed + 2, rows, inputs) + mean


def in_steps(weight, original):
    """(weight, original) -> weight in float64 steps of its channels, and their size."""
    scale = original.abs().amax(dim=1, keepdim=True).double() / STEPS
    scale = torch.where(scale == 0, 1.0, scale)
    return weight.double() / scale, scale


def nearest(weight):
    steps, scale = in_steps(weight, weight)
    return steps.round() * scale


def by_definition(weight, moments):
    """Round column after column, each time with all later ones at their best for what was rounded before.

    The first column is that of the largest moment. What is best for the later ones follows from normal equations.
    """
    order = np.argsort(-np.diagonal(moments), kind="stable")
    moments, original = moments[order][:, order], weight[:, order]
    scale = np.abs(original).max(axis=1, keepdims=True) / STEPS
    rounded = original.copy()
    for i in range(len(order)):
        target, done = original[:, i:].copy(), slice(0, i)
        if i:
            lost = original[:, done] - rounded[:, done]
            target += lost @ moments[done, i:] @ np.linalg.inv(moments[i:, i:])
        steps = np.clip(np.rint(target[:, :1] / scale), -STEPS, STEPS)
        end = np.abs(original[:, i : i + 1]) == scale * STEPS
        rounded[:, i : i + 1] = np.where(end, original[:, i : i + 1], steps * scale)
    back = np.empty_like(rounded)
    back[:, order] = rounded
    return back


def damped(moments):
    return moments + 0.01 * np.diagonal(moments).mean() * np.eye(len(moments))


@pytest.mark.parametrize(("outputs", "inputs", "rows"), [(3, 5, 40), (4, 37, 20), (5, 300, 700), (2, 129, 200)])
@pytest.mark.parametrize("bias", [True, False])
def test_by_definition(outputs, inputs, rows, bias):
    x = related(inputs, rows, inputs, mean=2.0)
    product = Linear(draw(4, outputs, inputs), draw(6, outputs) if bias else None)
    about = x.double() - x.double().mean(dim=0) if bias else x.double()
    expected = by_definition(product.weight.double().numpy(), damped((about.T @ about).numpy()))
    found = round_product(product, ActivationStats.of(x)).weight
    assert found.dtype == torch.float32
    different = np.abs(found.double().numpy() - expected) > 1e-3 * np.abs(expected).max() / STEPS
    assert different.mean() < 0.02, "what lies between two steps may turn with the last digits"


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 7), st.integers(1, 33))
def test_on_its_steps_and_the_largest_is_the_last(seed, outputs, inputs):
    rng = np.random.default_rng(seed)
    weight = (rng.standard_normal((outputs, inputs)) * 10.0 ** rng.integers(-4, 4, (outputs, 1))).astype(np.float32)
    product = Linear(torch.from_numpy(weight))
    steps, _ = in_steps(
        round_product(product, ActivationStats.of(related(seed % 1000, 9, inputs))).weight, product.weight
    )
    # A scale is the largest weight over a power of two, exactly; the weight was rounded once to float32.
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=STEPS * 2**-24)
    assert steps.round().abs().amax(dim=1).tolist() == [STEPS] * outputs
    ends = product.weight.abs() == product.weight.abs().amax(dim=1, keepdim=True)
    assert torch.equal(steps.round()[ends], STEPS * product.weight.sign().double()[ends])


def test_what_is_on_its_steps_stays():
    """The file's quantizer, which knows no other rule than the nearest step, gives these very weights."""
    x, product = related(7, 300, 70), Linear(draw(8, 6, 70), draw(9, 6))
    once = round_product(product, ActivationStats.of(x)).weight
    assert torch.equal(nearest(once).float(), once)
    again = round_product(Linear(once, product.bias), ActivationStats.of(x)).weight
    assert torch.equal(again, once)


def test_channels_that_know_nothing_of_each_other_take_the_nearest_step():
    product = Linear(draw(3, 4, 8), draw(5, 4))
    x = 3.0 * torch.cat([torch.eye(8), -torch.eye(8)])
    assert torch.equal(round_product(product, ActivationStats.of(x)).weight, nearest(product.weight).float())


def test_a_product_returns_nearer_what_it_did():
    """On vectors that nobody rounded for, too."""
    product, x = Linear(draw(1, 64, 96), draw(2, 64)), related(3, 1000, 96, mean=1.0)
    seen, fresh = ActivationStats.of(x[:500]), x[500:]
    one = round_product(product, seen)

    def error(weight, bias):
        return float((fresh @ weight.T + bias - product(fresh)).square().mean())

    rounded = nearest(product.weight).float()
    bias = (product.bias + (product.weight - rounded).double() @ seen.mean).float()
    assert error(one.weight, one.bias) < 0.5 * error(rounded, bias)


def test_channels_never_seen_and_weights_of_zero():
    x = related(5, 50, 6)
    x[:, 2] = 0.0
    weight = draw(4, 3, 6)
    weight[1] = 0.0
    one = round_product(Linear(weight, draw(5, 3)), ActivationStats.of(x))
    assert torch.equal(one.weight[1], torch.zeros(6)) and torch.isfinite(one.weight).all()
    torch.testing.assert_close(one.weight[:, 2].double(), nearest(weight)[:, 2], msg="nothing to make up for")
    never = round_product(Linear(weight, draw(5, 3)), ActivationStats.of(torch.zeros(4, 6)))
    assert torch.equal(never.weight, nearest(weight).float())


def test_the_bias_takes_back_the_average_error(sum_error):
    x = draw(3, 1000, 5) + 2
    product = Linear(draw(4, 3, 5), draw(6, 3))
    one = round_product(product, observe(nn.Sequential(product), [x])["0"])
    assert one.bias.dtype == torch.float32
    exact = product(x).double().mean(dim=0)
    rounded = x.double() @ one.weight.double().T
    magnitude = (x.abs() @ product.weight.abs().T + product.bias.abs()).mean(dim=0)
    off = ((rounded + one.bias).mean(dim=0) - exact).abs()
    assert (off <= sum_error(6) * magnitude + 2**-24 * one.bias.abs()).all(), "the product's sums, and the bias itself"
    assert float(((rounded + product.bias).mean(dim=0) - exact).abs().max()) > 1e-3, "there was an error to take back"


def test_no_bias_where_there_is_none():
    assert round_product(Linear(draw(4, 3, 5)), ActivationStats.of(draw(5, 9, 5))).bias is None
