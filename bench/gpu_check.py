"""`python -m tempme_export.bench.gpu_check FOLDER`: everything that only a GPU can show, in one command and one file.

For a machine with torch, Triton and a GPU, and nothing else of what this package exports to. `gpu-check.json` in
FOLDER is written anew after every step, so that what was measured stays whatever ends the rest. Exits 1 where a step
failed, 4 without a GPU.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console

from tempme_export.bench.check_steps import FAILED, STEPS, TIMED_OUT, Context, Outcome, Step, skipped
from tempme_export.bench.tables import gpu_tables, show
from tempme_export.cli.entry import entry
from tempme_export.errors import BackendError, UsageError
from tempme_export.files import write_file
from tempme_export.names import command

DOCUMENT = "gpu-check.json"
DRY_RUN = "dry run: CPU, not a measurement"


def chosen_steps(names: str | None) -> list[Step]:
    """The steps named, in their usual order, or all. Raises UsageError for an unknown one."""
    known = {step.name for step in STEPS}
    wanted = known if names is None else {name.strip() for name in names.split(",")}
    if not wanted <= known:
        raise UsageError(
            f"--steps {names!r}: unknown are {', '.join(sorted(wanted - known))}. "
            f"Choose of: {', '.join(step.name for step in STEPS)}."
        )
    return [step for step in STEPS if step.name in wanted]


def _commit(checkout: Path | None) -> str | None:
    """Of the checkout; None where git does not answer."""
    if checkout is None:
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _facts(checkout: Path | None) -> dict[str, Any]:
    from tempme_export.bench.gpu_facts import gpu_facts, versions
    from tempme_export.bench.machine import machine

    gpu = gpu_facts()
    return {
        "gpu": None if gpu is None else dataclasses.asdict(gpu),
        "versions": versions(),
        "machine": {**dataclasses.asdict(machine()), "cpus": os.cpu_count()},
        "commit": _commit(checkout),
    }


def run_steps(
    steps: Sequence[Step], context: Context, document: dict[str, Any], console: Console, seconds: float | None
) -> list[Outcome]:
    """Run the steps in order, each within its limit and the time left; show and write each outcome."""
    start, outcomes = time.perf_counter(), []
    for step in steps:
        limit_s = step.quick_limit_s if context.quick else step.limit_s
        left = float("inf") if seconds is None else seconds - (time.perf_counter() - start)
        if limit_s == 0:
            outcome = skipped(step.name, "left out with --quick")
        elif left < 5:
            outcome = skipped(step.name, "no time was left")
        else:
            console.print(f"{step.name}: at most {min(limit_s, left):.0f} s", soft_wrap=True)
            outcome = step.run(step.name, context, min(limit_s, left))
        outcomes.append(outcome)
        document["steps"] = [dataclasses.asdict(one) for one in outcomes]
        document["seconds"] = round(time.perf_counter() - start, 1)
        write_file(context.folder / DOCUMENT, (json.dumps(document, indent=1) + "\n").encode())
        _show(console, outcome)
    return outcomes


def _show(console: Console, outcome: Outcome) -> None:
    reason = "" if outcome.error is None else f": {outcome.error}"
    console.print(f"{outcome.step} {outcome.status.upper()} in {outcome.seconds:.0f} s{reason}", soft_wrap=True)
    for note in outcome.result.get("notes", []):
        console.print(f"  {note}", soft_wrap=True)
    if outcome.status in (FAILED, TIMED_OUT):
        for line in outcome.log:
            console.print(f"  | {line}", soft_wrap=True)
    for table in gpu_tables(outcome.result.get("rows", {})):
        show(console, table)


def failed(outcomes: Iterable[Outcome]) -> list[str]:
    """The steps that did not do what they should."""
    return [one.step for one in outcomes if one.status in (FAILED, TIMED_OUT)]


def check(folder: Path, steps: str | None, *, quick: bool, dry_run: bool, seconds: float | None) -> int:
    """Run the steps and write FOLDER/gpu-check.json. The exit code: 1 where a step failed.

    seconds  for all steps together; None: their own limits only
    Raises UsageError for unknown steps and an impossible folder, BackendError without a GPU.
    """
    import torch

    wanted = chosen_steps(steps)
    if not dry_run and not torch.cuda.is_available():
        raise BackendError("there is no GPU here that torch can use. Rehearse with --dry-run.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder} cannot be a folder: {error}.") from error
    checkout = Path.cwd() if (Path.cwd() / "tests" / "kernels").is_dir() else None
    console = Console(stderr=True, markup=False, highlight=False, emoji=False)
    document: dict[str, Any] = {
        "command": command(sys.executable, "-m", "tempme_export.bench.gpu_check", *sys.argv[1:]),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "dry_run": dry_run,
        "quick": quick,
        **_facts(checkout),
        "steps": [],
    }
    if dry_run:
        document["warning"] = DRY_RUN
        console.print(DRY_RUN)
    context = Context(folder.absolute(), checkout, dry_run, quick)
    outcomes = run_steps(wanted, context, document, console, seconds)
    console.print(f"wrote {context.folder / DOCUMENT}", soft_wrap=True)
    bad = failed(outcomes)
    if bad:
        console.print(f"NOT as they should be: {', '.join(bad)}", soft_wrap=True)
    return 1 if bad else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gpu-check", description="Test, compare and time kernels and encoder on this machine's GPU."
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help=f"where {DOCUMENT} and the logs go")
    parser.add_argument("--steps", metavar="A,B", help="only these: " + ", ".join(step.name for step in STEPS))
    parser.add_argument("--quick", action="store_true", help="fewer batches and rounds, about four minutes")
    parser.add_argument("--dry-run", action="store_true", help="rehearse every step on the CPU; nothing is measured")
    parser.add_argument("--seconds", type=float, metavar="S", help="end after so long, with what was measured")
    return parser


def _check_as_asked() -> NoReturn:
    given = _parser().parse_args()
    code = check(given.folder, given.steps, quick=given.quick, dry_run=given.dry_run, seconds=given.seconds)
    raise SystemExit(code)


main = entry(_check_as_asked)

if __name__ == "__main__":
    main()
