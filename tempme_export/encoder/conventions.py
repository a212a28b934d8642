"""Conventions that shapes cannot tell, and who says them: activation, pixel statistics, heads, epsilon, resize.

A statement names its source. Two that contradict each other are refused; where nobody speaks, what is assumed is said.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tempme_export.encoder.backbone import Activation
from tempme_export.errors import CheckpointError

About = Literal[
    "activation", "mean", "std", "heads", "text_heads", "layer_norm_eps", "interpolation", "resize", "profile"
]

# What this package computes whatever is said; another value is refused.
FIXED: dict[About, Any] = {"layer_norm_eps": 1e-5, "interpolation": "bicubic", "resize": "shortest"}

_ACTIVATIONS: dict[str, Activation] = {
    "quickgelu": "quickgelu",
    "quick_gelu": "quickgelu",
    "QuickGELU": "quickgelu",
    "gelu": "gelu",
    "GELU": "gelu",
}
_TABLES = ("hyper_parameters", "hparams", "config", "cfg", "args", "model_config", "model_cfg", "preprocess_cfg")
_DEPTH = 8  # a table can hold itself
_DIGITS = 1e-4  # statistics are often written with four digits


@dataclass(frozen=True)
class Statement:
    """One thing that shapes cannot tell.

    source   who says it, in words
    assumed  nobody knows: taken because something has to be
    """

    about: About
    value: Any
    source: str
    assumed: bool = False

    def to_dict(self) -> dict[str, Any]:
        """As the manifest holds it, under the name of what it is about."""
        return {key: value for key, value in asdict(self).items() if key != "about"}


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, tuple):
        return all(abs(a - b) < _DIGITS for a, b in zip(one, other, strict=True))
    return bool(one == other)


def agreed(statements: Iterable[Statement], checkpoint: str) -> dict[About, Statement]:
    """One statement for each thing, the first one. Raises CheckpointError, naming both, where two contradict each
    other, and where one says what this package does not compute."""
    found: dict[About, Statement] = {}
    for one in statements:
        first = found.setdefault(one.about, one)
        if not _same(first.value, one.value):
            raise CheckpointError(
                f"{checkpoint}: {one.about} is {shown(first.value)} by {first.source} and {shown(one.value)} by "
                f"{one.source}, expected one value. Correct the one that is wrong, or leave it out."
            )
        if one.about in FIXED and one.value != FIXED[one.about]:
            raise CheckpointError(
                f"{checkpoint}: {one.about} is {shown(one.value)} by {one.source}, expected "
                f"{shown(FIXED[one.about])}: nothing else is built. Correct {one.source} where it is wrong."
            )
    return found


def shown(value: Any) -> str:
    """A value as a person reads it."""
    if isinstance(value, tuple | list):
        return " ".join(f"{number:.4g}" for number in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def activation_named(name: Any, source: str) -> Statement:
    """Raises CheckpointError for a name of another activation."""
    if not isinstance(name, str) or name not in _ACTIVATIONS:
        raise CheckpointError(
            f"{source} is {name!r}, expected one of {', '.join(_ACTIVATIONS)}. Other activations are not built; where "
            "it is not the towers', save the state_dict alone and say --activation."
        )
    return Statement("activation", _ACTIVATIONS[name], source)


def statistic(about: Literal["mean", "std"], values: Any, source: str) -> Statement:
    """Mean or std of a channel's values in [0, 1]. Raises CheckpointError for anything but three such numbers."""
    numbers = isinstance(values, list | tuple) and all(type(value) in (int, float) for value in values)
    least = 0.0 if about == "mean" else 1e-6
    if not numbers or len(values) != 3 or not all(least <= value <= 1 for value in values):
        raise CheckpointError(
            f"{source} is {values!r}, expected three numbers up to 1, for red, green and blue. Divide those of 0..255 "
            "by 255."
        )
    return Statement(about, tuple(map(float, values)), source)


def _read_entry(key: str, value: Any, source: str) -> Statement | None:
    """The statement of one entry; None where it states nothing."""
    if value is None:  # a setting that was left to its default
        return None
    if key == "quick_gelu" and isinstance(value, bool):
        return Statement("activation", "quickgelu" if value else "gelu", source)
    if key == "force_quick_gelu" and value is True:  # False leaves it to the model's configuration
        return Statement("activation", "quickgelu", source)
    if key in ("hidden_act", "activation"):
        return activation_named(value, source)
    for about in ("mean", "std"):
        if key in (f"image_{about}", f"pixel_{about}"):
            return statistic(about, value, source)
        if key == about and isinstance(value, list | tuple) and len(value) == 3:
            return statistic(about, value, source)
    if key == "layer_norm_eps" and isinstance(value, float):
        return Statement("layer_norm_eps", value, source)
    return None


def _read_table(table: Mapping[Any, Any], source: str, path: str) -> Iterator[Statement]:
    for key, value in table.items():
        name = f"{path}{key}"
        if isinstance(value, Mapping):
            if name.count(".") >= _DEPTH:
                continue
            yield from _read_table(value, source, f"{name}.")
        elif (one := _read_entry(str(key), value, f"{source} ({name})")) is not None:
            yield one


def stated_in(document: Mapping[Any, Any], source: str) -> tuple[Statement, ...]:
    """Statements of a checkpoint's document beside its tensors: its own entries, and those of the tables in which
    trainings keep their settings. Raises CheckpointError for one that cannot be meant."""
    tables = {key: value for key, value in document.items() if key in _TABLES and isinstance(value, Mapping)}
    own = {key: value for key, value in document.items() if not isinstance(value, Mapping)}
    return (*_read_table(own, source, ""), *_read_table(tables, source, ""))


def in_words(conventions: Iterable[Statement]) -> list[tuple[str, str]]:
    """Lines of a label and a text that say everything that shapes cannot tell, and where it is from."""
    told = {one.about: one for one in conventions}
    lines = []
    if (activation := told.get("activation")) is not None:
        other = "gelu" if activation.value == "quickgelu" else "quickgelu"
        advice = f"; --activation {other} if it was trained with that" if activation.assumed else ""
        lines.append(("activation", f"{activation.value} ({_by(activation)}{advice})"))
    if (mean := told.get("mean")) is not None and (std := told.get("std")) is not None:
        by = _by(mean) if _by(mean) == _by(std) else f"mean {_by(mean)}, std {_by(std)}"
        lines.append(("pixels", f"mean {shown(mean.value)}, std {shown(std.value)} ({by})"))
    for label, assumed in (("stated", False), ("assumed", True)):
        rest = [
            one for one in told.values() if one.about not in ("activation", "mean", "std") and one.assumed == assumed
        ]
        for source in dict.fromkeys(one.source for one in rest):
            values = [_named(one) for one in rest if one.source == source]
            lines.append((label, f"{', '.join(values)} (from {source})"))
    return lines


def _named(one: Statement) -> str:
    return str(one.value) if one.about == "profile" else f"{one.about.replace('_', ' ')} {shown(one.value)}"


def _by(one: Statement) -> str:
    return f"assumed from {one.source}" if one.assumed else f"from {one.source}"
