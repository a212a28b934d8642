"""Output of `tempme-doctor`, line by line. Human text goes to stderr, data to stdout."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from tempme_export.cli.terminal import STDERR, show_command, show_next
from tempme_export.cli.terminal import show_line as _line
from tempme_export.doctor.advice import advise
from tempme_export.runtime.processor import INT8_ADVICE

if TYPE_CHECKING:
    from tempme_export.doctor.machine import Machine, Part
    from tempme_export.doctor.rules import Diagnosis


@contextmanager
def looking() -> Iterator[None]:
    """A moving line on a terminal while the probes run; nothing elsewhere."""
    if not STDERR.is_terminal:
        yield
        return
    with STDERR.status("loading every part, about ten seconds"):
        yield


def _named(part: "Part") -> str:
    return f"{part.name} {part.version}" if part.version else part.name


def _show_machine(machine: "Machine") -> None:
    host = machine.host
    memory = f", {host.memory / 1e9:.0f} GB memory" if host.memory else ""
    _line("machine", f"Python {host.python}, {host.system}, {host.cores} cores{memory}")
    _line("processor", INT8_ADVICE[host.int8])
    _line("package", f"tempme-export {host.package or 'not installed, run from its source'}")
    sizes = (f"{disk.path} {disk.free / 1e9:.1f} GB" if disk.free is not None else disk.path for disk in machine.disks)
    _line("disk", f"free in {', '.join(sizes)}")
    for index, gpu in enumerate(machine.gpus):
        _line("GPU", f"cuda:{index}   {gpu.name}   {gpu.capability}")
    if not machine.gpus:
        _line("GPU", "none")


def _show_parts(machine: "Machine") -> None:
    working = [part for part in machine.parts if part.problem is None]
    plain = [_named(part) for part in working if not part.notes]
    for part in (part for part in working if part.notes):
        _line("works", f"{_named(part)}   {', '.join(part.notes)}")
    if plain:
        _line("works", ", ".join(plain))


def _show_missing(diagnosis: "Diagnosis") -> None:
    problems = {name: why for one in diagnosis.capabilities for name, why in one.missing.items()}
    for name, why in problems.items():
        _line("missing", f"{name}: {why}")
    commands: dict[str, list[str]] = {}
    for one in diagnosis.capabilities:
        for command in one.install:
            commands.setdefault(command, []).append(one.name)
    for command, names in commands.items():
        show_command("to get", f"{', '.join(names)}: {command}")


def show(diagnosis: "Diagnosis") -> None:
    """One screen: the next command, the machine, the parts that work, what can be done, and what mends the rest."""
    advice = advise(diagnosis)
    show_next(advice.command)
    _line("why", advice.reason)
    _show_machine(diagnosis.machine)
    _show_parts(diagnosis.machine)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("can do", "", "what it is", "missing"):
        table.add_column(column)
    for one in diagnosis.capabilities:
        verdict = "[green]yes[/]" if one.works else "[yellow]no[/]"
        table.add_row(one.name, verdict, escape(one.enables), escape(", ".join(one.missing)))
    STDERR.print(table)
    _show_missing(diagnosis)
