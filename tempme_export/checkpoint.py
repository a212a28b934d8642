"""A checkpoint file -> named float32 tensors and the facts their shapes tell (spec section 7).

Canonical names are CLIP's own (`visual.conv1.weight`, ...); the original's `clip.` and a `module.` prefix are
taken off. Nothing is dropped: every tensor is known, has the expected shape, and is finite, or loading fails.
"""

import hashlib
import math
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tempme_export.backbone import Activation
from tempme_export.errors import CheckpointError
from tempme_export.hashing import file_sha256
from tempme_export.profile import Profile, parse_profile

LORA_A, LORA_B = "attn.TVPt_LoRA_a", "attn.TVPt_LoRA_b"
CLIP_POSITION = "TVPt_Video_Positional_embedding"
ADAPTER = "mlp.adapter."  # of this package: the original has LoRA only
PROMPT = "attn.prompt"
OPEN_CLIP = "open_clip:"

_WRAPPERS = ("state_dict", "model")
_JIT_FACTS = ("input_resolution", "context_length", "vocab_size")  # scalars in OpenAI's own state dicts
_LISTED = 8


@dataclass(frozen=True)
class Facts:
    """What shapes alone tell. `clip_lengths` maps a block to the clips that enter it, where the checkpoint
    has clip positional embeddings; `lora_rank`, `adapter` (its inner width) and `prompts` (tokens in each block)
    are None where there are none."""

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
        """Nothing of TempMe inside: nothing that was added to CLIP, and no clip positions."""
        return self.lora_rank is self.adapter is self.prompts is None and not self.clip_lengths


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint. `sha256` is of the file, or of the tensors where there is no file.
    `activation` and `profile` are None where the source does not say; files of `tempme-train` hold their profile."""

    source: str
    sha256: str
    tensors: Mapping[str, Tensor]
    facts: Facts
    activation: Activation | None = None
    profile: Profile | None = None


def _listing(names: Iterable[str]) -> str:
    names = sorted(names)
    shown = ", ".join(names[:_LISTED])
    return f"{shown} and {len(names) - _LISTED} more" if len(names) > _LISTED else shown


def _shape_of(tensors: Mapping[str, Tensor], name: str, dims: int) -> tuple[int, ...]:
    if name not in tensors:
        raise CheckpointError(
            f"{name} is missing: not a CLIP with a vision transformer, or not in the layout of the original. "
            f"Found {len(tensors)} tensors, such as {_listing(list(tensors)[:3])}."
        )
    shape = tuple(tensors[name].shape)
    if len(shape) != dims:
        raise CheckpointError(f"{name} has shape {shape}, expected {dims} dimensions.")
    return shape


def _count_blocks(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """How many different blocks there are; a gap in their numbers shows up as missing and unknown tensors."""
    pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
    blocks = {int(m.group(1)) for name in tensors if (m := pattern.match(name))}
    if not blocks:
        raise CheckpointError(f"no tensor begins with {prefix}0., expected at least one transformer block.")
    return len(blocks)


def _rows(tensors: Mapping[str, Tensor], ending: str, what: str) -> int | None:
    """Rows of the matrices whose names end so; None without any."""
    rows = {t.shape[0] for name, t in tensors.items() if name.endswith(ending) and t.ndim == 2}
    if len(rows) > 1:
        raise CheckpointError(f"{what} differ between blocks: {sorted(rows)}; expected one.")
    return next(iter(rows), None)


def read_facts(tensors: Mapping[str, Tensor]) -> Facts:
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
    return Facts(
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


def _block_shapes(prefix: str, width: int, facts: Facts) -> dict[str, tuple[int, ...]]:
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


def expected_shapes(facts: Facts) -> dict[str, tuple[int, ...]]:
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


def _canonical_names(raw: Any, source: str) -> dict[str, Tensor]:
    """Unwrap, check that it is names and tensors, and take off the prefixes."""
    if isinstance(raw, dict):
        raw = next((raw[key] for key in _WRAPPERS if isinstance(raw.get(key), dict)), raw)
    if not isinstance(raw, dict) or not raw:
        raise CheckpointError(f"{source} holds {type(raw).__name__}, expected a state_dict of named tensors.")
    foreign = [str(k) for k, v in raw.items() if not (isinstance(k, str) and isinstance(v, Tensor))]
    if foreign:
        raise CheckpointError(
            f"{source}: {_listing(foreign)} is not a named tensor. Save the model's state_dict() alone, "
            f'or inside {{"state_dict": ...}} or {{"model": ...}}.'
        )
    for prefix in ("module.", "clip."):
        if all(name.startswith(prefix) for name in raw):
            raw = {name.removeprefix(prefix): tensor for name, tensor in raw.items()}
    return raw


def _declared_profile(raw: Any, source: str) -> Profile | None:
    """The profile beside the tensors, {"state_dict": ..., "profile": ...}, where there is one."""
    declared = raw.get("profile") if isinstance(raw, dict) else None
    if declared is None or isinstance(declared, Tensor):
        return None
    if not isinstance(declared, dict):
        raise CheckpointError(f"{source}: its profile is {type(declared).__name__}, expected a table of settings.")
    return parse_profile(declared, source=f"{source}: profile")


def _check_jit_facts(tensors: dict[str, Tensor], facts: Facts, source: str) -> None:
    """Take the three scalars of OpenAI's files out, once they are seen to agree with the shapes."""
    told = dict(zip(_JIT_FACTS, (facts.image_size, facts.context, facts.vocab), strict=True))
    for name, expected in told.items():
        if name not in tensors:
            continue
        value: Any = tensors.pop(name).tolist()
        if value != expected:
            raise CheckpointError(f"{source}: {name} says {value}, the shapes say {expected}.")


