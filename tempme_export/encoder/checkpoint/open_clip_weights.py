"""`open_clip:MODEL/PRETRAINED` -> tensors, and what open_clip knows about them."""

from torch import Tensor

from tempme_export.encoder.backbone import OPEN_CLIP
from tempme_export.encoder.checkpoint.configs import pixel_statements
from tempme_export.encoder.conventions import Statement
from tempme_export.errors import CheckpointError


def _check_activation(source: str, model: str, tag: str) -> None:
    """open_clip itself only warns when weights meet an activation they were not trained with."""
    import open_clip

    config, weights = open_clip.get_model_config(model), open_clip.get_pretrained_cfg(model, tag)
    if not (config and weights):
        return
    quick, expected = bool(config.get("quick_gelu")), bool(weights.get("quick_gelu"))
    if quick != expected:
        right = f"{model}-quickgelu" if expected else model.removesuffix("-quickgelu")
        raise CheckpointError(
            f"{source}: weights {tag!r} were trained with {'QuickGELU' if expected else 'GELU'}, but {model} has "
            f"{'QuickGELU' if quick else 'GELU'}. Use {OPEN_CLIP}{right}/{tag}."
        )


def read_open_clip(source: str) -> tuple[dict[str, Tensor], tuple[Statement, ...]]:
    """The state dict of a pretrained model, and its activation, heads and pixel statistics.

    Raises CheckpointError for a name that is malformed or unknown, and for other towers than CLIP's.
    """
    model, separator, tag = source.removeprefix(OPEN_CLIP).partition("/")
    if not (model and separator and tag):
        raise CheckpointError(f"{source} is not open_clip:MODEL/PRETRAINED, like open_clip:ViT-B-32-quickgelu/openai.")
    import open_clip

    _check_activation(source, model, tag)
    try:
        module = open_clip.create_model(model, pretrained=tag)
    except Exception as error:  # open_clip passes on whatever its downloader raises
        raise CheckpointError(f"open_clip cannot load {model} with weights {tag!r}: {error}") from error
    blocks = getattr(getattr(getattr(module, "visual", None), "transformer", None), "resblocks", None)
    if blocks is None:
        raise CheckpointError(f"{source} has no vision transformer of CLIP's kind.")
    quick = isinstance(blocks[0].mlp.gelu, open_clip.model.QuickGELU)
    statements = [
        Statement("activation", "quickgelu" if quick else "gelu", source),
        Statement("heads", int(blocks[0].attn.num_heads), source),
        *pixel_statements(getattr(module.visual, "preprocess_cfg", {}), source),
    ]
    return module.state_dict(), tuple(statements)
