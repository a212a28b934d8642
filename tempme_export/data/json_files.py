"""JSON and text of annotation files, with the errors that their readers need."""

import json
import os
from pathlib import Path
from typing import Any

from tempme_export.data.records import repeated, some
from tempme_export.errors import InputError


def read_text(path: Path, holds: str) -> str:
    """The text of a UTF-8 file, line breaks as "\\n". Raises InputError when it is missing or of another kind."""
    if not os.path.isfile(path):
        kind = "a folder or device" if os.path.exists(path) else "no such file"
        raise InputError(f"{path}: found {kind}, expected {holds}. Copy it there or name another folder.")
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(
            f"{path}: found a file that cannot be read ({error.strerror}), expected {holds}. Mend its permissions."
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: found the byte {error.object[error.start]:#04x} at {error.start}, which is not UTF-8, "
            f"expected {holds} as UTF-8 text. Convert the file."
        ) from error


def read_json(path: Path, holds: str) -> Any:
    """The value in a JSON file. Raises InputError as `read_text` does, for broken JSON and for keys given twice."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs):
            twice = [repr(key) for key in repeated([key for key, _ in pairs])]
            raise InputError(f"{path}: found keys twice: {some(twice)}, expected each once. Remove the repeated ones.")
        return value

    text = read_text(path, holds)
    try:
        return json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}: found no JSON ({error.msg} in line {error.lineno}, column {error.colno}), expected {holds}. "
            "The file may be cut short, copy it again."
        ) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists within lists without end
        raise InputError(f"{path}: found JSON that cannot be read ({error}), expected {holds}.") from error


def entries(path: Path, value: Any, name: str, keys: tuple[str, ...]) -> list[dict[str, str]]:
    """Check that a JSON value is a list of objects with texts under `keys`, the first of them not empty.

    Raises InputError, naming the entries.
    """
    if not isinstance(value, list):
        raise InputError(f"{path}: found {kind(value)} for {name}, expected a list of objects with {', '.join(keys)}.")
    wrong = [
        f"{name}[{i}]"
        for i, entry in enumerate(value)
        if not (isinstance(entry, dict) and all(isinstance(entry.get(key), str) for key in keys) and entry[keys[0]])
    ]
    if wrong:
        raise InputError(
            f"{path}: found entries that are not objects with {', '.join(keys)} as text: {some(wrong)}, "
            "expected all to be. Correct them."
        )
    return value


def kind(value: Any) -> str:
    """Kind of a JSON value, for an error; the keys of an object are part of it."""
    if isinstance(value, dict):
        return f"an object with the keys {some([repr(key) for key in value]) or 'none'}"
    names = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
