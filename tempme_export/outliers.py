"""Random weights with outlier channels, as trained CLIPs have them: random weights alone flatter quantisation."""

from collections.abc import Mapping

import torch
from torch import Tensor

from tempme_export.checkpoint import CLIP_POSITION

CHANNELS = 5
SMALLEST, LARGEST = 20.0, 100.0  # times as large as the other channels of the residual stream

# What writes to the residual stream, by the axis of its channels, and what reads it through a LayerNorm.
_WRITES_ROWS = ("conv1.weight", "attn.out_proj.weight", "attn.out_proj.bias", "mlp.c_proj.weight", "mlp.c_proj.bias")
_WRITES_COLUMNS = ("class_embedding", "positional_embedding", "token_embedding.weight", CLIP_POSITION)
_READS_COLUMNS = ("attn.in_proj_weight", "attn.TVPt_LoRA_a", "mlp.c_fc.weight")
_READS_ROWS = ("proj", "text_projection")
_LAST_NORMS = ("ln_post", "ln_final")


def _along(scale: Tensor, tensor: Tensor, axis: int) -> Tensor:
    shape = [1] * tensor.ndim
    shape[axis] = -1
    return scale.view(shape)


def _planted(name: str, tensor: Tensor, scale: Tensor) -> Tensor:
    """One tensor of a tower, its name without the tower's prefix."""
    if name in _READS_ROWS:
        return tensor / _along(scale, tensor, 0)
    if name.endswith(_READS_COLUMNS):
        return tensor / _along(scale, tensor, -1)
    if name.endswith(_WRITES_ROWS):
        return tensor * _along(scale, tensor, 0)
    if name.endswith(_WRITES_COLUMNS) or name.startswith("ln_pre."):
        return tensor * _along(scale, tensor, -1)
    if name.endswith(".weight") and (".ln_" in name or name.startswith(_LAST_NORMS)):
        return tensor * scale.square().mean().sqrt()
    return tensor


def plant_outliers(state: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """A state dict in which a few residual channels of each tower are 20 to 100 times as large as the rest.

    What writes to these channels is scaled up, what reads them behind a LayerNorm down, and the LayerNorms undo what
    the outliers do to their variance; so attention and MLPs work on what they worked on, and the product's inputs hold
    the outliers.

    state  as `random_weights.draw_state_dict` gives it
    """
    generator = torch.Generator().manual_seed(seed)
    planted = {}
    for prefix, last in (("clip.visual.", "ln_post"), ("clip.", "ln_final")):
        scale = torch.ones_like(state[f"{prefix}{last}.weight"])
        where = torch.randperm(len(scale), generator=generator)[:CHANNELS]
        scale[where] = SMALLEST + (LARGEST - SMALLEST) * torch.rand(CHANNELS, generator=generator)
        for name, tensor in state.items():
            if name.startswith(prefix) and name not in planted:
                planted[name] = _planted(name.removeprefix(prefix), tensor, scale)
    return {name: planted.get(name, tensor) for name, tensor in state.items()}
