"""AdamW as CLIP is trained with it, and which parameters it decays."""

import math
import re

import torch
from torch import Tensor, nn

BETAS, EPS = (0.9, 0.98), 1e-6  # CLIP's for vision transformers
LARGEST_SCALE = 100.0  # of the logits, as CLIP clamps it

# Tables of vectors are no maps: pulling them to zero forgets rare words and places, and shrinks nothing else.
_NO_MAP = re.compile(r"embedding|prompt|\bln_\w+|\bnorm\w*")


def decays(name: str, parameter: Tensor) -> bool:
    """Whether weight decay applies: matrices and convolutions only.

    Left out are vectors and scalars (biases, norms, class embedding, temperature) and tables of vectors: token and
    positional embeddings, clip positions, prompts.
    """
    return parameter.ndim >= 2 and _NO_MAP.search(name) is None


def make_optimizer(model: nn.Module, rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW over the parameters of `model` that require gradients, in their order within the two groups."""
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for name, p in trained if decays(name, p)], "weight_decay": weight_decay},
        {"params": [p for name, p in trained if not decays(name, p)], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=rate, betas=BETAS, eps=EPS, fused=True)


@torch.no_grad()
def clamp_scale(logit_scale: Tensor) -> None:
    """Keep the temperature at 1 / LARGEST_SCALE or above, in place; `logit_scale` is the scale's logarithm."""
    logit_scale.clamp_(max=math.log(LARGEST_SCALE))
