"""Configuration files that lie beside a checkpoint: those of Hugging Face's CLIP and of open_clip.

They know what shapes do not tell. One that describes a model of other sizes is refused rather than passed over.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tempme_export.encoder.backbone import HEAD_WIDTH
from tempme_export.encoder.checkpoint.facts import CheckpointFacts
from tempme_export.encoder.conventions import About, Statement, activation_named, statistic
from tempme_export.errors import CheckpointError

_RESAMPLES = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}

# Hugging Face leaves out of a file what is as by default.
_HF_TOWERS: tuple[tuple[str, About, dict[str, Any], dict[str, str]], ...] = (
    (
        "vision_config",
        "heads",
        {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "num_attention_heads": 12},
        {"hidden_size": "width", "num_hidden_layers": "layers", "image_size": "image_size", "patch_size": "patch"},
    ),
    (
        "text_config",
        "text_heads",
        {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "num_attention_heads": 8},
        {
            "hidden_size": "text_width",
            "num_hidden_layers": "text_layers",
            "max_position_embeddings": "context",
            "vocab_size": "vocab",
        },
    ),
)
_OPEN_CLIP_SIZES = {
    "vision_cfg": {"image_size": "image_size", "patch_size": "patch", "width": "width", "layers": "layers"},
    "text_cfg": {"context_length": "context", "vocab_size": "vocab", "width": "text_width", "layers": "text_layers"},
}


def _table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _check_sizes(source: str, table: Mapping[str, Any], names: Mapping[str, str], facts: CheckpointFacts) -> None:
    for key, fact in names.items():
        if key in table and table[key] != getattr(facts, fact):
            raise CheckpointError(
                f"{source}: {key} is {table[key]!r}, but the checkpoint's shapes say {getattr(facts, fact)}. Move the "
                "file away if it is of another model."
            )


def _number(source: str, key: str, value: Any) -> float:
    if type(value) not in (int, float):
        raise CheckpointError(f"{source}: {key} is {value!r}, expected a number. Correct it.")
    return float(value)


def _hugging_face(config: Mapping[str, Any], source: str, facts: CheckpointFacts) -> Iterator[Statement]:
    if config.get("model_type", "clip") != "clip" or not (_table(config.get("vision_config"))):
        return
    _check_sizes(source, config, {"projection_dim": "embed"}, facts)
    for name, heads, defaults, sizes in _HF_TOWERS:
        table = {**_table(config.get(name)), **_table(config.get(f"{name}_dict"))}
        _check_sizes(f"{source} ({name})", table, sizes, facts)

        def of(key: str, name: str = name, table: Mapping[str, Any] = table) -> str:
            default = "" if key in table else ", left out there and so the default"
            return f"{source} ({name}.{key}{default})"

        full = {**defaults, **table}
        yield activation_named(full["hidden_act"], of("hidden_act"))
        eps = _number(source, "layer_norm_eps", full["layer_norm_eps"])
        yield Statement("layer_norm_eps", eps, of("layer_norm_eps"))
        count = int(_number(source, "num_attention_heads", full["num_attention_heads"]))
        yield Statement(heads, count, of("num_attention_heads"))


def _hugging_face_pixels(config: Mapping[str, Any], source: str, facts: CheckpointFacts) -> Iterator[Statement]:
    config = _table(config.get("image_processor")) or config
    if "image_mean" not in config and "image_std" not in config:
        return
    if config.get("do_normalize", True) is not True or config.get("do_resize", True) is not True:
        raise CheckpointError(
            f"{source}: do_normalize or do_resize is off, expected both on: nothing else is built. Correct the file."
        )
    for about in ("mean", "std"):
        if (values := config.get(f"image_{about}")) is not None:
            yield statistic(about, values, f"{source} (image_{about})")
    if (resample := config.get("resample")) is not None:
        named = _RESAMPLES.get(resample, resample) if isinstance(resample, int) else resample
        yield Statement("interpolation", named, f"{source} (resample)")
    size = config.get("size")
    if isinstance(size, dict):
        _check_sizes(f"{source} (size)", size, {"shortest_edge": "image_size"}, facts)
        yield Statement("resize", "shortest" if "shortest_edge" in size else "squash", f"{source} (size)")


def _open_clip(config: Mapping[str, Any], source: str, facts: CheckpointFacts) -> Iterator[Statement]:
    model, pixels = _table(config.get("model_cfg")), _table(config.get("preprocess_cfg"))
    if not model:
        return
    _check_sizes(source, model, {"embed_dim": "embed"}, facts)
    for name, sizes in _OPEN_CLIP_SIZES.items():
        _check_sizes(f"{source} ({name})", _table(model.get(name)), sizes, facts)
    quick = bool(model.get("quick_gelu", False))
    yield Statement("activation", "quickgelu" if quick else "gelu", f"{source} (model_cfg.quick_gelu)")
    width = int(_number(source, "head_width", _table(model.get("vision_cfg")).get("head_width", HEAD_WIDTH)))
    yield Statement("heads", facts.width // max(width, 1), f"{source} (vision_cfg.head_width)")
    if (heads := _table(model.get("text_cfg")).get("heads")) is not None:
        yield Statement("text_heads", heads, f"{source} (text_cfg.heads)")
    yield from pixel_statements(pixels, f"{source} (preprocess_cfg)")


def pixel_statements(pixels: Mapping[str, Any], source: str) -> Iterator[Statement]:
    """Statements of an open_clip preprocessing configuration."""
    for about in ("mean", "std"):
        if (values := pixels.get(about)) is not None:
            yield statistic(about, values, source)
    if (interpolation := pixels.get("interpolation")) is not None:
        yield Statement("interpolation", interpolation, source)
    if (resize := pixels.get("resize_mode")) is not None:
        yield Statement("resize", resize, source)


_Reader = Callable[[Mapping[str, Any], str, CheckpointFacts], Iterator[Statement]]
_READERS: tuple[tuple[str, _Reader], ...] = (
    ("config.json", _hugging_face),
    ("preprocessor_config.json", _hugging_face_pixels),
    ("processor_config.json", _hugging_face_pixels),
    ("open_clip_config.json", _open_clip),
)


def stated_in_folder(checkpoint: Path, facts: CheckpointFacts) -> tuple[Statement, ...]:
    """Statements about a checkpoint in the configurations of its folder.

    Raises CheckpointError for one that cannot be read, or is of a model of other sizes.
    """
    found: list[Statement] = []
    for name, read in _READERS:
        path = checkpoint.parent / name
        if not path.is_file():
            continue
        try:
            config = json.loads(path.read_bytes())
        except (ValueError, OSError, RecursionError) as error:
            raise CheckpointError(
                f"{path} lies beside the checkpoint and cannot be read as JSON: {error}. Correct it, or move it away "
                "if it is of another model."
            ) from error
        found += read(_table(config), f"{name} beside it", facts)
    return tuple(found)
