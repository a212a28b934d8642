"""AdamW as TempMe is trained with it, and which parameters it decays."""

import math
import re

import torch
from torch import Tensor, nn

LARGEST_SCALE = 100.0  # of the logits, as CLIP clamps it

# Tables of vectors are no maps: pulling them to zero forgets rare words and places, and shrinks nothing else.
_NO_MAP = re.compile(r"embedding|prompt|\bln_\w+|\bnorm\w*")


def is_matrix(name: str, parameter: Tensor) -> bool:
    """True for a matrix or a convolution.

    Vectors and scalars (biases, norms, class embedding, temperature) are not, nor are tables of vectors: token and
    positional embeddings, clip positions, prompts.
    """
    return parameter.ndim >= 2 and _NO_MAP.search(name) is None


def make_optimizer(
    model: nn.Module,
    rate: float,
    weight_decay: float,
    decay: str = "all",
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> torch.optim.AdamW:
    """AdamW over the parameters of `model` that require gradients, in their order within the groups.

    decay  what is decayed: "all" that trains, or its "matrices" only
    """
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    decayed = {name for name, parameter in trained if decay == "all" or is_matrix(name, parameter)}
    groups = [
        {"params": [p for name, p in trained if name in decayed], "weight_decay": weight_decay},
        {"params": [p for name, p in trained if name not in decayed], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=rate, betas=betas, eps=eps, fused=True)


@torch.no_grad()
def clamp_scale(logit_scale: Tensor) -> None:
    """Keep the temperature at 1 / LARGEST_SCALE or above, in place; `logit_scale` is the scale's logarithm."""
    logit_scale.clamp_(max=math.log(LARGEST_SCALE))
