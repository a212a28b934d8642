"""A CLIP that has learned nothing yet, for training from scratch."""

import torch
from torch import Tensor

from tempme_export.encoder.backbone import Backbone
from tempme_export.encoder.checkpoint import CLIP_POSITION, Checkpoint, expected_shapes, from_state_dict
from tempme_export.encoder.profile import Profile
from tempme_export.encoder.random_weights import facts_of

_LOGIT_SCALE = 2.6593  # log(1 / 0.07), where CLIP begins


# Tokens are of length 1 per channel behind the first LayerNorm. Where positions are a tenth of that, as CLIP begins,
# the small backbone had learned nothing of where a shape was after 300 steps; like this it had after 150.
_POSITION_STD, _CLIP_POSITION_STD, _TEXT_POSITION_STD = 1.0, 0.7, 0.03


def _std(name: str, width: int, layers: int) -> float:
    """Standard deviation of a tensor's normal distribution; CLIP's own, but for the positions."""
    residual = width**-0.5 * (2 * layers) ** -0.5
    rules = {
        "in_proj_weight": width**-0.5,
        "out_proj.weight": residual,
        "c_fc.weight": (2 * width) ** -0.5,
        "c_proj.weight": residual,
        "token_embedding.weight": 0.02,
        CLIP_POSITION: _CLIP_POSITION_STD,
        "visual.class_embedding": _POSITION_STD,
        "visual.positional_embedding": _POSITION_STD,
        "positional_embedding": _TEXT_POSITION_STD,
        "proj": width**-0.5,
        "text_projection": width**-0.5,
    }
    return next((std for ending, std in rules.items() if name.endswith(ending)), 0.0)


def draw_clip(backbone: Backbone, seed: int, profile: Profile | None = None) -> Checkpoint:
    """A CLIP of these sizes with weights drawn from `seed`, as its training would begin.

    profile  whose clip positions are drawn too; None: a plain CLIP
    """
    generator = torch.Generator().manual_seed(seed)
    drawn: dict[str, Tensor] = {}
    for name, shape in expected_shapes(facts_of(backbone, profile)).items():
        visual = name.startswith("visual.")
        width, layers = (backbone.width, backbone.layers) if visual else (backbone.text_width, backbone.text_layers)
        if name == "logit_scale":
            drawn[name] = torch.tensor(_LOGIT_SCALE)
        elif ".ln_" in f".{name}" and name.endswith("weight"):
            drawn[name] = torch.ones(shape)
        elif name == "visual.conv1.weight":
            drawn[name] = torch.randn(shape, generator=generator) * (3 * backbone.patch**2) ** -0.5
        else:
            drawn[name] = torch.randn(shape, generator=generator) * _std(name, width, layers)
    source = f"{backbone.name}, drawn from seed {seed}"
    return from_state_dict({f"clip.{name}": tensor for name, tensor in drawn.items()}, source, backbone.activation)
