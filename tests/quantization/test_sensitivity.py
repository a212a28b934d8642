"""What each product costs alone, measured from the middle of a tower, is what the whole tower says."""

import copy
import math

import pytest
import torch
from torch.nn.functional import cosine_similarity

from tempme_export.encoder.model import Merges, TextEncoder, VideoEncoder
from tempme_export.quantization.products import hooked, observe, products
from tempme_export.quantization.ranges import choose_ranges
from tempme_export.quantization.rounding import Rounded, round_product
from tempme_export.quantization.sensitivity import (
    Sensitivity,
    centred_loss,
    choose_in_float,
    costliest_first,
    embed,
    measure,
    rounded,
)


def case(tower, calls):
    seen = observe(tower, calls)
    parameters = {name: round_product(product, seen[name]) for name, product in products(tower).items()}
    return tower, parameters, choose_ranges(tower, seen, calls, "minmax"), calls


@pytest.fixture(scope="module")
def video(planted_recipe, video_calls):
    return case(VideoEncoder(planted_recipe).eval(), video_calls(planted_recipe)[:3])


@pytest.fixture(scope="module")
def text(planted_recipe, calibration_of):
    return case(TextEncoder(planted_recipe).eval(), calibration_of(planted_recipe).text_calls())


def chosen(tower, parameters, ranges, calls, sensitivities, limit=1.0):
    """`choose_in_float` of a tower in which nothing is rounded yet."""
    return choose_in_float(tower, parameters, ranges, calls, embed(tower, calls), sensitivities, limit)


@torch.inference_mode()
def by_definition(tower, parameters, ranges, calls, names):
    """The whole tower run with some products rounded."""
    expected, tower = torch.cat([tower(call) for call in calls]), copy.deepcopy(tower)
    for name, product in products(tower).items():
        if name in names:
            product.weight, product.bias = parameters[name].weight, parameters[name].bias
    with hooked(tower, lambda name, x: ranges[name].rounded(x) if name in names else None):
        found = torch.cat([tower(call) for call in calls])
    mean = expected.double().mean(dim=0)
    return 1 - float(cosine_similarity(expected - mean, found - mean, dim=-1).median())


@pytest.mark.parametrize("tower", ["video", "text"])
def test_each_product_alone(tower, request):
    one = request.getfixturevalue(tower)
    before = {name: tensor.clone() for name, tensor in one[0].state_dict().items()}
    found = measure(*one)
    assert {each.product for each in found} == set(products(one[0]))
    assert [each.cost for each in found] == sorted((each.cost for each in found), reverse=True)
    for each in found:
        assert each.cost == by_definition(*one, [each.product]), each.product
    assert found[0].cost > 0
    after = one[0].state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items()), "the tower is as it was"
    assert not any(module._forward_pre_hooks for module in one[0].modules())


def test_a_loss_of_nothing_and_of_everything():
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    assert centred_loss(x, x) == pytest.approx(0, abs=1e-6)
    mean = x.mean(dim=0)
    assert centred_loss(x, 2 * mean - x) == pytest.approx(2)
    turned = x.clone()
    turned[:2] = 2 * mean - x[:2]
    assert centred_loss(x, turned) == pytest.approx(0, abs=1e-6), "the median: two of five may turn"
    assert math.isnan(centred_loss(x, torch.full_like(x, torch.nan)))


def test_a_tower_within_its_limit_stays_whole(text):
    found, cost = chosen(*text, measure(*text))
    assert found == ()
    assert cost == by_definition(*text, list(products(text[0])))


def test_the_costliest_go_first_until_the_limit_holds(text):
    sensitivities = measure(*text)
    names = [one.product for one in sensitivities]
    whole = by_definition(*text, names)
    found, cost = chosen(*text, sensitivities, limit=whole / 2)
    assert 0 < len(found) < len(names) and list(found) == names[: len(found)]
    assert cost <= whole / 2 < by_definition(*text, names[len(found) - 1 :]), "not one more than it takes"
    assert cost == by_definition(*text, names[len(found) :])


def test_a_product_that_gives_nan_goes_first_and_alone(text):
    tower, parameters, ranges, calls = text
    name = "text_projection"
    broken = {**parameters, name: Rounded(torch.full_like(parameters[name].weight, math.nan), None)}
    found, cost = chosen(tower, broken, ranges, calls, measure(tower, broken, ranges, calls))
    assert found == (name,) and 0 < cost < 1


def test_what_costs_much_alone_stays_rounded_where_the_tower_keeps_its_limit(text):
    """Alone it may have met a decision that nearly ties."""
    names = list(products(text[0]))
    made = [Sensitivity(names[0], 0.9), *(Sensitivity(name, 0.0) for name in names[1:])]
    assert chosen(*text, made)[0] == ()


def test_what_cannot_be_told_comes_first():
    costs = [0.5, math.nan, 0.1, math.nan, -0.2, 0.9]
    found = [one.cost for one in costliest_first([Sensitivity("proj", cost) for cost in costs])]
    assert all(map(math.isnan, found[:2])) and found[2:] == [0.9, 0.5, 0.1, -0.2]


def test_nothing_of_one_trial_is_kept_for_the_next(video):
    """Merged tokens of every trial together would take gigabytes."""
    kept = []

    class Counting(Merges):
        def append(self, merge):
            super().append(merge)
            kept.append(len(self))

    tower, *rest = video
    watched = copy.copy(tower)
    watched.stages = lambda merges: tower.stages(Counting())
    measure(watched, *rest)
    merges = len(tower.schedule.merges)
    assert len(kept) > 5 * merges and max(kept) <= merges


def test_a_limit_that_nothing_keeps_leaves_all_in_float(text):
    found, cost = chosen(*text, measure(*text), limit=-1.0)
    assert set(found) == set(products(text[0]))
    assert cost == pytest.approx(0, abs=1e-6)


def test_an_error_leaves_the_tower_as_it_was(text):
    tower, parameters, ranges, _ = text
    weight = tower.text_projection.weight
    with pytest.raises(RuntimeError, match="enough"), rounded(tower, parameters, ranges):
        assert tower.text_projection.weight is not weight
        raise RuntimeError("enough")
    assert tower.text_projection.weight is weight
    assert not any(module._forward_pre_hooks for module in tower.modules())
