"""A CLIP that has learned nothing yet, for training from scratch."""

import torch
from torch import Tensor

from tempme_export.backbone import Backbone
from tempme_export.checkpoint import Checkpoint, Facts, expected_shapes, from_state_dict

_LOGIT_SCALE = 2.6593  # log(1 / 0.07), where CLIP begins


def facts_of(backbone: Backbone) -> Facts:
    """The facts of a plain CLIP of these sizes."""
    return Facts(
        image_size=backbone.image_size,
        patch=backbone.patch,
        width=backbone.width,
        layers=backbone.layers,
        embed=backbone.embed,
        text_width=backbone.text_width,
        text_layers=backbone.text_layers,
        context=backbone.context,
        vocab=backbone.vocab,
        lora_rank=None,
        clip_lengths=(),
    )


def _std(name: str, width: int, layers: int) -> float:
    """Standard deviation of a tensor's normal distribution, as the CLIP paper's code base has it."""
    residual = width**-0.5 * (2 * layers) ** -0.5
    rules = {
        "in_proj_weight": width**-0.5,
        "out_proj.weight": residual,
        "c_fc.weight": (2 * width) ** -0.5,
        "c_proj.weight": residual,
        "token_embedding.weight": 0.02,
        "visual.class_embedding": width**-0.5,
        "visual.positional_embedding": width**-0.5,
        "positional_embedding": 0.01,
        "proj": width**-0.5,
        "text_projection": width**-0.5,
    }
    return next((std for ending, std in rules.items() if name.endswith(ending)), 0.0)


def draw_clip(backbone: Backbone, seed: int) -> Checkpoint:
    """A plain CLIP of these sizes with weights drawn from `seed`, as its training would begin."""
    generator = torch.Generator().manual_seed(seed)
    drawn: dict[str, Tensor] = {}
    for name, shape in expected_shapes(facts_of(backbone)).items():
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
