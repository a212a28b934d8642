"""Reports of TensorRT's builder while it builds: its progress, its log, and the parser's errors with their nodes.

TensorRT calls these from threads of its own, where nothing may be raised: an exception is kept, stops the build, and
is raised once the builder has returned. Has not been run with TensorRT yet.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tempme_export.progress import LogLine, Progress, Step

_KEPT = 12  # of the builder's complaints, for the message of a failed build


@dataclass(frozen=True)
class BuildStep:
    """Progress of a build.

    phase     what the builder does now, in its own words, the innermost phase
    fraction  of the whole build, by the steps of all phases around it: 0 at its start, 1 at its end
    """

    phase: str
    fraction: float


@dataclass
class _Phase:
    name: str
    parent: str | None
    steps: int
    done: int = 0


class Phases:
    """The builder's phases, which lie inside each other, as one fraction that never falls."""

    def __init__(self) -> None:
        self._open: dict[str, _Phase] = {}
        self._reached = 0.0

    def start(self, name: str, parent: str | None, steps: int) -> BuildStep:
        """A phase of `steps` steps begins inside of `parent`."""
        self._open[name] = _Phase(name, parent, max(steps, 1))
        return self._step(name)

    def complete(self, name: str, step: int) -> BuildStep:
        """Step number `step`, from 0, is done."""
        if name in self._open:
            self._open[name].done = min(step + 1, self._open[name].steps)
        return self._step(name)

    def finish(self, name: str) -> BuildStep:
        """A phase ended, perhaps before all its steps."""
        ended = self._open.pop(name, None)
        if ended is not None and ended.parent not in self._open:
            self._reached = 1.0
        return BuildStep(name, self._reached)

    def _step(self, name: str) -> BuildStep:
        phase, inner = self._open.get(name), 0.0
        while phase is not None:
            inner = min((phase.done + inner) / phase.steps, 1.0)
            phase = self._open.get(phase.parent or "")
        self._reached = max(self._reached, inner)
        return BuildStep(name, self._reached)


class Failure:
    """The first exception out of a function that TensorRT called back."""

    def __init__(self) -> None:
        self.error: BaseException | None = None

    def keep(self, error: BaseException) -> None:
        """Keep an exception unless there is an earlier one."""
        self.error = self.error or error

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Within, an exception is kept and goes on."""
        try:
            yield
        except BaseException as error:  # KeyboardInterrupt too: this runs in TensorRT's own frames
            self.keep(error)
            raise

    def guard(self, call: Callable[[], object]) -> bool:
        """Call, unless an earlier call failed. True where the build may go on."""
        if self.error is None:
            try:
                call()
            except BaseException as error:  # KeyboardInterrupt too: this runs in TensorRT's own frames
                self.keep(error)
        return self.error is None

    def raise_again(self) -> None:
        """Raise what was kept."""
        if self.error is not None:
            raise self.error


def make_monitor(trt: Any, step: Step, failure: Failure) -> Any:
    """An IProgressMonitor that advances a step in percent; the caller keeps it alive while building."""
    phases, lock = Phases(), threading.Lock()

    def advance(reached: BuildStep) -> None:
        step.advance(100 * reached.fraction, reached.phase)

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Passes on what the builder reports."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            """A phase begins."""
            with lock:
                failure.guard(lambda: advance(phases.start(phase_name, parent_phase, num_steps)))

        def step_complete(self, phase_name: str, step: int) -> bool:
            """A step is done; False stops the build."""
            with lock:
                return failure.guard(lambda: advance(phases.complete(phase_name, step)))

        def phase_finish(self, phase_name: str) -> None:
            """A phase ended."""
            with lock:
                failure.guard(lambda: advance(phases.finish(phase_name)))

    return Monitor()


class Complaints:
    """The last errors and warnings of TensorRT's log."""

    def __init__(self) -> None:
        self._errors: deque[str] = deque(maxlen=_KEPT)
        self._warnings: deque[str] = deque(maxlen=_KEPT)

    def add(self, severity: str, text: str) -> None:
        """Keep a line if it is one."""
        if "ERROR" in severity:
            self._errors.append(text)
        elif severity == "WARNING":
            self._warnings.append(text)

    def text(self) -> str:
        """Lines below a message: the errors, or the warnings where there are none."""
        lines = list(self._errors or self._warnings) or ["It said nothing. See --verbose."]
        return "".join(f"\n  {line}" for line in lines)


def make_logger(trt: Any, complaints: Complaints, progress: Progress, verbose: bool, failure: Failure) -> Any:
    """An ILogger that keeps complaints and, when verbose, tells every line."""
    lock = threading.Lock()

    class Log(trt.ILogger):  # type: ignore[misc]
        """TensorRT's log."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            """One line."""
            name = str(severity).rsplit(".", 1)[-1]
            with lock:
                complaints.add(name, msg)
                if verbose:
                    failure.guard(lambda: progress.tell(LogLine("TensorRT", f"{name.lower()}: {msg}")))

    return Log()


def parser_errors(parser: Any) -> list[str]:
    """Every error of an OnnxParser as a line: the node, the functions around it, and what is wrong."""
    return [_describe(parser.get_error(index)) for index in range(parser.num_errors)]


def _describe(error: Any) -> str:
    operator, name = error.node_operator() or "?", error.node_name() or "?"
    inside = " in ".join(reversed(list(error.local_function_stack() or ())))
    where = f" in function {inside}" if inside else ""
    return f"node {error.node()}, {operator} {name!r}{where}: {error.desc()}"
