"""Hugging Face's names of a CLIP -> CLIP's own.

There a block has three projections where CLIP has one matrix of them (query, key, value), and the two towers end in
linear layers [E, D] where CLIP multiplies by matrices [D, E].
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from tempme_export.encoder.checkpoint.facts import is_dense
from tempme_export.errors import CheckpointError

_TOWERS = {"text_model": "", "vision_model": "visual."}
_NAMES = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",  # spelled so there
    "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
    "vision_model.post_layernorm.weight": "visual.ln_post.weight",
    "vision_model.post_layernorm.bias": "visual.ln_post.bias",
}
_TRANSPOSED = {"text_projection.weight": "text_projection", "visual_projection.weight": "visual.proj"}
_IN_BLOCK = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_BLOCK = re.compile(r"(text_model|vision_model)\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_PROJECTION = re.compile(r"self_attn\.([qkv])_proj")
_POSITION_IDS = re.compile(r"(text_model|vision_model)\.embeddings\.position_ids")


def is_hugging_face(tensors: Mapping[str, Tensor]) -> bool:
    """True where the names are Hugging Face's."""
    return any(name.partition(".")[0] in _TOWERS or name in _TRANSPOSED for name in tensors)


def _joined(parts: Mapping[str, Tensor], name: str, source: str) -> Tensor:
    """Query, key and value under each other."""
    missing = [one for one in "qkv" if one not in parts]
    shapes = {tuple(tensor.shape) for tensor in parts.values()}
    odd = any(not is_dense(tensor) or tensor.ndim == 0 for tensor in parts.values())
    if missing or odd or len(shapes) > 1:
        found = f"{', '.join(missing)} missing" if missing else f"shapes {sorted(shapes)}"
        raise CheckpointError(
            f"{source}: {name} is made of q_proj, k_proj and v_proj of one shape; found {found}. Save the whole "
            "model's state_dict()."
        )
    return torch.cat([parts[one] for one in "qkv"])


def _check_position_ids(name: str, ids: Tensor, source: str) -> None:
    """A buffer that only counts; anything else would be other positions."""
    if not is_dense(ids) or ids.flatten().tolist() != list(range(ids.numel())):
        raise CheckpointError(
            f"{source}: {name} does not count 0, 1, 2, ...; positions in another order are not built."
        )


def from_hugging_face(tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """The same weights by CLIP's names. Names that are not Hugging Face's stay as they are.

    Raises CheckpointError where query, key and value of a block do not go together, and for other positions.
    """
    found: dict[str, Tensor] = {}
    projections: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if _POSITION_IDS.fullmatch(name):
            _check_position_ids(name, tensor, source)
        elif name in _TRANSPOSED:
            found[_TRANSPOSED[name]] = tensor.t() if tensor.ndim == 2 and is_dense(tensor) else tensor
        elif (match := _BLOCK.fullmatch(name)) is not None:
            tower, index, part, kind = match.groups()
            block = f"{_TOWERS[tower]}transformer.resblocks.{index}."
            if (projection := _PROJECTION.fullmatch(part)) is not None:
                projections.setdefault(f"{block}attn.in_proj_{kind}", {})[projection[1]] = tensor
            else:
                found[f"{block}{_IN_BLOCK[part]}.{kind}" if part in _IN_BLOCK else name] = tensor
        else:
            found[_NAMES.get(name, name)] = tensor
    return found | {name: _joined(parts, name, source) for name, parts in projections.items()}
