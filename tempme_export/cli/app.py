"""The one way a command is built: a default action, subcommands beside it, -h, --version, completion, one voice."""

import functools
import importlib.metadata
import inspect
import shutil
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NoReturn, TypeVar

import typer
from typer import rich_utils
from typer.core import TyperCommand, TyperGroup

from tempme_export.cli import terminal
from tempme_export.cli.entry import entry
from tempme_export.cli.terminal import WIDTH
from tempme_export.cli.usage import PARSER_ERROR, check_first_word, refusal

CODES = {
    0: "done",
    2: "usage",
    3: "checkpoint, profile, video, data or bundle",
    4: "backend or device missing",
    5: "parity or gate failed",
    6: "build failed or output not written",
    7: "measurement not converged, with --strict",
    130: "interrupted",
}

_SETTINGS = {"help_option_names": ["-h", "--help"]}
_F = TypeVar("_F", bound=Callable[..., Any])


class _Plain:
    """Help that fits the terminal and WIDTH, and shows a type only of what takes a value."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Parameters of the command; a flag has no word for its value."""
        params: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for one in params:
            if getattr(one, "is_flag", False):
                one.metavar = ""
        return params

    def format_help(self, ctx: Any, formatter: Any) -> None:
        rich_utils.MAX_WIDTH = min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns)
        super().format_help(ctx, formatter)  # type: ignore[misc]


class _Subcommand(_Plain, TyperCommand):
    """A command that a first word names."""


class _Default(_Plain, TyperGroup):
    """A command with a default action. A first word that names a subcommand is one, anything else is its argument."""

    allow_extra_args = False
    allow_interspersed_args = True

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """The context of the subcommand that the first word names, otherwise of the default action."""
        if args and args[0] in self.commands:
            return self.commands[args[0]].make_context(f"{info_name} {args[0]}", args[1:], parent, **extra)
        if args and not extra.get("resilient_parsing"):
            check_first_word(str(info_name), args[0], list(self.commands))
        return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: Any) -> Any:
        """Run what the context is of."""
        return super().invoke(ctx) if ctx.command is self else ctx.command.invoke(ctx)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The default action's words alone."""
        return super().collect_usage_pieces(ctx)[:-1]

    def get_usage(self, ctx: Any) -> str:
        """A line for the default action and one for the subcommands."""
        others = f"\n       {ctx.command_path} {'|'.join(self.commands)} ..." if self.commands else ""
        return str(super().get_usage(ctx)).rstrip() + others


class CommandLine:
    """One command of this package.

    name   as it is called, such as tempme-export
    moved  option that a user may remember -> the command line that does it now
    """

    def __init__(self, name: str, moved: Mapping[str, str] | None = None) -> None:
        self.name = name
        self._moved = moved or {}
        self._subcommands: list[str] = []
        self.app = typer.Typer(cls=_Default, rich_markup_mode="rich", pretty_exceptions_enable=False)

    def default(self, *codes: int) -> Callable[[_F], _F]:
        """Decorator of the action that runs where no subcommand is named; `codes` are its exit codes beside 0 and 2."""
        return self._adding(self.app.callback, invoke_without_command=True, epilog=_epilog(codes))

    def command(self, name: str, *codes: int) -> Callable[[_F], _F]:
        """Decorator of a subcommand; `codes` are its exit codes beside 0 and 2."""
        self._subcommands.append(name)
        return self._adding(self.app.command, name=name, cls=_Subcommand, epilog=_epilog(codes))

    def _adding(self, register: Callable[..., Any], **settings: Any) -> Callable[[_F], _F]:
        def add(function: _F) -> _F:
            text = _help(function)
            register(help=text, context_settings=_SETTINGS, **settings)(_with_version(function, self.name))
            return function

        return add

    def complete(self, incomplete: str) -> list[str]:
        """Subcommands that begin so, for the completion of the default action's argument."""
        return [name for name in self._subcommands if name.startswith(incomplete)]

    def __call__(self) -> None:
        """Run on sys.argv. Raises UsageError for what the parser refuses, SystemExit for an exit code that is not 0."""
        try:
            code = self.app(prog_name=self.name, standalone_mode=False)
        except PARSER_ERROR as error:
            raise refusal(self.name, error, self._moved) from error
        if isinstance(code, int) and code:
            raise SystemExit(code)

    def main(self, show_error: Callable[[Exception], None] = terminal.show_error) -> Callable[[], NoReturn]:
        """The function that an entry point names."""
        return entry(self, show_error)


def _help(function: Callable[..., Any]) -> str:
    """The docstring with each paragraph in one line, but for commands to copy."""
    paragraphs = (inspect.getdoc(function) or "").split("\n\n")
    return "\n\n".join(one if one.startswith("tempme-") else one.replace("\n", " ") for one in paragraphs)


def _epilog(codes: tuple[int, ...]) -> str:
    return f"Exit codes: {'; '.join(f'{code} {CODES[code]}' for code in (0, 2, *codes))}."


def _with_version(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """The function with the option --version, which prints the command's name and version and exits."""

    def show(asked: bool) -> None:
        if asked:
            typer.echo(f"{name} {_version()}")
            raise typer.Exit

    @functools.wraps(function)
    def call(*, version: bool, **arguments: Any) -> Any:
        return function(**arguments)

    option = Annotated[bool, typer.Option("--version", help="Show the version and exit.", callback=show, is_eager=True)]
    signature = inspect.signature(function)
    version = inspect.Parameter("version", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=option)
    call.__signature__ = signature.replace(parameters=[*signature.parameters.values(), version])  # type: ignore[attr-defined]
    call.__annotations__ = {**function.__annotations__, "version": option}
    return call


def _version() -> str:
    try:
        return importlib.metadata.version("tempme-export")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed, run from its source)"