def _is_dense_float(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.layout == torch.strided and not tensor.is_meta


def _validated(raw: Any, source: str) -> tuple[dict[str, Tensor], Facts]:
    tensors = _canonical_names(raw, source)
    try:
        facts = read_facts(tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from None
    _check_jit_facts(tensors, facts, source)
    expected = expected_shapes(facts)
    unknown, missing = tensors.keys() - expected.keys(), expected.keys() - tensors.keys()
    misshapen = [
        f"{name} {tuple(tensors[name].shape)} instead of {shape}"
        for name, shape in expected.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    not_float = [name for name, tensor in tensors.items() if not _is_dense_float(tensor)]
    problems = [
        f"{len(names)} {word}: {_listing(names)}"
        for word, names in (
            ("unknown", unknown),
            ("missing", missing),
            ("misshapen", misshapen),
            ("not dense floating point", not_float),
        )
        if names
    ]
    if problems:
        raise CheckpointError(
            f"{source} does not have the tensors of a TempMe or CLIP checkpoint with its sizes. "
            + "; ".join(problems)
            + "."
        )
    tensors = {name: t.detach().to("cpu", torch.float32).contiguous() for name, t in tensors.items()}
    not_finite = [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]
    if not_finite:
        raise CheckpointError(
            f"{source}: NaN or infinity in {_listing(not_finite)}. The training that wrote it diverged; "
            "use an earlier checkpoint."
        )
    return tensors, facts


def _tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name}:{tuple(tensors[name].shape)};".encode())
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()


def from_state_dict(raw: Any, source: str, activation: Activation | None = None) -> Checkpoint:
    """Validate a state dict that is already in memory. Raises CheckpointError as `load_checkpoint`."""
    tensors, facts = _validated(raw, source)
    return Checkpoint(source, _tensors_sha256(tensors), tensors, facts, activation)


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _read_torch_file(path: Path) -> Any:
    with path.open("rb") as stream:
        is_pickle = stream.read(1) == pickle.PROTO
    if not is_pickle and not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path} is not a PyTorch or safetensors file, or it is truncated.")
    try:
        is_torchscript = _is_torchscript(path)
        raw = None if is_torchscript else torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds code or objects beside tensors, and loading those could run anything. "
            "Save the model's state_dict() alone."
        ) from error
    except Exception as error:  # a damaged pickle fails in whatever operation comes next
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} cannot be read, it may be truncated or no checkpoint: {reason}") from error
    if is_torchscript:
        raise CheckpointError(
            f"{path} is a TorchScript archive, expected a state_dict. Convert it once: "
            f"torch.save(torch.jit.load('{path}').state_dict(), 'clip.pt')"
        )
    return raw


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors: {error}") from error
    return tensors


def _check_open_clip_activation(source: str, model: str, tag: str) -> None:
    """open_clip itself only warns when weights meet an activation they were not trained with."""
    import open_clip

    config, weights = open_clip.get_model_config(model), open_clip.get_pretrained_cfg(model, tag)
    if not (config and weights):
        return
    quick, wanted = bool(config.get("quick_gelu")), bool(weights.get("quick_gelu"))
    if quick != wanted:
        right = f"{model}-quickgelu" if wanted else model.removesuffix("-quickgelu")
        raise CheckpointError(
            f"{source}: weights {tag!r} were trained with {'QuickGELU' if wanted else 'GELU'}, but {model} has "
            f"{'QuickGELU' if quick else 'GELU'}. Use {OPEN_CLIP}{right}/{tag}."
        )


def _load_open_clip(source: str) -> Checkpoint:
    model, separator, tag = source.removeprefix(OPEN_CLIP).partition("/")
    if not (model and separator and tag):
        raise CheckpointError(f"{source} is not open_clip:MODEL/PRETRAINED, like open_clip:ViT-B-32-quickgelu/openai.")
    import open_clip

    _check_open_clip_activation(source, model, tag)
    try:
        module = open_clip.create_model(model, pretrained=tag)
    except Exception as error:  # open_clip passes on whatever its downloader raises
        raise CheckpointError(f"open_clip cannot load {model} with weights {tag!r}: {error}") from error
    blocks = getattr(getattr(getattr(module, "visual", None), "transformer", None), "resblocks", None)
    if blocks is None:
        raise CheckpointError(f"{source} has no vision transformer of CLIP's kind.")
    activation: Activation = "quickgelu" if isinstance(blocks[0].mlp.gelu, open_clip.model.QuickGELU) else "gelu"
    return from_state_dict(module.state_dict(), source, activation)


def load_checkpoint(source: str | Path) -> Checkpoint:
    """Read a checkpoint: the original's `best.pth` layout or a plain CLIP state dict, as a PyTorch file
    (weights only) or safetensors, bare or inside {"state_dict"} or {"model"}, with or without `module.`, with or
    without a profile beside it; or `open_clip:MODEL/PRETRAINED`.

    Raises CheckpointError, naming what is wrong, for anything else, and ProfileError for a profile that is wrong.
    """
    if str(source).startswith(OPEN_CLIP):
        return _load_open_clip(str(source))
    path = Path(source)
    if not path.exists():
        raise CheckpointError(f"{path} does not exist. Give a checkpoint file or open_clip:MODEL/PRETRAINED.")
    if not path.is_file():
        raise CheckpointError(f"{path} is a folder, expected a checkpoint file.")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path} is empty.")
    raw = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch_file(path)
    tensors, facts = _validated(raw, str(path))
    return Checkpoint(str(path), file_sha256(path), tensors, facts, profile=_declared_profile(raw, str(path)))
