"""CLIP's byte-pair encoding as open_clip has it: it makes a bundle's tokenizer, and is its reference."""

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

from tempme_export.encoder.backbone import open_clip_config
from tempme_export.errors import BackendError, ProfileError
from tempme_export.media.token_ids import VOCABULARY, TokenIds

_CONTEXT_LENGTH = 77  # of CLIP, and what a model config means when it does not say


class Tokenizer(TokenIds):
    """Byte-pair encoding of a backbone's text tower, by open_clip's own code.

    backbone     name of an open_clip model config
    text_length  token ids per text, L
    Raises ProfileError for an unknown backbone, one with another tokenizer, or a length it cannot read, and
    BackendError without open_clip.
    """

    def __init__(self, backbone: str, text_length: int) -> None:
        text_config = _text_config(backbone)
        others = [f"{key} = {text_config[key]!r}" for key in text_config if "tokenizer" in key]
        vocabulary = text_config.get("vocab_size", VOCABULARY)
        if vocabulary != VOCABULARY:
            others.append(f"a vocabulary of {vocabulary}")
        if others:
            raise ProfileError(
                f"found backbone {backbone!r} with {', '.join(others)}, "
                f"expected CLIP's byte-pair encoding of {VOCABULARY} tokens. "
                "Use a backbone such as ViT-B-32-quickgelu."
            )
        context_length = text_config.get("context_length", _CONTEXT_LENGTH)
        if not 3 <= text_length <= context_length:
            raise ProfileError(
                f"found a text length of {text_length}, expected 3 to {context_length}, which backbone "
                f"{backbone!r} reads. Change text_length in the profile."
            )
        self.backbone, self.text_length = backbone, text_length
        self._bpe = byte_pair_encoding()

    def __reduce__(self) -> tuple[type["Tokenizer"], tuple[str, int]]:
        """Its tables come from a module that no other process knows, so they are read again there."""
        return Tokenizer, (self.backbone, self.text_length)

    def _encode(self, text: str) -> list[int]:
        words: list[int] = self._bpe.encode(text)
        return words


def _open_clip_folder() -> Path:
    spec = importlib.util.find_spec("open_clip")
    if spec is None or not spec.submodule_search_locations:
        raise BackendError(
            "the tokenizer of a backbone needs open_clip, which is not installed. "
            "Run: pip install 'tempme-export[export]'"
        )
    return Path(spec.submodule_search_locations[0])


def _text_config(backbone: str) -> dict[str, Any]:
    if backbone == "checkpoint":
        raise ProfileError(
            "found backbone 'checkpoint', which has no tokenizer, expected the name of an open_clip model "
            "config. Name one in the profile, or pass token ids."
        )
    text_config: dict[str, Any] = open_clip_config(backbone)["text_cfg"]
    return text_config


@cache
def byte_pair_encoding() -> Any:
    """Load open_clip/tokenizer.py alone: importing open_clip takes seconds and brings every model with it."""
    spec = importlib.util.spec_from_file_location("open_clip_tokenizer", _open_clip_folder() / "tokenizer.py")
    if spec is None or spec.loader is None:
        raise BackendError("found open_clip without tokenizer.py. Run: pip install --force-reinstall open_clip_torch")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SimpleTokenizer()
