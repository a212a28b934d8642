"""Limits that follow from number formats and depths, whatever order a processor adds in."""

import dataclasses
import math

import pytest
import torch


@dataclasses.dataclass(frozen=True)
class Rounding:
    """How far arithmetic in `dtype` may move what a tower of `layers` blocks computes, whatever a processor's order.

    A number meets sixteen roundings in a block (two LayerNorms, six products and six operands that were rounded when
    the weights were converted, the activation, two sums) and as many around the blocks. Each error is uniform within
    half the format's epsilon either way and independent of the others: a variance of a third of its square. Products
    add up in float32, so that their order moves a result's last bit and no more. A softmax passes an error of its
    logits on multiplied by their size, hence the factor two. Emulated processors reach 5 % of these distances in the
    video tower and 40 % in the text tower, whose end token stands alone.

    In float32 and float64 the products' sums round in the type itself: give the tower's `width` in channels. A block
    sums over seven times its width, beside the channels of a head and the tokens; added up one term after another, a
    sum meets half as many roundings as it has terms, weighed by what it had reached: four times the width.
    """

    dtype: torch.dtype
    layers: int
    width: int = 0

    @property
    def error(self):
        """Relative error of a token or an embedding, root mean square; of a score, too, which it bounds."""
        roundings = (16 + 4 * self.width) * (self.layers + 1)
        return torch.finfo(self.dtype).eps * math.sqrt(roundings / 3)

    @property
    def distance(self):
        """1 - cosine of an embedding, given equal decisions: half the squared error."""
        return self.error**2 / 2

    @property
    def difference(self):
        """Between what two orders of the same operations give, given equal decisions: of a token's length, and of any
        number of an embedding, which has length 1 and so no part that differs by more."""
        return math.sqrt(2) * self.error


@pytest.fixture(scope="session")
def rounding():
    """`rounding(dtype, layers, width)` -> Rounding."""
    return Rounding


@pytest.fixture(scope="session")
def video_rounding():
    """`video_rounding(backbone, dtype)`: the Rounding of its video tower, by default in float32."""
    return lambda backbone, dtype=torch.float32: Rounding(dtype, backbone.layers, backbone.width)


@pytest.fixture(scope="session")
def text_rounding():
    """`text_rounding(backbone, dtype)`: the Rounding of its text tower, by default in float32."""
    return lambda backbone, dtype=torch.float32: Rounding(dtype, backbone.text_layers, backbone.text_width)


@pytest.fixture(scope="session")
def mini_rounding():
    """The Rounding in float32 of the towers of examples/mini.pth, 4 and 2 blocks of 64 channels: "video", "text"."""
    return {"video": Rounding(torch.float32, 4, 64), "text": Rounding(torch.float32, 2, 64)}


@pytest.fixture(scope="session")
def sum_error():
    """`sum_error(terms, dtype)`: how far a sum of products may lie from what it is, relative to the sum of their sizes
    (of two unit vectors' products at most 1), whatever the order: a product and an addition round by half an epsilon
    each, and a term meets at most as many additions as there are terms."""
    return lambda terms, dtype=torch.float32: torch.finfo(dtype).eps * (terms + 1) / 2


@pytest.fixture(scope="session")
def unit_error(sum_error):
    """`unit_error(width, dtype)`: how far from 1 the length of `width` numbers may lie that were divided by it. A root
    halves the error of the squares' sum; it rounds itself, and so do the division and, where one multiplies by it, the
    inverse: half an epsilon each."""
    return lambda width, dtype=torch.float32: sum_error(width, dtype) / 2 + 1.5 * torch.finfo(dtype).eps


def _step_error(dtype):
    eps, wide = (torch.finfo(one).eps for one in (dtype, torch.promote_types(dtype, torch.float32)))
    return 2 * eps + 14 * wide + 16 * torch.finfo(torch.float64).eps


@pytest.fixture(scope="session")
def step_error():
    """`step_error(dtype)`: how far a row may lie from float64's after one fused step, relative to its length.

    At most four numbers on a row's way are rounded to its dtype: with what a block adds, with its position, merged,
    normed. Half an epsilon each, they are 2. Sums run in float32 or wider over at most 784 terms, in any order; their
    errors of half an epsilon are independent, so that they grow with the root: 14. What float64 expects errs as well.
    """
    return _step_error
