"""Refusals of the command line's parser, in this package's words and with the command that would work."""

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import typer

from tempme_export.errors import UsageError, did_you_mean

PARSER_ERROR: type[Exception] = typer.BadParameter.__mro__[1]  # the root, whose own module moves between versions
_CHOICE = re.compile(r"(?:^|, )'(?P<found>[^']*)' is not one of (?P<choices>.*)", re.DOTALL)


def check_first_word(command: str, word: str, subcommands: Iterable[str]) -> None:
    """Raises UsageError for a word that is nearly a subcommand, and no file."""
    near = difflib.get_close_matches(word, list(subcommands), n=1, cutoff=0.75)
    if near and re.fullmatch(r"[a-z][a-z-]*", word) and not Path(word).exists():
        raise UsageError(
            f"{command}: found {word!r}, expected a file or a command. Did you mean {near[0]}? "
            f"A path so named is written ./{word}."
        )


def refusal(command: str, error: Any, moved: Mapping[str, str]) -> UsageError:
    """The parser's error as one of ours. `moved`: option -> the command line that does it now."""
    context = error.ctx
    called = context.command_path if context is not None else command
    help_line = f"See {called} --help."
    option = str(error.option_name) if hasattr(error, "possibilities") else ""
    if option in moved:
        return UsageError(f"{command}: {option} has moved. Write: {moved[option]}")
    if option:
        known = [name for one in context.command.get_params(context) for name in (*one.opts, *one.secondary_opts)]
        meant = did_you_mean(option, [name for name in known if name.startswith("-")])
        return UsageError(f"{called}: found {option}, expected one of its options.{meant} {help_line}")
    parameter = getattr(error, "param", None)
    if parameter is None:
        return UsageError(f"{called}: {_sentence(error.format_message())} {help_line}")
    is_option = parameter.param_type_name == "option"
    name = max(parameter.opts, key=len) if is_option else parameter.metavar or parameter.name.upper()
    if not error.message:
        return UsageError(f"{called}: found no {name}, expected one. {help_line}")
    said = _CHOICE.search(error.message)
    if said is None:
        return UsageError(f"{called}: {name}: {_sentence(error.message)} {help_line}")
    choices = re.findall("'([^']*)'", said["choices"])
    meant = did_you_mean(said["found"], choices)
    return UsageError(f"{name}: found {said['found']!r}, expected one of {', '.join(choices)}.{meant}")


def _sentence(text: str) -> str:
    return f"{text[:1].lower()}{text[1:].rstrip('.')}."
