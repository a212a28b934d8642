"""Names of files where text is asked for. A name may hold bytes that are no UTF-8; Python keeps those as surrogates."""

import os
import re
import shlex
from typing import Any

_SURROGATES = re.compile("[\ud800-\udfff]")


def as_text(name: "str | os.PathLike[str]") -> str:
    """A name as characters that every terminal, document and library takes: a byte that is no UTF-8 becomes `\\xNN`."""
    text = os.fspath(name)
    return _SURROGATES.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


def printable(document: Any) -> Any:
    """A document of dicts, lists and values with each of its strings `as_text`."""
    if isinstance(document, str | os.PathLike):
        return as_text(document)
    if isinstance(document, dict):
        return {printable(key): printable(value) for key, value in document.items()}
    if isinstance(document, list | tuple):
        return [printable(value) for value in document]
    return document


def command(*words: "str | os.PathLike[str]") -> str:
    """A command line that a shell reads as these words, whatever they hold. Every command in a message is one."""
    return " ".join(map(_quoted, words))


def _quoted(word: "str | os.PathLike[str]") -> str:
    text = os.fspath(word)
    if text.isprintable():
        return shlex.quote(text)
    return "$'" + "".join(map(_in_ansi_quotes, text)) + "'"  # of bash, zsh, ksh and POSIX 2024


def _in_ansi_quotes(character: str) -> str:
    if character in "\\'":
        return "\\" + character
    if character.isprintable():
        return character
    return "".join(f"\\{byte:03o}" for byte in os.fsencode(character))
