"""Facts that the shapes of a checkpoint's tensors tell, and the shapes that follow from them (spec section 7).

Canonical names are CLIP's own (`visual.conv1.weight`, ...).
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tempme_export.errors import CheckpointError

LORA_A, LORA_B = "attn.TVPt_LoRA_a", "attn.TVPt_LoRA_b"
CLIP_POSITION = "TVPt_Video_Positional_embedding"
ADAPTER = "mlp.adapter."  # of this package: the original has LoRA only
PROMPT = "attn.prompt"

_LISTED = 8


@dataclass(frozen=True)
class CheckpointFacts:
    """Facts that shapes alone tell. `clip_lengths` maps a block to the clips that enter it, where the checkpoint has
    clip positional embeddings; `lora_rank`, `adapter` (its inner width) and `prompts` (tokens in each block) are None
    where there are none."""

    image_size: int
    patch: int
    width: int
    layers: int
    embed: int
    text_width: int
    text_layers: int
    context: int
    vocab: int
    lora_rank: int | None
    clip_lengths: tuple[tuple[int, int], ...]
    adapter: int | None = None
    prompts: int | None = None

    @property
    def is_plain_clip(self) -> bool:
        """True where nothing of TempMe is inside: nothing that was added to CLIP, and no clip positions."""
        return self.lora_rank is self.adapter is self.prompts is None and not self.clip_lengths


def listing(names: Iterable[str]) -> str:
    """The first names in order, and how many more there are."""
    names = sorted(names)
    shown = ", ".join(names[:_LISTED])
    return f"{shown} and {len(names) - _LISTED} more" if len(names) > _LISTED else shown


def is_dense(tensor: Tensor) -> bool:
    """True for a strided tensor that holds values."""
    return tensor.layout == torch.strided and not tensor.is_meta


def _shape_of(tensors: Mapping[str, Tensor], name: str, dims: int) -> tuple[int, ...]:
    if name not in tensors:
        raise CheckpointError(
            f"{name} is missing: not a CLIP with a vision transformer, or not in the layout of the original. "
            f"Found {len(tensors)} tensors, such as {listing(list(tensors)[:3])}."
        )
    shape = tuple(tensors[name].shape)
    if len(shape) != dims:
        raise CheckpointError(f"{name} has shape {shape}, expected {dims} dimensions.")
    return shape


def _count_blocks(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """Number of distinct blocks; a gap in their numbers shows up as missing and unknown tensors."""
    pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
    blocks = {int(m.group(1)) for name in tensors if (m := pattern.match(name))}
    if not blocks:
        raise CheckpointError(f"no tensor begins with {prefix}0., expected at least one transformer block.")
    return len(blocks)


def _rows(tensors: Mapping[str, Tensor], ending: str, what: str) -> int | None:
    """Rows of the matrices whose names end so; None without any."""
    rows = {t.shape[0] for name, t in tensors.items() if name.endswith(ending) and t.ndim == 2}
    if len(rows) > 1:
        raise CheckpointError(f"{what} differ between blocks: {sorted(rows)}, expected one.")
    return next(iter(rows), None)


def read_facts(tensors: Mapping[str, Tensor]) -> CheckpointFacts:
    """Infer every size from shapes. Raises CheckpointError where an anchor tensor is missing or odd."""
    width, _, patch, _ = _shape_of(tensors, "visual.conv1.weight", 4)
    positions, _ = _shape_of(tensors, "visual.positional_embedding", 2)
    grid = math.isqrt(max(positions - 1, 0))
    if grid * grid + 1 != positions or grid == 0:
        raise CheckpointError(
            f"visual.positional_embedding has {positions} rows, expected 1 + a square number of patches."
        )
    context, text_width = _shape_of(tensors, "positional_embedding", 2)
    clip_lengths = sorted(
        (int(m.group(1)), tensor.shape[1])
        for name, tensor in tensors.items()
        if (m := re.fullmatch(rf"visual\.transformer\.resblocks\.(\d+)\.{CLIP_POSITION}", name)) and tensor.ndim == 4
    )
    return CheckpointFacts(
        image_size=grid * patch,
        patch=patch,
        width=width,
        layers=_count_blocks(tensors, "visual.transformer.resblocks."),
        embed=_shape_of(tensors, "visual.proj", 2)[1],
        text_width=text_width,
        text_layers=_count_blocks(tensors, "transformer.resblocks."),
        context=context,
        vocab=_shape_of(tensors, "token_embedding.weight", 2)[0],
        lora_rank=_rows(tensors, LORA_A, "LoRA ranks"),
        clip_lengths=tuple(clip_lengths),
        adapter=_rows(tensors, f"{ADAPTER}down.weight", "adapter widths"),
        prompts=_rows(tensors, PROMPT, "numbers of prompt tokens"),
    )


def _block_shapes(prefix: str, width: int, facts: CheckpointFacts) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "attn.in_proj_weight": (3 * width, width),
        "attn.in_proj_bias": (3 * width,),
        "attn.out_proj.weight": (width, width),
        "attn.out_proj.bias": (width,),
        "mlp.c_fc.weight": (4 * width, width),
        "mlp.c_fc.bias": (4 * width,),
        "mlp.c_proj.weight": (width, 4 * width),
        "mlp.c_proj.bias": (width,),
    }
    for norm in ("ln_1", "ln_2"):
        shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    if (rank := facts.lora_rank) is not None:
        shapes |= {LORA_A: (rank, width), LORA_B: (3 * width, rank)}
    if (inner := facts.adapter) is not None:
        shapes |= {f"{ADAPTER}down.weight": (inner, width), f"{ADAPTER}down.bias": (inner,)}
        shapes |= {f"{ADAPTER}up.weight": (width, inner), f"{ADAPTER}up.bias": (width,)}
    if facts.prompts is not None:
        shapes[PROMPT] = (facts.prompts, width)
    return {prefix + name: shape for name, shape in shapes.items()}


def expected_shapes(facts: CheckpointFacts) -> dict[str, tuple[int, ...]]:
    """Every tensor a checkpoint of these facts holds, with its shape (spec section 7)."""
    f = facts
    shapes: dict[str, tuple[int, ...]] = {
        "positional_embedding": (f.context, f.text_width),
        "text_projection": (f.text_width, f.embed),
        "logit_scale": (),
        "token_embedding.weight": (f.vocab, f.text_width),
        "ln_final.weight": (f.text_width,),
        "ln_final.bias": (f.text_width,),
        "visual.class_embedding": (f.width,),
        "visual.positional_embedding": ((f.image_size // f.patch) ** 2 + 1, f.width),
        "visual.proj": (f.width, f.embed),
        "visual.conv1.weight": (f.width, 3, f.patch, f.patch),
    }
    for norm in ("ln_pre", "ln_post"):
        shapes |= {f"visual.{norm}.weight": (f.width,), f"visual.{norm}.bias": (f.width,)}
    for i in range(f.layers):
        shapes |= _block_shapes(f"visual.transformer.resblocks.{i}.", f.width, f)
    for i in range(f.text_layers):
        shapes |= _block_shapes(f"transformer.resblocks.{i}.", f.text_width, f)
    for layer, length in f.clip_lengths:
        shapes[f"visual.transformer.resblocks.{layer}.{CLIP_POSITION}"] = (1, length, 1, f.width)
    return shapes
