"""A checkpoint -> named float32 tensors, the facts their shapes tell, and what is stated beside them.

Nothing is dropped: every tensor is known, has the expected shape, and is finite, or loading fails.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tempme_export.encoder.backbone import OPEN_CLIP, Activation, open_clip_backbone
from tempme_export.encoder.checkpoint.configs import stated_in_folder
from tempme_export.encoder.checkpoint.facts import CheckpointFacts, expected_shapes, is_dense, listing, read_facts
from tempme_export.encoder.checkpoint.files import read_file
from tempme_export.encoder.checkpoint.layouts import Weights, read_layout
from tempme_export.encoder.checkpoint.open_clip_weights import read_open_clip
from tempme_export.encoder.conventions import Statement, agreed, stated_in
from tempme_export.encoder.profile import FROM_CHECKPOINT, Profile, parse_profile
from tempme_export.errors import CheckpointError
from tempme_export.files import file_sha256

_JIT_FACTS = ("input_resolution", "context_length", "vocab_size")  # scalars in OpenAI's own state dicts


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint. `sha256` is of the file, or of the tensors where there is no file.

    statements  what shapes cannot tell and the file, a configuration beside it or open_clip does; they agree
    profile     the one that the file holds, as those of `tempme-train` do; None where there is none
    remarks     what was decided or noticed while it was read, in words
    """

    source: str
    sha256: str
    tensors: Mapping[str, Tensor]
    facts: CheckpointFacts
    statements: tuple[Statement, ...] = ()
    profile: Profile | None = None
    remarks: tuple[str, ...] = ()

    @property
    def activation(self) -> Activation | None:
        """None where nobody says it."""
        return next((one.value for one in self.statements if one.about == "activation"), None)


def _declared_profile(documents: tuple[Mapping[Any, Any], ...], source: str) -> Profile | None:
    """The profile beside the tensors, {"state_dict": ..., "profile": ...}, where there is one."""
    declared = next((one["profile"] for one in documents if one.get("profile") is not None), None)
    if declared is None or isinstance(declared, Tensor):
        return None
    if not isinstance(declared, dict):
        raise CheckpointError(f"{source}: its profile is {type(declared).__name__}, expected a table of settings.")
    return parse_profile(declared, source=f"{source}: profile")


def _check_jit_facts(tensors: dict[str, Tensor], facts: CheckpointFacts, source: str) -> None:
    """Take the three scalars of OpenAI's files out, once they are seen to agree with the shapes."""
    told = dict(zip(_JIT_FACTS, (facts.image_size, facts.context, facts.vocab), strict=True))
    for name, expected in told.items():
        if name not in tensors:
            continue
        scalar = tensors.pop(name)
        value: Any = scalar.tolist() if is_dense(scalar) else "nothing"
        if value != expected:
            raise CheckpointError(f"{source}: {name} says {value}, the shapes say {expected}.")


def _is_dense_float(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and is_dense(tensor)


def _validated(tensors: dict[str, Tensor], source: str) -> tuple[dict[str, Tensor], CheckpointFacts]:
    """Every tensor is known, has the shape that the others ask for, and is finite; float32, or CheckpointError."""
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
        f"{len(names)} {word}: {listing(names)}"
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
            f"{source}: NaN or infinity in {listing(not_finite)}. The training that wrote it diverged; "
            "use an earlier checkpoint."
        )
    return tensors, facts


def _tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name}:{tuple(tensors[name].shape)};".encode())
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()


def _is_openai(tensors: Mapping[str, Tensor]) -> bool:
    """True for the tensors of OpenAI's own archives: nothing else keeps the three scalars."""
    return all(name in tensors for name in _JIT_FACTS)


def _stated_inside(weights: Weights, profile: Profile | None) -> tuple[Statement, ...]:
    """Statements of the file itself. The backbone of its profile speaks where nothing else in it does."""
    said = [one for document in weights.document for one in stated_in(document, "the checkpoint's file")]
    if _is_openai(weights.tensors):
        said.append(Statement("activation", "quickgelu", "the checkpoint's file (OpenAI's own weights)"))
    known = any(one.about == "activation" for one in said)
    if profile is not None and profile.backbone != FROM_CHECKPOINT and not known:
        activation = open_clip_backbone(profile.backbone).activation
        said.append(Statement("activation", activation, f"the checkpoint's file (its backbone {profile.backbone})"))
    return tuple(said)


def from_state_dict(raw: Any, source: str, activation: Activation | None = None) -> Checkpoint:
    """Validate a state dict that is already in memory. Raises CheckpointError as `load_checkpoint`."""
    statements = () if activation is None else (Statement("activation", activation, source),)
    return _from_memory(raw, source, statements)


def _from_memory(raw: Any, source: str, statements: tuple[Statement, ...]) -> Checkpoint:
    weights = read_layout(raw, source)
    statements = (*statements, *_stated_inside(weights, None))
    tensors, facts = _validated(weights.tensors, source)
    agreed(statements, source)
    return Checkpoint(source, _tensors_sha256(tensors), tensors, facts, statements, remarks=weights.remarks)


def load_checkpoint(source: str | Path) -> Checkpoint:
    """Read a checkpoint: the original's `best.pth` layout or a plain CLIP state dict, by CLIP's or Hugging Face's
    names, as a PyTorch file (weights only) or safetensors, bare or beside other things, with or without the prefixes
    of wrappers, with or without a profile beside it; or `open_clip:MODEL/PRETRAINED`.

    Raises CheckpointError, naming what is wrong, for anything else, and ProfileError for a profile that is wrong.
    """
    if str(source).startswith(OPEN_CLIP):
        tensors, statements = read_open_clip(str(source))
        return _from_memory(tensors, str(source), statements)
    path = Path(source)
    if not path.exists():
        raise CheckpointError(f"{path} does not exist. Give a checkpoint file or open_clip:MODEL/PRETRAINED.")
    if not path.is_file():
        raise CheckpointError(f"{path} is a folder, expected a checkpoint file.")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path} is empty.")
    raw, remarks = read_file(path)
    weights = read_layout(raw, str(path))
    profile = _declared_profile(weights.document, str(path))
    inside = _stated_inside(weights, profile)
    checked, facts = _validated(weights.tensors, str(path))
    statements = (*inside, *stated_in_folder(path, facts))
    agreed(statements, str(path))
    return Checkpoint(str(path), file_sha256(path), checked, facts, statements, profile, (*weights.remarks, *remarks))
