"""Sizes and conventions of a CLIP backbone, read from an open_clip model config.

The config files are read directly: importing open_clip costs seconds and is not needed for numbers.
"""

import difflib
import functools
import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

from tempme_export.errors import BackendError, ProfileError

OPEN_CLIP = "open_clip:"  # begins the name of weights that open_clip brings
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
HEAD_WIDTH = 64
# Vision towers with heads of another width, which shapes do not tell: (width, layers) -> name in open_clip's configs.
OTHER_HEADS = {(1280, 32): "ViT-H"}

Activation = Literal["quickgelu", "gelu"]
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)

# A CLIP small enough to be trained from nothing on a processor, in an open_clip config's terms. CLIP's own vocabulary
# and byte-pair encoding, so that any sentence can be a query.
_OWN: dict[str, dict[str, Any]] = {
    "tempme-mini": {
        "embed_dim": 128,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 64, "layers": 4, "width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
    }
}

# What open_clip's configs say of the backbones of the shipped profiles, for a machine that measures without it.
_BASE = {"embed_dim": 512, "quick_gelu": True}
_BASE_TEXT = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12}
_BASE_VISION = {"image_size": 224, "layers": 12, "width": 768}
_KNOWN: dict[str, dict[str, Any]] = {
    "ViT-B-32-quickgelu": {**_BASE, "vision_cfg": {**_BASE_VISION, "patch_size": 32}, "text_cfg": _BASE_TEXT},
    "ViT-B-16-quickgelu": {**_BASE, "vision_cfg": {**_BASE_VISION, "patch_size": 16}, "text_cfg": _BASE_TEXT},
    "ViT-L-14-quickgelu": {
        "embed_dim": 768,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 224, "layers": 24, "width": 1024, "patch_size": 14},
        "text_cfg": {**_BASE_TEXT, "width": 768, "heads": 12},
    },
}

_TOP_KEYS = {"embed_dim", "quick_gelu", "vision_cfg", "text_cfg"}
_VISION_KEYS = {"image_size", "layers", "width", "patch_size", "head_width"}
_TEXT_KEYS = {"context_length", "vocab_size", "width", "heads", "layers"}


@dataclass(frozen=True)
class Backbone:
    """One CLIP model: a vision transformer with a class token and a causal text transformer.

    Sizes are in pixels (`image_size`, `patch`), channels (`width`, `embed`) and counts.
    `tokenizer` is the open_clip model whose tokenizer the text tower was trained with; None when unknown.
    """

    name: str
    image_size: int
    patch: int
    width: int
    layers: int
    heads: int
    embed: int
    text_width: int
    text_layers: int
    text_heads: int
    context: int
    vocab: int
    activation: Activation = "quickgelu"
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    tokenizer: str | None = None

    @property
    def tokens_per_frame(self) -> int:
        """P of the spec: one class token and one token per patch."""
        return (self.image_size // self.patch) ** 2 + 1


def _config_folder() -> Path | None:
    spec = find_spec("open_clip")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations))) / "model_configs"


def open_clip_config(name: str) -> dict[str, Any]:
    """The open_clip model config called `name`, or this package's own of that name, as the dictionary it is stored as.

    Raises ProfileError for an unknown name, and BackendError without open_clip for any but the shipped profiles'.
    """
    if name in _OWN:
        return _OWN[name]
    folder = _config_folder()
    if folder is None:
        if name in _KNOWN:
            return _KNOWN[name]
        raise BackendError(
            f"backbone {name!r} needs open_clip, which is not installed. Run: pip install 'tempme-export[export]'"
        )
    path = folder / f"{name}.json"
    if not path.is_file():
        known = sorted(p.stem for p in path.parent.glob("*.json"))
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"Did you mean {' or '.join(near)}?" if near else "See open_clip.list_models()."
        raise ProfileError(f"found backbone {name!r}, expected an open_clip model config. {hint}")
    config: dict[str, Any] = json.loads(path.read_text())
    return config


@functools.cache
def open_clip_backbone(name: str) -> Backbone:
    """The backbone described by the open_clip model config `name`.

    Raises ProfileError for an unknown name and for any architecture other than a plain CLIP
    with a class token, learned positions and an MLP four times as wide as the residual stream.
    """
    config = open_clip_config(name)
    vision, text = config.get("vision_cfg", {}), config.get("text_cfg", {})
    foreign = sorted(
        [*config.keys() - _TOP_KEYS]
        + [f"vision_cfg.{k}" for k in vision.keys() - _VISION_KEYS]
        + [f"text_cfg.{k}" for k in text.keys() - _TEXT_KEYS]
    )
    if foreign or not isinstance(vision.get("layers"), int) or "patch_size" not in vision:
        raise ProfileError(
            f"backbone {name!r} is not a plain CLIP vision transformer with a class token "
            f"(its open_clip config sets {', '.join(foreign) or 'a convolutional tower'}). "
            "Use one like ViT-B-32-quickgelu, ViT-B-16 or ViT-L-14."
        )
    return Backbone(
        name=name,
        image_size=vision["image_size"],
        patch=vision["patch_size"],
        width=vision["width"],
        layers=vision["layers"],
        heads=vision["width"] // vision.get("head_width", HEAD_WIDTH),
        embed=config["embed_dim"],
        text_width=text["width"],
        text_layers=text["layers"],
        text_heads=text["heads"],
        context=text["context_length"],
        vocab=text["vocab_size"],
        activation="quickgelu" if config.get("quick_gelu", False) else "gelu",
        tokenizer=name,
    )
