"""`tempme-doctor`: what this machine can do, and what each missing thing would enable."""

from collections.abc import Callable
from typing import Annotated

import typer

from tempme_export.cli import doctor_console as console
from tempme_export.cli.entry import entry
from tempme_export.cli.terminal import write_json
from tempme_export.doctor.machine import Machine, examine, this_machine
from tempme_export.doctor.process import TIME_LIMIT
from tempme_export.doctor.rules import diagnose
from tempme_export.doctor.rules import names as capabilities
from tempme_export.errors import BackendError, UsageError

Look = Callable[[float], Machine]


def _look(limit: float) -> Machine:
    return examine(this_machine(limit))


def doctor(look: Look = _look) -> typer.Typer:
    """The command. `look` examines a machine, given the seconds for each part."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

    @app.command()
    def command(
        require: Annotated[
            list[str] | None,
            typer.Option(metavar="NAME", help=f"Fail without it, repeatable: {', '.join(capabilities())}."),
        ] = None,
        as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
        timeout: Annotated[float, typer.Option(metavar="SECONDS", min=1.0, help="For each part.")] = TIME_LIMIT,
    ) -> None:
        """Load every part for real and say what this machine can do, what is missing, what it would enable and how to
        get it.

        Exit codes: 0 the core works and so does all that is required, 2 usage, 4 something of that is missing.
        """
        required = tuple(require or ())
        unknown = sorted(set(required) - set(capabilities()))
        if unknown:
            raise UsageError(f"--require {', '.join(unknown)} is not known. Choose from {', '.join(capabilities())}.")
        with console.looking():
            diagnosis = diagnose(look(timeout))
        console.show(diagnosis)
        if as_json:
            write_json({"required": list(required), **diagnosis.to_dict()})
        missing = diagnosis.missing(required)
        if missing:
            problems = "; ".join(
                dict.fromkeys(f"{part}: {why}" for one in missing for part, why in one.missing.items())
            )
            commands = "; ".join(dict.fromkeys(line for one in missing for line in one.install))
            names = ", ".join(one.name for one in missing)
            raise BackendError(f"{names} cannot be done on this machine: {problems}. To get there: {commands}")

    return app


main = entry(doctor())


if __name__ == "__main__":
    main()
