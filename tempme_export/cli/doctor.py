"""`tempme-doctor`: what this machine can do, and what each missing thing would enable."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated

import typer

from tempme_export.cli import doctor_console as console
from tempme_export.cli.app import CommandLine
from tempme_export.cli.options import JsonOption
from tempme_export.cli.terminal import write_json
from tempme_export.doctor.advice import advise
from tempme_export.doctor.machine import Machine, examine, this_machine
from tempme_export.doctor.process import TIME_LIMIT
from tempme_export.doctor.rules import diagnose
from tempme_export.doctor.rules import names as capabilities
from tempme_export.errors import BackendError, UsageError, did_you_mean

Look = Callable[[float], Machine]


def _look(limit: float) -> Machine:
    return examine(this_machine(limit))


def _complete(incomplete: str) -> list[str]:
    return [name for name in capabilities() if name.startswith(incomplete)]


def doctor(look: Look = _look) -> CommandLine:
    """The command. `look` examines a machine, given the seconds for each part."""
    line = CommandLine("tempme-doctor")

    @line.default(4)
    def command(
        require: Annotated[
            list[str] | None,
            typer.Option(
                metavar="NAME",
                autocompletion=_complete,
                help=f"Exit with 4 without it; repeatable: {', '.join(capabilities())}.",
            ),
        ] = None,
        timeout: Annotated[
            float, typer.Option(metavar="SECONDS", min=1.0, help="Time limit of each part.")
        ] = TIME_LIMIT,
        as_json: JsonOption = False,
    ) -> None:
        """Test what this machine can do, and name the next command: each part is loaded and run.

        tempme-doctor                  what works, what is missing and how to get it
        tempme-doctor --require cpu    exit with 4 unless bundles can be run with ONNX Runtime
        """
        required = tuple(require or ())
        unknown = sorted(set(required) - set(capabilities()))
        if unknown:
            raise UsageError(
                f"--require: found {', '.join(unknown)}, expected some of {', '.join(capabilities())}."
                f"{did_you_mean(unknown[0], capabilities())}"
            )
        with console.looking():
            diagnosis = diagnose(look(timeout))
        console.show(diagnosis)
        if as_json:
            write_json({"next": asdict(advise(diagnosis)), "required": list(required), **diagnosis.to_dict()})
        missing = diagnosis.missing(required)
        if missing:
            problems = "; ".join(
                dict.fromkeys(f"{part}: {why}" for one in missing for part, why in one.missing.items())
            )
            commands = "; ".join(dict.fromkeys(line for one in missing for line in one.install))
            names = ", ".join(one.name for one in missing)
            raise BackendError(f"{names} cannot be done on this machine: {problems}. To get there: {commands}")

    return line


main = doctor().main()


if __name__ == "__main__":
    main()
