"""The options that ask for artifacts: one for each that the registry has, whatever it is."""

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from tempme_export.artifacts import registry

ARTIFACTS = "artifacts"  # the parameter that the options stand for


def _option(option: str, words: str, panel: str) -> inspect.Parameter:
    """A flag of its own for one option of the registry."""
    kind = Annotated[bool, typer.Option(f"--{option}", rich_help_panel=panel, help=words)]
    name = option.replace("-", "_")
    return inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=False, annotation=kind)


def asks_for_artifacts(panel: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator of a command with a parameter `artifacts`, a frozenset of options: it takes a flag for each instead."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        flags = {option: _option(option, words, panel) for option, words in registry.options().items()}

        @functools.wraps(command)
        def call(**arguments: Any) -> Any:
            asked = frozenset(option for option, flag in flags.items() if arguments.pop(flag.name))
            return command(**arguments, **{ARTIFACTS: asked})

        parameters: list[inspect.Parameter] = []
        for name, one in inspect.signature(command).parameters.items():
            parameters += flags.values() if name == ARTIFACTS else [one]
        call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        call.__annotations__ = {one.name: one.annotation for one in parameters}
        return call

    return add
