"""One probe in a process of its own with a time limit: one that crashes or hangs is an answer, and no end."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from typing import IO, Any

TIME_LIMIT = 20.0  # seconds for one probe; the slowest, torch from a cold disk, takes a third
_GRACE = 2.0  # seconds for a killed process to go; one that hangs in a driver may never
_ENDED = "its process ended"
_SAID = 300  # characters of a last line
_NO_LIBRARY = re.compile(r"(\S+\.so[.\d]*): cannot open shared object file")


def _stream() -> IO[bytes]:
    """A stream for all that a process and its children write, however much: in memory, where the system can."""
    return open(os.memfd_create("probe"), "w+b") if hasattr(os, "memfd_create") else tempfile.TemporaryFile()


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    try:
        process.wait(_GRACE)
    except subprocess.TimeoutExpired:
        return  # it hangs in a driver, where no signal reaches it; it is not waited for


def _explained(problem: str, stream: IO[bytes]) -> str:
    """A problem with what the process wrote to stderr about it: the missing library, or the last line of a crash."""
    stream.seek(0)
    said = re.sub(r"\x1b\[[0-9;]*m", "", stream.read().decode(errors="replace")).strip()
    library = _NO_LIBRARY.search(said)
    if library and library[1] not in problem:
        return f"{problem}; {library[1]} cannot be loaded"
    if problem.startswith(_ENDED) and said:
        return f"{problem}: {said.splitlines()[-1].strip()[:_SAID]}"
    return problem


def _ended(code: int) -> str:
    if code < 0:
        try:
            return f"{_ENDED} by {signal.Signals(-code).name}"
        except ValueError:
            return f"{_ENDED} by signal {-code}"
    return f"{_ENDED} with code {code} and no answer"


def ask_probe(probe: str, *arguments: str, limit: float = TIME_LIMIT) -> dict[str, Any]:
    """Run one probe of `doctor.probes` in its own process: {"report": ...} or {"problem": text}."""
    command = [sys.executable, "-P", "-m", "tempme_export.doctor.probes", probe, *arguments]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    with _stream() as out, _stream() as err:
        try:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment)
        except OSError as error:
            return {"problem": f"Python could not be started: {error}"}
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            return {"problem": f"did not answer within {limit:g} s"}
        finally:
            _end(process)
        out.seek(0)
        try:
            answer: dict[str, Any] = json.loads(out.read())
        except ValueError:
            answer = {"problem": _ended(code)}
        return {"problem": _explained(answer["problem"], err)} if "problem" in answer else answer
