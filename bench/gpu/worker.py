"""`python -m tempme_export.bench.gpu.worker STEP RESULT SECONDS`: one step of a GPU check in a process of its own.

A kernel that reads where it must not leaves no usable device behind it in its process, and a compiler can hang; so
each step has a process and writes what it has so far, whole, after everything it measures.
"""

import argparse
import dataclasses
import json
import logging
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch

from tempme_export.artifacts import registry
from tempme_export.artifacts.artifact import Making, Spec
from tempme_export.artifacts.backend import Backend
from tempme_export.bench.candidates import ORIGINAL, known_candidates
from tempme_export.bench.cases import Case
from tempme_export.bench.core.candidate import Candidate, Entry
from tempme_export.bench.core.clocks import SAMPLE_S, timer
from tempme_export.bench.core.protocol import Protocol
from tempme_export.bench.gpu.state import gpu_state, versions
from tempme_export.bench.run import run as compare
from tempme_export.bench.run_settings import RunSettings
from tempme_export.encoder.profile import load_profile
from tempme_export.encoder.random_weights import draw_checkpoint
from tempme_export.encoder.recipe import Recipe, prepare
from tempme_export.files import scratch_folder, write_file
from tempme_export.names import command
from tempme_export.progress import Progress

B_32, B_16, SMALL = "vit-b-32-12f", "vit-b-16-12f", "mini-8f"
AS_WRITTEN = (ORIGINAL, "original-bf16", "torch-bf16", "torch-fp16", "graph-bf16", "graph-fp16")
# Those whose artifact is built when an export is asked for it, and that run where there is no more than torch.
AHEAD_OF_TIME = tuple(
    one for one in registry.BACKENDS if one.offered and one.artifact.option and {*one.packages} <= {"torch", "triton"}
)
COMPILED = (ORIGINAL, "graph-bf16", "graph-bf16-compile", *(one.name for one in AHEAD_OF_TIME))
COMPILED_ORIGINAL = (ORIGINAL, "original-bf16", "original-compile", "original-bf16-compile")


@dataclasses.dataclass
class Record:
    """Findings of a step so far; `save` writes all of it in one step, so that a reader sees it whole.

    rows   by kind: `encoder`, `kernels`, `marginals`, `determinism`
    """

    path: Path
    rows: dict[str, list[dict[str, Any]]] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)
    failures: list[str] = dataclasses.field(default_factory=list)
    gpu: dict[str, Any] = dataclasses.field(default_factory=dict)
    timeline: list[tuple[float, str]] = dataclasses.field(default_factory=list)

    def add(self, kind: str, *rows: Any) -> None:
        """Dataclass rows."""
        self.rows.setdefault(kind, []).extend(dataclasses.asdict(row) for row in rows)
        self.save()

    def look(self, when: str) -> None:
        """Keep what the device says of itself now."""
        facts = gpu_state()
        if facts is not None:
            self.gpu[when] = dataclasses.asdict(facts)
        self.save()

    def save(self) -> None:
        """Write everything; an interrupted writing leaves what was there before."""
        document = {
            "versions": versions(),
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "path"},
        }
        write_file(self.path, json.dumps(document, indent=1).encode())


@dataclasses.dataclass(frozen=True)
class Run:
    """A step under way: `seconds` it has, `say` tells what begins."""

    record: Record
    dry_run: bool
    seconds: float
    say: Callable[[str], None]

    @property
    def device(self) -> str:
        return "cpu" if self.dry_run else f"cuda:{torch.cuda.current_device()}"

    def protocol(self, budget: float) -> Protocol:
        """For one comparison; samples of a device are repeated to be long enough, so that few do."""
        if self.dry_run:
            return Protocol(seconds=1e-6, samples=5, budget=1e-6, window=3, lead=0.0, resamples=20)
        return Protocol(seconds=0.05, samples=20, budget=budget, window=5, lead=0.0)

    def recipe(self, profile: str) -> Recipe:
        """The model that a step measures, or in a dry run a small one: random weights, the same in every process."""
        chosen = load_profile(SMALL if self.dry_run else profile)
        self.say(f"drawing weights of {chosen.name}")
        return prepare(draw_checkpoint(chosen, 0), chosen)

    def batches(self) -> tuple[int, ...]:
        return (1, 2) if self.dry_run else (64, 1, 8)


