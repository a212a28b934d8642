"""Steps of a GPU check: processes with a time limit, and what became of them."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PASSED, FAILED, SKIPPED, TIMED_OUT = "passed", "failed", "skipped", "timed out"
_TAIL = 25
_NEEDS = ("onnx", "onnxruntime", "polars", "open_clip")  # of the fixtures beside the tests outside tests/kernels
_OTHER_TESTS = ("tests/encoder/test_ops.py", "tests/exporters/test_pt2.py", "tests/bench/kernels/test_timing.py")
_DRY_TESTS = "tests/kernels/triton/test_match.py"
_DRY_SELECTION = "test_r_beyond_what_there_is_to_merge or test_an_empty_batch"
_COUNTS = re.compile(r"(\d+) (passed|failed|skipped|errors?|deselected)")
_SANITIZER = "compute-sanitizer"
_SANITIZER_PLACES = ("/usr/local/cuda/bin", "/opt/cuda/bin", "/usr/local/cuda/compute-sanitizer")


@dataclass(frozen=True)
class Outcome:
    """Outcome of a step. `result` is what it wrote, also where it then failed or ran out of time.

    log  the last lines it said
    """

    step: str
    status: str
    seconds: float
    limit_s: float
    error: str | None = None
    result: dict[str, Any] = field(default_factory=dict)
    log: tuple[str, ...] = ()


@dataclass(frozen=True)
class Finished:
    """A process that ended, or was ended (`code` None)."""

    code: int | None
    seconds: float
    lines: tuple[str, ...]


def run_process(
    command: Sequence[str], log: Path, limit_s: float, *, cwd: Path | None = None, variables: Mapping[str, str] = {}
) -> Finished:
    """Run a command with a time limit; what it says goes to `log`. Processes it started end with it."""
    start = time.perf_counter()
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command,
            stdout=stream,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env={**os.environ, **variables},
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(timeout=limit_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return Finished(code, time.perf_counter() - start, tuple(line for line in lines if line.strip()))


@dataclass(frozen=True)
class Context:
    """The setting in which steps run.

    checkout  holds the tests; None where they are not at hand
    run       as `run_process`
    """

    folder: Path
    checkout: Path | None
    dry_run: bool
    run: Callable[..., Finished] = run_process


def _outcome(
    step: str, limit_s: float, done: Finished, result: dict[str, Any] | None = None, error: str | None = None
) -> Outcome:
    status = PASSED
    if done.code is None:
        status, error = TIMED_OUT, error or f"ended after {done.seconds:.0f} s"
    elif done.code != 0 or error is not None:
        status = FAILED
        if error is None:
            ended = f"signal {-done.code}" if done.code < 0 else f"exit code {done.code}"
            error = done.lines[-1] if done.lines else ended
    return Outcome(step, status, done.seconds, limit_s, error, result or {}, done.lines[-_TAIL:])


def skipped(step: str, reason: str) -> Outcome:
    """A step that has nothing to do here."""
    return Outcome(step, SKIPPED, 0.0, 0.0, reason)


def worker(step: str, context: Context, limit_s: float) -> Outcome:
    """A step of `gpu.worker`, with what it wrote."""
    path, log = context.folder / f"{step}.json", context.folder / f"{step}.log"
    path.unlink(missing_ok=True)
    command = [sys.executable, "-m", "tempme_export.bench.gpu.worker", step, str(path), f"{limit_s:.0f}"]
    command += ["--dry-run"] * context.dry_run
    done = context.run(command, log, limit_s)
    result: dict[str, Any] = {}
    if path.is_file():
        result = json.loads(path.read_text(encoding="utf-8"))
        path.unlink()
    failures = result.get("failures", [])
    return _outcome(step, limit_s, done, result, "; ".join(failures) or None)


def gpu_tests(checkout: Path, missing: Sequence[str]) -> tuple[list[str], list[str]]:
    """Test files to run, and notes on those that cannot be for want of packages."""
    files = sorted(str(one.relative_to(checkout)) for one in (checkout / "tests/kernels").rglob("test_*.py"))
    others = [one for one in _OTHER_TESTS if (checkout / one).is_file()]
    if missing:
        return files, [f"not run for want of {', '.join(missing)}: {', '.join(others)}"]
    return files + others, []


def counts(lines: Sequence[str]) -> dict[str, int]:
    """Counts of pytest's last line."""
    found = _COUNTS.findall(lines[-1]) if lines else []
    return {word.removesuffix("s") if word == "errors" else word: int(number) for number, word in found}


