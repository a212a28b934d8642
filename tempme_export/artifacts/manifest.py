"""Values that a manifest must hold for the package to read it: the place of each, and its kind in words."""

import math
import re
from collections.abc import Callable
from typing import Any

from tempme_export.parity.tolerance import PRECISIONS


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value < 2**31


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e6


def _are_three(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(_is_number(number) for number in value)


def _are_scales(value: Any) -> bool:
    return _are_three(value) and all(number > 0 for number in value)


def _is_log_scale(value: Any) -> bool:
    return _is_number(value) and abs(value) < math.log(1e30)


def _is_file(name: Any, entry: Any) -> bool:
    return (
        re.fullmatch(r"[\w-][\w.-]*", name) is not None
        and isinstance(entry, dict)
        and isinstance(entry.get("bytes"), int)
        and _is_text(entry.get("sha256"))
    )


def _are_files(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_file(name, entry) for name, entry in value.items())


def _are_reports(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(report, dict) and _is_text(report.get("status")) for report in value
    )


def _is_gate(value: Any) -> bool:
    return value is None or (isinstance(value, dict) and _are_reports(value.get("reports")))


_TABLE = "a table"
_COUNT = "a whole number from 1 up"
_KINDS: dict[tuple[str, ...], tuple[str, Callable[[Any], bool]]] = {
    ("sha256",): ("a hash", _is_text),
    ("checkpoint", "path"): ("a text", _is_text),
    ("checkpoint", "sha256"): ("a hash", _is_text),
    ("profile",): (_TABLE, lambda value: isinstance(value, dict)),
    ("backbone", "embed"): (_COUNT, _is_count),
    ("backbone", "patch"): (_COUNT, _is_count),
    ("schedule", "tokens_per_frame"): (_COUNT, _is_count),
    ("schedule", "blocks"): ("a list", lambda value: isinstance(value, list)),
    ("precision",): (f"one of {', '.join(PRECISIONS)}", lambda value: _is_text(value) and value in PRECISIONS),
    ("frame_mask",): ("true or false", lambda value: isinstance(value, bool)),
    ("logit_scale",): ("the logarithm of a scale", _is_log_scale),
    ("image", "size"): (_COUNT, _is_count),
    ("image", "mean"): ("three numbers", _are_three),
    ("image", "std"): ("three numbers above 0", _are_scales),
    ("parity",): ("a list of reports", _are_reports),
    ("files",): ("a table of names, sizes and hashes", _are_files),
    ("gate",): ("the reports of a gate, or nothing", _is_gate),
}


def _at(manifest: Any, place: tuple[str, ...]) -> Any:
    for key in place:
        manifest = manifest.get(key) if isinstance(manifest, dict) else None
    return manifest


def misfits(manifest: dict[str, Any]) -> list[str]:
    """Values of another kind than their reader needs, in words; none where all is well."""
    return [
        f"{'.'.join(place)} is {_at(manifest, place)!r:.80}, expected {words}"
        for place, (words, fits) in _KINDS.items()
        if not fits(_at(manifest, place))
    ]
