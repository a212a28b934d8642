"""What `tempme-export` prints of a TensorRT engine: its plan, its build while it goes on, and what came out."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tempme_export.cli.terminal import STDERR, show_line

if TYPE_CHECKING:
    from tempme_export.exporters.trt.plan import EnginePlan
    from tempme_export.exporters.trt.reports import BuildStep
    from tempme_export.runtime.engine_facts import EngineFacts

_BAR = 24  # characters


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"


def _batch(batch: tuple[int, int, int]) -> str:
    return f"batch {':'.join(map(str, batch))}"


def show_engine_plan(plan: "EnginePlan") -> None:
    """What an engine would be built from and with, and what is missing here to build it."""
    show_line("engine", f"TensorRT {plan.tensorrt}   strongly typed, {plan.precision}, {_batch(plan.batch)}")
    for name, shapes in plan.profile.items():
        show_line("input", f"{name}   {', '.join(str(list(shape)) for shape in shapes)}")
    show_line("plugins", f"{sum(plan.plugins.values())} nodes: {_counts(plan.plugins)}")
    chosen = f"{plan.target} for this GPU, of " if plan.target else ""
    show_line("PTX", f"{chosen}{', '.join(plan.targets)}; {plan.universal} for any other later GPU")
    for one in plan.missing:
        show_line("missing", one)


class EngineSteps:
    """A builder's progress: a bar that is written over on a terminal, and elsewhere a line for every phase."""

    def __init__(self) -> None:
        self._seen: set[str] = set()
        self._is_open = False

    def show(self, step: "BuildStep") -> None:
        """How far the build is."""
        if STDERR.is_terminal:
            bar = "#" * round(step.fraction * _BAR)
            text = f"{'engine':<10} [{bar:<{_BAR}}] {step.fraction:4.0%}  {step.phase}"
            width = STDERR.width - 1
            STDERR.print(f"{text[:width]:<{width}}", markup=False, soft_wrap=True, end="\r")
            self._is_open = True
        elif step.phase not in self._seen:
            self._seen.add(step.phase)
            show_line("engine", step.phase)

    def close(self) -> None:
        """End a bar, so that what is printed next has a line of its own; the next build starts anew."""
        if self._is_open:
            STDERR.print()
        self._seen.clear()
        self._is_open = False


def show_engine_log(text: str) -> None:
    """One line of the builder's log."""
    show_line("TensorRT", text)


def show_engine(facts: "EngineFacts") -> None:
    """What was built, and the proof of its precision."""
    driver = f", driver {facts.driver}" if facts.driver else ""
    where = f"{facts.gpu} ({facts.capability}){driver}"
    show_line("engine", f"TensorRT {facts.tensorrt}, {where}, {_batch(facts.batch)}   built in {facts.seconds:.0f} s")
    shares = ", ".join(f"{name} {share:.0%}" for name, share in facts.shares.items())
    show_line("precision", f"matrix products: {_counts(facts.products)}   layers: {shares}")
    show_line("plugins", f"{facts.engine_plugins} layers: {_counts(facts.plugins)}   PTX for {facts.target}")
    show_line("attention", f"{facts.attentions} fused")
