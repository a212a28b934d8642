"""CLIP's byte-pair encoding -> `tokenizer.json`, which the `tokenizers` library reads in every language it has.

The library's tables of Unicode are older than those of `regex`, by which open_clip splits, so the classes of the
pattern are spelled out as ranges of code points.
"""

import re
from functools import cache
from pathlib import Path

from tempme_export.media.token_ids import END, END_MARK, START, START_MARK
from tempme_export.media.tokenizer import byte_pair_encoding

_CONTRACTIONS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")


@cache
def _every_character() -> str:
    surrogates = range(0xD800, 0xE000)
    return "".join(chr(code) for code in range(0x110000) if code not in surrogates)


@cache
def _class(pattern: str) -> str:
    """The members of a class of one character, in any case, as ranges for between brackets."""
    import regex

    codes = [ord(character) for character in regex.findall(pattern, _every_character(), regex.IGNORECASE)]
    ranges: list[list[int]] = []
    for code in codes:
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return "".join(f"\\x{{{a:X}}}-\\x{{{b:X}}}" if a != b else f"\\x{{{a:X}}}" for a, b in ranges)


def _any_case(words: str) -> str:
    return "".join(f"[{_class(letter)}]" if letter.isalpha() else re.escape(letter) for letter in words)


def _split() -> str:
    """The pattern by which open_clip splits a text."""
    letters, numbers, others = map(_class, (r"[\p{L}]", r"[\p{N}]", r"[^\s\p{L}\p{N}]"))
    marks = map(_any_case, (START_MARK, END_MARK, *_CONTRACTIONS))
    return "|".join((*marks, f"[{letters}]+", f"[{numbers}]", f"[{others}]+"))


def export_tokenizer(path: Path) -> None:
    """Write `tokenizer.json`: lower case and single spaces, the split, the merges, start and end. Texts are neither cut
    nor padded. Raises BackendError without open_clip."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    encoding = byte_pair_encoding()
    tokenizer = Tokenizer(
        models.BPE(
            vocab=encoding.encoder,
            merges=list(encoding.bpe_ranks),
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip(), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_split()), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START_MARK} $A {END_MARK}", special_tokens=[(START_MARK, START), (END_MARK, END)]
    )
    path.write_text(tokenizer.to_str(), encoding="utf-8")
