"""Weights put on the steps of 8 bits so that what a product returns, and not each weight, stays nearest.

Rounding every weight to its nearest step is best for inputs whose channels know nothing of each other. A transformer's
do, and then an error in one column can be taken back by the columns that are rounded after it (GPTQ, Frantar et al.
2023, algorithm 1; the order by use and the largest weights that stay are ours). On clips and captions that it was not
rounded for, products of the trained examples/mini.pth return 1 to 29 % of the squared error of nearest steps, with 28
calibration clips as with 8; twenty times the damping was worse for all.

ONNX Runtime's own GPTQ, for weights that are unpacked to float, has other steps than its QDQ quantizer: what it rounded
would be rounded again.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tempme_export.encoder.model import Linear
from tempme_export.quantization.products import WEIGHT_STEPS, ActivationStats, products, weight_scales

_DAMPING = 0.01  # of the channels' mean second moment, as in the paper: for directions that no calibration clip shows
_COLUMNS = 128  # rounded before all columns behind them are corrected at once


@dataclass(frozen=True)
class Rounded:
    """A product's weight [O, I] as its 8 bits give it back, and the bias [O] or None that goes with it; float32."""

    weight: Tensor
    bias: Tensor | None


def _costs(seen: ActivationStats, centred: bool) -> Tensor:
    """[I, I] float64: what errors in two columns cost together, from the second moments of the input.

    centred  about its mean, where a bias makes up for what an error does to that
    """
    moments = seen.scatter.double()
    if not centred:
        moments = moments + torch.outer(seen.total, seen.mean)
    damping = _DAMPING * moments.diagonal().mean()
    return moments + torch.eye(len(moments), dtype=moments.dtype) * torch.where(damping > 0, damping, 1.0)


def _influence(costs: Tensor) -> Tensor:
    """[I, I], upper triangular: row i says how columns behind i make up for an error in column i."""
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(costs))
    return torch.linalg.cholesky(inverse, upper=True)


def _fit(weight: Tensor, costs: Tensor) -> Tensor:
    """weight [O, I] on its own steps, the most used columns first."""
    scale = weight_scales(weight).double()
    order = torch.argsort(costs.diagonal(), descending=True, stable=True)
    influence = _influence(costs[order][:, order])
    rest = weight.double()[:, order]
    # The largest weight of a channel is its last step by definition, and stays there: it is what tells the scale.
    ends = rest.abs() == rest.abs().amax(dim=1, keepdim=True)
    last = rest.sign() * WEIGHT_STEPS
    steps = torch.empty_like(rest)
    for start in range(0, rest.shape[1], _COLUMNS):
        block = slice(start, start + _COLUMNS)
        errors = torch.zeros_like(rest[:, block])
        for i in range(start, min(block.stop, rest.shape[1])):
            nearest = (rest[:, i] / scale).round().clamp(-WEIGHT_STEPS, WEIGHT_STEPS)
            steps[:, i] = torch.where(ends[:, i], last[:, i], nearest)
            error = (rest[:, i] - steps[:, i] * scale) / influence[i, i]
            rest[:, i : block.stop] -= torch.outer(error, influence[i, i : block.stop])
            errors[:, i - start] = error
        rest[:, block.stop :] -= errors @ influence[block, block.stop :]
    fitted = torch.empty_like(weight)
    fitted[:, order] = (steps * scale.unsqueeze(-1)).float()
    return fitted


def round_product(product: Linear, seen: ActivationStats) -> Rounded:
    """The weights on 129 steps from -max to max of each output channel, and a bias that takes back their mean error.

    An error that has the same sign in every video is no noise but an offset: the mean brightness alone made up half
    of the error of a ViT-B/32's embeddings (centred cosine 0.989 without the correction, 0.994 with it, at nearest
    steps).

    seen  the product's input
    """
    weight = _fit(product.weight, _costs(seen, centred=product.bias is not None))
    if product.bias is None:
        return Rounded(weight, None)
    lost = (product.weight - weight).double() @ seen.mean
    return Rounded(weight, (product.bias + lost).to(product.bias.dtype))


def put(tower: nn.Module, parameters: Mapping[str, Rounded]) -> None:
    """Give products of a tower other parameters, in place. Products are named as `products` names them."""
    known = products(tower)
    for name, one in parameters.items():
        known[name].weight, known[name].bias = one.weight, one.bias