def built_here(backend: Backend, device: str) -> Candidate:
    """The candidate of a backend, its artifact built for this measurement as an export builds it."""
    artifact, kind = backend.artifact, torch.device(device).type
    spec = cast(Spec, SimpleNamespace(precision="bf16", device=kind, frame_mask=False))

    def build(case: Case, folder: Path) -> Path:
        artifact.exporter.build(artifact, Making(case.recipe, spec, folder, folder, None, Progress()))
        return folder / artifact.file

    return dataclasses.replace(known_candidates()[backend.name], build=build, precision=spec.precision)


def opened(run: Run, names: Sequence[str], case: Case, folder: Path) -> list[Entry]:
    """The candidates that could be built; why the others could not is a failure in the record."""
    known = known_candidates() | {one.name: built_here(one, run.device) for one in AHEAD_OF_TIME}
    entries: list[Entry] = []
    for name in names:
        run.say(f"{case.profile.name}: {name}")
        try:
            entries.append(known[name].open(case, run.device, folder))
        except Exception as error:  # one path that fails must not cost the others their rows
            run.record.failures.append(f"{name}: {type(error).__name__}: {error}")
    return [dataclasses.replace(one, expect=entries[0].embed) for one in entries]


def _encoder(run: Run, profile: str, names: Sequence[str]) -> None:
    case = Case(run.recipe(profile))
    with scratch_folder("tempme-gpu-check") as folder, ExitStack() as stack:
        entries = opened(run, names, case, folder)
        for one in entries:
            stack.enter_context(one.runner)
        for batch in run.batches():
            settings = RunSettings(
                batches=(batch,),
                device=run.device,
                protocol=run.protocol(run.seconds / 6),
                command=command("tempme-bench", "gpu-check"),
                on_device=True,
            )
            report = compare(entries, settings, stage=run.say, progress=lambda _: None)
            run.record.notes += report.remarks()
            run.record.add("encoder", *report.rows)
    run.record.look("after the encoder")


def _kernels(run: Run, profile: str) -> None:
    from tempme_export.bench.kernels.timing import Encoder, time_encoder

    recipe, device = run.recipe(profile), torch.device(run.device)
    take = timer(device, run.protocol(run.seconds / 100), 0.0 if run.dry_run else SAMPLE_S)
    for batch in run.batches()[: 1 if run.dry_run else None]:
        encoder = Encoder(recipe, batch, "bf16", device, compiled=())
        _, marginal = time_encoder(encoder, take, run.say, partial(run.record.add, "kernels"))
        run.record.add("marginals", *([] if marginal is None else [marginal]))


def determinism(run: Run) -> None:
    from tempme_export.bench.gpu.determinism import encoder_rows

    dtypes = ("bf16",) if run.dry_run else ("bf16", "fp32", "fp16")
    for row in encoder_rows(run.recipe(B_32), run.batches()[0], dtypes, torch.device(run.device)):
        run.record.add("determinism", row)
        if not row.passed:
            run.record.failures.append(f"{row.what}, {row.dtype}: runs differ, or NaNs: {row}")
    run.record.save()


STEPS: dict[str, Callable[[Run], None]] = {
    "encoder-b32": partial(_encoder, profile=B_32, names=AS_WRITTEN),
    "kernels": partial(_kernels, profile=B_32),
    "determinism": determinism,
    "encoder-b16": partial(_encoder, profile=B_16, names=AS_WRITTEN),
    "kernels-b16": partial(_kernels, profile=B_16),
    "compiled": partial(_encoder, profile=B_32, names=COMPILED),
    "original-compiled": partial(_encoder, profile=B_32, names=COMPILED_ORIGINAL),
}


def main() -> None:
    """Entry point: exit code 1 with a traceback where the step fails, with what it found until then written."""
    parser = argparse.ArgumentParser(description="One step of a GPU check.")
    parser.add_argument("step", choices=[*STEPS])
    parser.add_argument("result", type=Path)
    parser.add_argument("seconds", type=float)
    parser.add_argument("--dry-run", action="store_true")
    chosen = parser.parse_args()
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
    logger = logging.getLogger("tempme_export.bench")
    logger.setLevel(logging.INFO)
    start, record = time.perf_counter(), Record(chosen.result)

    def say(text: str) -> None:
        record.timeline.append((round(time.perf_counter() - start, 2), text))
        logger.info("%6.1f s  %s", time.perf_counter() - start, text)

    run = Run(record, chosen.dry_run, chosen.seconds, say)
    if run.dry_run:
        record.notes.append("dry run: CPU, not a measurement")
        torch.set_num_threads(1)
    record.look("at the start")
    STEPS[chosen.step](run)
    record.look("at the end")


if __name__ == "__main__":
    main()
