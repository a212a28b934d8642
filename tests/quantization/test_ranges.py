"""From what was observed to ranges, by each method."""

import pytest
import torch
from torch import nn

from tempme_export.encoder.model import Linear
from tempme_export.errors import UsageError
from tempme_export.quantization.products import Range, observe, products
from tempme_export.quantization.ranges import DEFAULT_METHOD, METHODS, check_method, choose_ranges


@pytest.fixture(scope="module")
def tower():
    """Two products, the second behind a ReLU."""
    generator = torch.Generator().manual_seed(0)
    layers = [Linear(torch.randn(6, 5, generator=generator)), nn.ReLU(), Linear(torch.randn(2, 6, generator=generator))]
    return nn.Sequential(*layers)


@pytest.fixture(scope="module")
def calls():
    """Normal values with one that is 40 times as large as the rest."""
    calls = list(torch.randn(5, 1, 60000, 5, generator=torch.Generator().manual_seed(1)))
    calls[0][0, 17, 2] = 40.0  # in the first, because a histogram that must grow gets more bins, and takes as long
    return calls


def test_the_whole_range(tower, calls):
    found = choose_ranges(tower, observe(tower, calls), calls, "minmax")
    assert list(found) == list(products(tower))
    assert found["0"] == Range(min(float(call.min()) for call in calls), 40.0)
    assert found["2"].lowest == 0 and found["2"].highest > 10


@pytest.mark.parametrize("method", ["percentile", "entropy"])
def test_methods_that_cut_off(tower, calls, method, capsys):
    seen = observe(tower, calls)
    whole, found = (choose_ranges(tower, seen, calls, one) for one in ("minmax", method))
    assert found.keys() == whole.keys()
    for name, one in found.items():
        assert one.lowest <= 0 <= one.highest
        assert whole[name].lowest - 0.1 <= one.lowest and one.highest <= whole[name].highest + 0.1
    assert 2 < found["0"].highest < 20, "the one value beyond all others is cut off"
    assert found["0"].lowest < -2
    assert capsys.readouterr() == ("", "")
    assert not any(module._forward_pre_hooks for module in tower.modules())


def test_default():
    assert DEFAULT_METHOD in METHODS
    for method in METHODS:
        check_method(method)


@pytest.mark.parametrize("method", ["max", "", "MINMAX"])
def test_unknown(tower, calls, method):
    with pytest.raises(
        UsageError, match=f"--ranges: found '{method}', expected one of minmax, percentile, entropy"
    ) as caught:
        choose_ranges(tower, {}, calls, method)
    assert caught.value.exit_code == 2
