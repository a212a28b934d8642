"""Outlier channels moved from activations into weights, without changing one bit of what a tower computes.

A few channels of a trained CLIP are 20 to 100 times as large as the rest, and one scale for all of them leaves the
rest a few steps of 256. Dividing a channel by s where it is produced and multiplying the weights that read it by s
gives the same product, with a difficulty that is shared (SmoothQuant, Xiao et al. 2023). Here s is a power of two, so
that in floating point the same bits come out: the migrated tower is the tower.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tempme_export.encoder.model import LayerNorm, Linear, TextBlock, VideoBlock, VideoEncoder
from tempme_export.quantization.products import ActivationStats, Encoder

_SHARE = 0.5  # of the difficulty that goes to the weights, SmoothQuant's alpha
_FLOOR = 1e-5
_LARGEST = 2.0**12  # of one division: what a dead channel could otherwise ask for


@dataclass(frozen=True)
class _Step:
    """A product, and the tensors whose rows produce the channels that it reads."""

    name: str
    reads: Linear
    produced_by: tuple[Tensor, ...]


def _after_norm(name: str, norm: LayerNorm, reads: Linear) -> _Step:
    return _Step(name, reads, (norm.weight, norm.bias))


def _after_values(name: str, in_proj: Linear, reads: Linear) -> _Step:
    """Attention mixes tokens and keeps channels apart, so what it returns scales with the rows of the values."""
    width = reads.weight.shape[1]
    assert in_proj.bias is not None, "CLIP's attention has biases"
    return _Step(name, reads, (in_proj.weight[-width:], in_proj.bias[-width:]))


def _steps(tower: Encoder) -> list[_Step]:
    """Steps where a LayerNorm or an attention feeds a product and nothing else; none behind an activation."""
    found = []
    for index, block in enumerate(tower.blocks):
        assert isinstance(block, VideoBlock | TextBlock), "towers are made of blocks"
        attn, mlp = block.attn, block.mlp
        found.append(_after_norm(f"blocks.{index}.attn.in_proj", block.ln_1, attn.in_proj))
        found.append(_after_values(f"blocks.{index}.attn.out_proj", attn.in_proj, attn.out_proj))
        found.append(_after_norm(f"blocks.{index}.mlp.c_fc", block.ln_2, mlp.c_fc))
    if isinstance(tower, VideoEncoder):
        found.append(_after_norm("proj", tower.ln_post, tower.proj))
    else:
        found.append(_after_norm("text_projection", tower.ln_final, tower.text_projection))
    return found


def _factors(seen: ActivationStats, weight: Tensor) -> Tensor:
    """[I]: powers of two by which the input's channels are divided, with a geometric mean near one."""
    factors = seen.largest.clamp(min=_FLOOR) ** _SHARE / weight.abs().amax(dim=0).clamp(min=_FLOOR) ** (1 - _SHARE)
    exponent = torch.log2(factors)
    return torch.exp2((exponent - exponent.mean()).round()).clamp(1 / _LARGEST, _LARGEST)


@torch.no_grad()
def migrate(tower: Encoder, seen: Mapping[str, ActivationStats]) -> dict[str, ActivationStats]:
    """Move outliers of every product whose input allows it, in place.

    tower  a VideoEncoder or TextEncoder in float32 that nobody else uses
    seen   what `observe` found in it
    Returns what `observe` would find now.
    """
    after = dict(seen)
    for step in _steps(tower):
        factors = _factors(seen[step.name], step.reads.weight)
        for tensor in step.produced_by:
            tensor /= factors.unsqueeze(-1) if tensor.ndim == 2 else factors
        step.reads.weight *= factors
        after[step.name] = seen[step.name].divided(factors)
    return after
