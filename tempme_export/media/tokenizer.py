"""Texts to token ids: CLIP's byte-pair encoding, as open_clip has it."""

import importlib.util
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tempme_export.encoder.backbone import open_clip_config
from tempme_export.errors import BackendError, InputError, ProfileError

# Of CLIP, and what a model config means when it does not say.
_VOCABULARY = 49408
_CONTEXT_LENGTH = 77


class TextTruncatedWarning(UserWarning):
    """A text was longer than the model reads, and its end was dropped."""


class Tokenizer:
    """Byte-pair encoding of a backbone's text tower (spec section 6).

    backbone     name of an open_clip model config
    text_length  token ids per text, L
    Raises ProfileError for an unknown backbone, one with another tokenizer, or a length it cannot read.
    """

    def __init__(self, backbone: str, text_length: int) -> None:
        text_config = _text_config(backbone)
        others = [f"{key} = {text_config[key]!r}" for key in text_config if "tokenizer" in key]
        vocabulary = text_config.get("vocab_size", _VOCABULARY)
        if vocabulary != _VOCABULARY:
            others.append(f"a vocabulary of {vocabulary}")
        if others:
            raise ProfileError(
                f"found backbone {backbone!r} with {', '.join(others)}; "
                f"expected CLIP's byte-pair encoding of {_VOCABULARY} tokens; "
                "use a backbone such as 'ViT-B-32-quickgelu'"
            )
        context_length = text_config.get("context_length", _CONTEXT_LENGTH)
        if not 3 <= text_length <= context_length:
            raise ProfileError(
                f"found a text length of {text_length}; expected 3 to {context_length}, which backbone "
                f"{backbone!r} reads; change text_length in the profile"
            )
        self.backbone, self.text_length = backbone, text_length
        self._bpe = _byte_pair_encoding()

    def __reduce__(self) -> tuple[type["Tokenizer"], tuple[str, int]]:
        """Its tables come from a module that no other process knows, so they are read again there."""
        return Tokenizer, (self.backbone, self.text_length)

    def __call__(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Encode texts as start, lower-case words, end, and zeros.

        A longer text is cut, keeping the end token last, with a TextTruncatedWarning.
        Returns int64 [n, L], n texts; [0, L] for none. Raises InputError for what is not a text or is blank.
        """
        if isinstance(texts, str) or not isinstance(texts, Sequence):
            raise InputError(
                f"found texts of type {type(texts).__name__}; expected a list of str; put a single text in a list"
            )
        token_ids = np.zeros((len(texts), self.text_length), np.int64)
        dropped: dict[int, int] = {}
        for row, text in enumerate(texts):
            words = self._words(text, row)
            n_words = min(len(words), self.text_length - 2)
            if n_words < len(words):
                dropped[row] = len(words) - n_words
            token_ids[row, : n_words + 2] = [self._bpe.sot_token_id, *words[:n_words], self._bpe.eot_token_id]
        if dropped:
            which = ", ".join(f"text {row} lost {count}" for row, count in dropped.items())
            warnings.warn(
                f"found texts of more than {self.text_length} tokens, start and end included; cut: {which}",
                TextTruncatedWarning,
                stacklevel=2,
            )
        return token_ids

    def _words(self, text: str, row: int) -> list[int]:
        """Token ids of one text without start and end."""
        if not isinstance(text, str):
            raise InputError(f"found text {row} to be of type {type(text).__name__}; expected str; convert it")
        words: list[int] = self._bpe.encode(text)
        if not words:
            raise InputError(f"found text {row} blank; expected at least one word; drop it from the list")
        if not {self._bpe.sot_token_id, self._bpe.eot_token_id}.isdisjoint(words):
            raise InputError(
                f"found <start_of_text> or <end_of_text> inside text {row}; expected plain words; "
                "remove the marks, they are added here"
            )
        return words


def _open_clip_folder() -> Path:
    spec = importlib.util.find_spec("open_clip")
    if spec is None or not spec.submodule_search_locations:
        raise BackendError("found no open_clip, which brings the tokenizer; run: pip install open_clip_torch")
    return Path(spec.submodule_search_locations[0])


def _text_config(backbone: str) -> dict[str, Any]:
    if backbone == "checkpoint":
        raise ProfileError(
            "found backbone 'checkpoint', which has no tokenizer; expected the name of an open_clip model "
            "config; name one in the profile, or pass token ids"
        )
    text_config: dict[str, Any] = open_clip_config(backbone)["text_cfg"]
    return text_config


@cache
def _byte_pair_encoding() -> Any:
    """Load open_clip/tokenizer.py alone: importing open_clip takes seconds and brings every model with it."""
    spec = importlib.util.spec_from_file_location("open_clip_tokenizer", _open_clip_folder() / "tokenizer.py")
    if spec is None or spec.loader is None:
        raise BackendError("found open_clip without tokenizer.py; run: pip install --force-reinstall open_clip_torch")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SimpleTokenizer()
