"""Texts to token ids, whatever encodes the words: what is refused, how a text is cut, where start and end stand."""

import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tempme_export.errors import InputError

# Of CLIP's byte-pair encoding.
VOCABULARY = 49408
START, END = VOCABULARY - 2, VOCABULARY - 1
START_MARK, END_MARK = "<start_of_text>", "<end_of_text>"


class TextTruncatedWarning(UserWarning):
    """A text was longer than the model reads, and its end was dropped."""


class TokenIds:
    """CLIP's byte-pair encoding of texts (spec section 6).

    text_length  token ids per text, L
    """

    text_length: int

    def _encode(self, text: str) -> list[int]:
        """Token ids of one text without start and end; a mark inside is START or END."""
        raise NotImplementedError

    def __call__(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Encode texts as start, lower-case words, end, and zeros.

        A longer text is cut, keeping the end token last, with a TextTruncatedWarning.
        Returns int64 [n, L], n texts; [0, L] for none. Raises InputError for what is not a text or is blank.
        """
        if isinstance(texts, str) or not isinstance(texts, Sequence):
            raise InputError(
                f"found texts of type {type(texts).__name__}, expected a list of str. Put a single text in a list."
            )
        token_ids = np.zeros((len(texts), self.text_length), np.int64)
        dropped: dict[int, int] = {}
        for row, text in enumerate(texts):
            words = self._words(text, row)
            n_words = min(len(words), self.text_length - 2)
            if n_words < len(words):
                dropped[row] = len(words) - n_words
            token_ids[row, : n_words + 2] = [START, *words[:n_words], END]
        if dropped:
            which = ", ".join(f"text {row} lost {count}" for row, count in dropped.items())
            warnings.warn(
                f"found texts of more than {self.text_length} tokens, start and end included; cut: {which}",
                TextTruncatedWarning,
                stacklevel=2,
            )
        return token_ids

    def _words(self, text: str, row: int) -> list[int]:
        if not isinstance(text, str):
            raise InputError(f"found text {row} to be of type {type(text).__name__}, expected str. Convert it.")
        words = self._encode(text)
        if not words:
            raise InputError(f"found text {row} blank, expected at least one word. Drop it from the list.")
        if not {START, END}.isdisjoint(words):
            raise InputError(
                f"found {START_MARK} or {END_MARK} inside text {row}, expected plain words. "
                "Remove the marks, they are added here."
            )
        return words
