"""A bundle's own tokenizer, `tokenizer.json` in the format of the `tokenizers` library."""

import html
from functools import cached_property
from typing import TYPE_CHECKING

from tempme_export.errors import BundleError
from tempme_export.media.token_ids import END, END_MARK, START, START_MARK, TokenIds

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER = "tokenizer.json"
_MARKS = {START_MARK: START, END_MARK: END}


def clean(text: str) -> str:
    """A text as CLIP's words are cut from it: mojibake mended, HTML's entities read, spaces single, lower case."""
    return " ".join(_mended(text).split()).lower()


def _mended(text: str) -> str:
    if text.isascii() and text.isprintable() and "&" not in text:
        return text  # there is nothing to mend, and ftfy takes longer to import than such a text to encode
    import ftfy

    return html.unescape(html.unescape(ftfy.fix_text(text)))


class StoredTokenizer(TokenIds):
    """Reads the file's bytes at the first text.

    Its ids are open_clip's. What the file itself does to a text before it splits it, for programs without this package,
    is left out here: other versions of Unicode and none of ftfy's repairs. Raises BundleError for bytes that are no
    tokenizer.
    """

    def __init__(self, stored: bytes, text_length: int) -> None:
        self._stored, self.text_length = stored, text_length

    def __reduce__(self) -> tuple[type["StoredTokenizer"], tuple[bytes, int]]:
        return StoredTokenizer, (self._stored, self.text_length)

    @cached_property
    def _tokenizer(self) -> "Tokenizer":
        from tokenizers import Tokenizer, normalizers

        try:
            tokenizer = Tokenizer.from_buffer(self._stored)
        except Exception as error:  # the library raises its own and Python's
            raise BundleError(f"{TOKENIZER} cannot be read: {error}. Export the bundle again.") from error
        tokenizer.normalizer = normalizers.Sequence([])
        return tokenizer

    def _encode(self, text: str) -> list[int]:
        cleaned = clean(text)
        if any(mark in cleaned for mark in _MARKS):
            pieces = [piece for piece, _ in self._tokenizer.pre_tokenizer.pre_tokenize_str(cleaned)]
            if marks := [_MARKS[piece] for piece in pieces if piece in _MARKS]:
                return marks
        ids: list[int] = self._tokenizer.encode(cleaned, add_special_tokens=False).ids
        return ids
