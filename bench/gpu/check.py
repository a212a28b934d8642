"""`tempme-bench gpu-check FOLDER --minutes N`: every check that only a GPU can make, in one command and one file.

For a machine with torch, Triton and a GPU, and nothing else of what this package exports to. `gpu-check.json` in
FOLDER is written anew after every step, so that what was measured stays whatever ends the rest; its encoder rows are
those of every measurement, which a page reads. Exits 1 where a step failed, 4 without a GPU.
"""

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from tempme_export.bench.core.row import SCHEMA_VERSION, Row
from tempme_export.bench.gpu.processes import FAILED, STEPS, TIMED_OUT, Context, Outcome, Step, skipped
from tempme_export.bench.tables.gpu import gpu_tables
from tempme_export.bench.tables.rows import bench_tables
from tempme_export.bench.tables.terminal import say, show
from tempme_export.cli.terminal import show_again, show_next
from tempme_export.errors import BackendError, UsageError
from tempme_export.files import write_file
from tempme_export.names import command

DOCUMENT = "gpu-check.json"
DRY_RUN = "dry run: CPU, not a measurement"
_SHORTEST_S = 5


def chosen_steps(names: str | None) -> list[Step]:
    """The steps named, in their usual order, or all. Raises UsageError for an unknown one."""
    known = {step.name for step in STEPS}
    asked = known if names is None else {name.strip() for name in names.split(",")}
    if not asked <= known:
        raise UsageError(
            f"--steps: found {', '.join(sorted(asked - known))}, "
            f"expected some of {', '.join(step.name for step in STEPS)}."
        )
    return [step for step in STEPS if step.name in asked]


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
    from tempme_export.bench.gpu.state import gpu_state, versions
    from tempme_export.bench.machine import machine

    gpu = gpu_state()
    return {
        "gpu": None if gpu is None else dataclasses.asdict(gpu),
        "versions": versions(),
        "machine": {**dataclasses.asdict(machine()), "cpus": os.cpu_count()},
        "commit": _commit(checkout),
    }


def run_steps(
    steps: Sequence[Step], context: Context, document: dict[str, Any], console: Console, seconds: float
) -> list[Outcome]:
    """Run the steps in order, each within its part of the time left; show and write each outcome."""
    start, outcomes = time.perf_counter(), []
    for i, step in enumerate(steps):
        left = seconds - (time.perf_counter() - start)
        limit_s = left * step.weight / sum(one.weight for one in steps[i:])
        if limit_s < _SHORTEST_S:
            outcome = skipped(step.name, "no time was left")
        else:
            console.print(f"{step.name}: at most {limit_s:.0f} s", soft_wrap=True)
            outcome = step.run(step.name, context, limit_s)
        outcomes.append(outcome)
        document["steps"] = [dataclasses.asdict(one) for one in outcomes]
        document["rows"] = [row for one in outcomes for row in one.result.get("rows", {}).get("encoder", ())]
        document["seconds"] = round(time.perf_counter() - start, 1)
        write_file(context.folder / DOCUMENT, (json.dumps(document, indent=1) + "\n").encode())
        _show(console, outcome)
    return outcomes


def _show(console: Console, outcome: Outcome) -> None:
    reason = "" if outcome.error is None else f": {outcome.error}"
    say(console, f"{outcome.step} {outcome.status.upper()} in {outcome.seconds:.0f} s{reason}")
    for note in outcome.result.get("notes", []):
        say(console, f"  {note}")
    if outcome.status in (FAILED, TIMED_OUT):
        for line in outcome.log:
            console.print(f"  | {line}", soft_wrap=True)
    found = outcome.result.get("rows", {})
    for table in (*bench_tables([Row.read(row) for row in found.get("encoder", ())]), *gpu_tables(found)):
        show(console, table)


def failed(outcomes: Iterable[Outcome]) -> list[str]:
    """The steps that did not do what they should."""
    return [one.step for one in outcomes if one.status in (FAILED, TIMED_OUT)]


def check(folder: Path, steps: str | None, *, dry_run: bool, minutes: float) -> int:
    """Run the steps and write FOLDER/gpu-check.json. The exit code: 1 where a step failed.

    minutes  for all steps together
    Raises UsageError for unknown steps and an impossible folder, BackendError without a GPU.
    """
    import torch

    chosen = chosen_steps(steps)
    if minutes <= 0:
        raise UsageError(f"--minutes {minutes:g}: found no time, expected minutes above 0.")
    if not dry_run and not torch.cuda.is_available():
        raise BackendError("there is no GPU here that torch can use. Rehearse with --dry-run.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder} cannot be a folder: {error}.") from error
    checkout = Path.cwd() if (Path.cwd() / "tests" / "kernels").is_dir() else None
    console = Console(stderr=True, markup=False, highlight=False, emoji=False)
    document: dict[str, Any] = {
        "command": command("tempme-bench", *sys.argv[1:]),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "dry_run": dry_run,
        **_facts(checkout),
        "schema": SCHEMA_VERSION,
        "rows": [],
        "steps": [],
    }
    if dry_run:
        document["warning"] = DRY_RUN
        console.print(DRY_RUN)
    context = Context(folder.absolute(), checkout, dry_run)
    outcomes = run_steps(chosen, context, document, console, 60 * minutes)
    console.print(f"wrote {context.folder / DOCUMENT}", soft_wrap=True)
    bad = failed(outcomes)
    if bad:
        console.print(f"NOT as they should be: {', '.join(bad)}", soft_wrap=True)
        show_again("tempme-bench", "--steps", ",".join(bad))
    elif dry_run:
        show_again("tempme-bench", without="--dry-run")
    else:
        show_next(command("tempme-bench", "--device", "cuda", "--out", "results"))
    return 1 if bad else 0
