"""Places of the weights in a file, and their names in CLIP.

Trainers wrap a model and so prefix its names; frameworks save it beside other things. Nothing is guessed: whatever is
left over after this is an unknown tensor.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tempme_export.encoder.checkpoint.facts import is_dense, listing
from tempme_export.encoder.checkpoint.hugging_face import from_hugging_face, is_hugging_face
from tempme_export.errors import CheckpointError

# Keys under which frameworks keep a model's weights. The first that holds any is taken.
_KEYS = (
    *("state_dict", "model", "model_state_dict", "model_state", "module", "net", "network", "weights"),
    *("ema", "model_ema", "ema_model", "state_dict_ema", "ema_state_dict", "shadow"),
)
_DEPTH = 8  # a dictionary can hold itself
_COUNTERS = ("n_averaged",)  # of torch's averaged models, beside their tensors
# Attributes that hold the model in a wrapper: parts of a name that no tensor of CLIP has, wherever they stand.
_WRAPPERS = frozenset(
    {
        "clip",
        "module",
        "model",
        "_orig_mod",  # torch.compile
        "_forward_module",  # Lightning Fabric, DeepSpeed
        "_checkpoint_wrapped_module",
        "_fsdp_wrapped_module",
        "text",  # open_clip, where the text tower is a model of its own
    }
)


@dataclass(frozen=True)
class Weights:
    """Named tensors by CLIP's names, and what had to be decided on the way, in words.

    document  the dictionaries on the way to the tensors, outermost first; they may say more about the model
    """

    tensors: dict[str, Tensor]
    document: tuple[Mapping[Any, Any], ...]
    remarks: tuple[str, ...]


def _holders(raw: Mapping[Any, Any], path: str = "") -> Iterator[str]:
    """Every place below known keys that holds tensors, in the order of preference."""
    for key in _KEYS:
        value = raw.get(key)
        if not isinstance(value, dict) or path.count(".") >= _DEPTH:
            continue
        below = list(_holders(value, f"{path}{key}."))
        if below:
            yield from below
        elif any(isinstance(one, Tensor) for one in value.values()):
            yield f"{path}{key}"


def _walk(raw: Mapping[Any, Any], path: str) -> list[Mapping[Any, Any]]:
    documents = [raw]
    for key in path.split("."):
        documents.append(documents[-1][key])
    return documents


def _check_named_tensors(raw: Any, source: str) -> dict[str, Tensor]:
    if not isinstance(raw, dict) or not raw:
        raise CheckpointError(f"{source} holds {type(raw).__name__}, expected a state_dict of named tensors.")
    foreign = [str(k) for k, v in raw.items() if not (isinstance(k, str) and isinstance(v, Tensor))]
    if foreign:
        raise CheckpointError(
            f"{source}: {listing(foreign)} is not a named tensor. Save the model's state_dict() alone, "
            f'or inside {{"state_dict": ...}} or {{"model": ...}}.'
        )
    return raw


def unwrapped(name: str) -> str:
    """A tensor's name without the parts that wrappers added, wherever they stand."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _unprefixed(raw: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    origins: dict[str, str] = {}
    for name in raw:
        first = origins.setdefault(unwrapped(name), name)
        if first != name:
            raise CheckpointError(
                f"{source}: {first} and {name} are both {unwrapped(name)}, expected one model. Save the state_dict() "
                "of the one to use alone."
            )
    return {short: raw[name] for short, name in origins.items()}


def read_layout(raw: Any, source: str) -> Weights:
    """Find the weights in what a file holds, and give them CLIP's names.

    Raises CheckpointError for what is no state dict, for two tensors of one name, and for adapters of PEFT.
    """
    remarks, documents = [], [raw]
    holders = list(_holders(raw)) if isinstance(raw, dict) else []
    if holders:
        taken, *others = holders
        documents = _walk(raw, taken)
        also = f"; it also holds {', '.join(f'{one!r}' for one in others)}, which is not used" if others else ""
        remarks.append(f"weights taken from {taken!r} of the file{also}")
    named = _check_named_tensors(documents[-1], source)
    named = {name: tensor for name, tensor in named.items() if name not in _COUNTERS}
    _check_merged(named, source)
    tensors = _unprefixed(named, source)
    if is_hugging_face(tensors):
        tensors = from_hugging_face(tensors, source)
        remarks.append("Hugging Face's names, converted to CLIP's")
    if (scale := tensors.get("logit_scale")) is not None and scale.numel() == 1 and is_dense(scale):
        tensors["logit_scale"] = scale.reshape(())
    return Weights(tensors, tuple(documents[:-1]), tuple(remarks))


def _check_merged(raw: Mapping[str, Tensor], source: str) -> None:
    adapters = [name for name in raw if ".lora_A." in name or ".base_layer." in name]
    if adapters:
        raise CheckpointError(
            f"{source}: {listing(adapters)} are PEFT's adapters, expected whole weights. Save "
            "model.merge_and_unload().state_dict() instead."
        )
