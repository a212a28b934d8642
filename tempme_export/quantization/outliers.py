"""Random weights with outlier channels, as trained CLIPs have them: random weights alone flatter quantisation.

Outliers of transformers persist: a channel that is large is so in every token, by nearly as much (SmoothQuant, Xiao et
al. 2023, section 3). Here a few channels of the residual stream are given a constant that follows the stream's growth.
Channels that were large with either sign would instead decide alone how much each LayerNorm divides a token by, and
such an encoder loses 0.06 of centred cosine by rounding its token embedding to bfloat16: no measure of anything.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from tempme_export.encoder.checkpoint import from_state_dict
from tempme_export.encoder.profile import Profile
from tempme_export.encoder.recipe import prepare
from tempme_export.encoder.reference import ReferenceText, ReferenceVideo
from tempme_export.media.preprocess import preprocess_for
from tempme_export.parity.selftest import draw_clip, draw_token_ids

CHANNELS = 5
SMALLEST, LARGEST = 20.0, 100.0  # times as large as the other channels of the residual stream

_READS_COLUMNS = ("attn.in_proj_weight", "attn.TVPt_LoRA_a", "mlp.c_fc.weight")


class _Deviations(TorchFunctionMode):
    """Notes how far the channels of a token lie from their mean at every LayerNorm, on average over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[float] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is F.layer_norm:
            self.found.append(float(args[0].var(dim=-1).mean().sqrt()))
        return function(*args, **(kwargs or {}))


@torch.inference_mode()
def _deviations(tower: torch.nn.Module, call: Tensor) -> list[float]:
    with _Deviations() as noted:
        tower(call)
    return noted.found


def _plant(
    state: dict[str, Tensor],
    prefix: str,
    start: str,
    norm: str,
    projection: str,
    times: Tensor,
    deviations: list[float],
) -> None:
    """One tower, in place.

    start       what is added to every token before the first block
    norm        the LayerNorm behind the last block
    projection  what reads it
    times       [D]: each channel's constant in deviations of the stream
    deviations  of the stream at every LayerNorm from the first block's on
    """
    blocks = [f"{prefix}transformer.resblocks.{i}." for i in range(len(deviations) // 2)]
    writes = [prefix + start, *(f"{block}{name}.bias" for block in blocks for name in ("attn.out_proj", "mlp.c_proj"))]
    reads = [*(f"{block}{name}" for block in blocks for name in ("ln_1", "ln_2")), prefix + norm]
    before = 0.0
    for write, deviation in zip(writes, deviations, strict=True):
        state[write] = state[write] + times * (deviation - before)
        before = deviation
    for read in reads:  # undo what the constants do to the mean and the variance
        weight, bias = state[f"{read}.weight"], state[f"{read}.bias"]
        state[f"{read}.weight"] = weight * (1 + times.var(correction=0)).sqrt()
        state[f"{read}.bias"] = bias + weight * times.mean()
    scale = times.abs().clamp(min=1)
    for name, tensor in state.items():
        if name.startswith(tuple(blocks)) and name.endswith(_READS_COLUMNS):
            state[name] = tensor / scale
    state[prefix + projection] = state[prefix + projection] / scale.unsqueeze(-1)


def plant_outliers(state: Mapping[str, Tensor], profile: Profile, seed: int) -> dict[str, Tensor]:
    """A state dict in which a few residual channels of each tower are 20 to 100 times as large as the rest.

    What reads these channels behind a LayerNorm is scaled down, and the LayerNorms undo what the outliers do to mean
    and variance; so attention and MLPs work on nearly what they worked on, and the products' inputs hold the outliers.

    state  as `random_weights.draw_state_dict` gives it for the profile
    """
    generator = torch.Generator().manual_seed(seed)
    recipe = prepare(from_state_dict(dict(state), source="random weights"), profile)
    clip = preprocess_for(recipe)(draw_clip("moving", profile.frames, recipe.backbone.image_size, seed))
    video = _deviations(ReferenceVideo(recipe), torch.from_numpy(clip).unsqueeze(0))
    text = _deviations(ReferenceText(recipe), torch.from_numpy(draw_token_ids(recipe, seed)))

    def times(width: int) -> Tensor:
        drawn = torch.zeros(width)
        sign = torch.randint(0, 2, (CHANNELS,), generator=generator) * 2 - 1
        size = SMALLEST + (LARGEST - SMALLEST) * torch.rand(CHANNELS, generator=generator)
        drawn[torch.randperm(width, generator=generator)[:CHANNELS]] = sign * size
        return drawn

    planted, widths = dict(state), (recipe.backbone.width, recipe.backbone.text_width)
    _plant(planted, "clip.visual.", "ln_pre.bias", "ln_post", "proj", times(widths[0]), video[1:])
    _plant(planted, "clip.", "positional_embedding", "ln_final", "text_projection", times(widths[1]), text)
    return planted