def kernel_tests(step: str, context: Context, limit_s: float) -> Outcome:
    """pytest on each file in a process of its own, side by side: they compile more than they compute."""
    if context.checkout is None:
        return skipped(step, "tests/kernels is not here. Run this from the root of the checkout.")
    checkout = context.checkout
    if find_spec("pytest") is None:
        return skipped(step, "pytest is not installed.")
    missing = [name for name in _NEEDS if find_spec(name) is None]
    files, notes = ([_DRY_TESTS], []) if context.dry_run else gpu_tests(checkout, missing)
    chosen = ["-k", _DRY_SELECTION] if context.dry_run else ["-m", "gpu"]
    variables = {"TRITON_INTERPRET": "1"} if context.dry_run else {}

    def run(file: str) -> Finished:
        log = context.folder / f"{step}-{Path(file).stem}.log"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--maxfail=20", *chosen, file]
        return context.run(command, log, limit_s, cwd=checkout, variables=variables)

    start = time.perf_counter()
    with ThreadPoolExecutor(max_workers=max(2, (os.cpu_count() or 2) // 2)) as pool:
        ended = dict(zip(files, pool.map(run, files), strict=True))
    rows, lines, problems = [], [], []
    for file, done in ended.items():
        found = counts(done.lines)
        ran = found.get("passed", 0) + found.get("failed", 0) + found.get("error", 0)
        nothing = done.code == 5 or (done.code == 0 and ran == 0)
        status = TIMED_OUT if done.code is None else SKIPPED if nothing else PASSED if done.code == 0 else FAILED
        rows.append({"file": file, "status": status, "seconds": done.seconds, "code": done.code, **found})
        if status in (FAILED, TIMED_OUT):
            problems.append(f"{file} {status}")
            lines += [f"-- {file}", *done.lines[-_TAIL:]]
    if not any(row.get("passed") for row in rows):
        problems.append("no test passed")
    whole = Finished(0, time.perf_counter() - start, tuple(lines[-8 * _TAIL :]))
    outcome = _outcome(step, limit_s, whole, {"rows": {"tests": rows}, "notes": notes}, "; ".join(problems) or None)
    return Outcome(**{**outcome.__dict__, "log": whole.lines})


def find_sanitizer() -> str | None:
    """compute-sanitizer, on the path or where CUDA puts it."""
    return shutil.which(_SANITIZER) or shutil.which(_SANITIZER, path=os.pathsep.join(_SANITIZER_PLACES))


def sanitizer(step: str, context: Context, limit_s: float) -> Outcome:
    """compute-sanitizer's memcheck and racecheck on one small call of every kernel."""
    program = find_sanitizer()
    if program is None:
        return skipped(step, f"{_SANITIZER} is not installed.")
    if context.dry_run:
        return skipped(step, f"{program} is installed; a dry run does not start it.")
    rows, lines, problems, seconds = [], [], [], 0.0
    # Without torch's own cache every tensor is an allocation that the tool knows the bounds of.
    variables = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    for tool in ("memcheck", "racecheck"):
        command = [program, "--tool", tool, "--error-exitcode", "9", "--launch-timeout", "0"]
        command += [sys.executable, "-m", "tempme_export.bench.gpu.smoke"]
        log = context.folder / f"{step}-{tool}.log"
        done = context.run(command, log, max(1.0, limit_s - seconds), variables=variables)
        seconds += done.seconds
        said = [line for line in done.lines if "ERROR SUMMARY" in line or "RACECHECK SUMMARY" in line]
        rows.append({"tool": tool, "code": done.code, "seconds": done.seconds, "summary": said[-1:]})
        if done.code != 0:
            problems.append(f"{tool}: {'out of time' if done.code is None else f'exit code {done.code}'}")
            lines += [f"-- {tool}", *done.lines[-_TAIL:]]
    whole = Finished(0, seconds, tuple(lines))
    return _outcome(step, limit_s, whole, {"rows": {"sanitizer": rows}}, "; ".join(problems) or None)


@dataclass(frozen=True)
class Step:
    """One step: its part of the time that is left when it begins, beside those behind it, and what runs it."""

    name: str
    weight: float
    run: Callable[[str, Context, float], Outcome] = worker


# What is worth most comes first: what was measured before the time is up stays.
STEPS = (
    Step("encoder-b32", 4),
    Step("kernels", 4),
    Step("tests", 5, kernel_tests),
    Step("determinism", 2),
    Step("sanitizer", 4, sanitizer),
    Step("encoder-b16", 3),
    Step("kernels-b16", 3),
    Step("compiled", 6),
    Step("original-compiled", 4),
)
