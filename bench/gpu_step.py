"""`python -m tempme_export.bench.gpu_step STEP RESULT`: one step of `gpu_check` in a process of its own.

A kernel that reads where it must not leaves no usable device behind it in its process, and a compiler can hang; so
each step has a process and writes what it has so far, whole, after everything it measures.
"""

import argparse
import dataclasses
import json
import logging
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tempme_export.bench.gpu_encoder import (
    COMPILED_ORIGINAL,
    COMPILED_PATHS,
    QUICK_PATHS,
    EncoderPath,
    PackageBuild,
    Setting,
    moving_clips,
    package,
    package_command,
    time_paths,
)
from tempme_export.bench.gpu_facts import gpu_facts, versions
from tempme_export.bench.gpu_timing import Effort, timer
from tempme_export.encoder.checkpoint import Facts, expected_shapes, from_state_dict
from tempme_export.encoder.profile import FROM_CHECKPOINT, BatchRange, Profile, load_profile
from tempme_export.encoder.recipe import Recipe, prepare
from tempme_export.encoder.schedule import MergePolicy
from tempme_export.files import write_file

B_32, B_16 = "vit-b-32-12f", "vit-b-16-12f"
_TINY = Facts(
    image_size=64,
    patch=16,
    width=128,
    layers=4,
    embed=32,
    text_width=64,
    text_layers=1,
    context=16,
    vocab=64,
    lora_rank=2,
    clip_lengths=((2, 4), (3, 2)),
)
TINY_PROFILE = Profile(
    name="tiny (dry run)",
    backbone=FROM_CHECKPOINT,
    frames=4,
    text_length=8,
    merge=MergePolicy(1, (2, 3), (2, 2), 30, 10),
    batch=BatchRange(1, 2, 4),
)


def tiny_recipe() -> Recipe:
    """A model small enough to rehearse with on a CPU."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in expected_shapes(_TINY).items():
        centre = 1.0 if ".ln_" in f".{name}" and name.endswith("weight") else 0.0
        tensors[f"clip.{name}"] = centre + 0.2 * torch.randn(shape, generator=generator)
    return prepare(from_state_dict(tensors, source="random weights"), TINY_PROFILE)


def drawn_recipe(profile: str) -> Recipe:
    """A shipped profile with random weights, the same in every process."""
    from tempme_export.encoder.random_weights import draw_checkpoint

    chosen = load_profile(profile)
    return prepare(draw_checkpoint(chosen, 0), chosen)


@dataclasses.dataclass
class Record:
    """What a step has found so far; `save` writes all of it in one step, so that a reader sees it whole.

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
        facts = gpu_facts()
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
    """How a step is run; `say` tells what begins."""

    record: Record
    dry_run: bool
    quick: bool
    say: Callable[[str], None]

    @property
    def device(self) -> torch.device:
        return torch.device("cpu") if self.dry_run else torch.device("cuda", torch.cuda.current_device())

    @property
    def effort(self) -> Effort:
        if self.dry_run:
            return Effort(rounds=2, sample_s=0.0, limit_s=1.0)
        return Effort(rounds=15, limit_s=3.0) if self.quick else Effort(rounds=50, limit_s=15.0)

    def recipe(self, profile: str) -> Recipe:
        """The model a step measures."""
        self.say(f"drawing weights of {profile}")
        return tiny_recipe() if self.dry_run else drawn_recipe(profile)

    def batches(self, *, few: bool = False) -> tuple[int, ...]:
        if self.dry_run:
            return (2,) if few or self.quick else (1, 2)
        return (64,) if few else (1, 64) if self.quick else (1, 8, 64)


def _time(run: Run, recipe: Recipe, batch: int, paths: tuple[EncoderPath, ...], group: str) -> None:
    clips = moving_clips(batch, recipe.profile.frames, recipe.backbone.image_size, run.device)
    rows, failures = time_paths(Setting(recipe, clips), paths, group, timer(run.device, run.effort), run.say)
    run.record.failures += failures
    run.record.add("encoder", *rows)
    if run.device.type == "cuda":
        torch.cuda.empty_cache()


def _encoder(run: Run, profile: str, *, compile_too: bool) -> None:
    recipe = run.recipe(profile)
    for batch in run.batches():
        _time(run, recipe, batch, QUICK_PATHS, "as written")
    run.record.look("after the paths as written")
    if not compile_too:
        run.record.notes.append(f"{profile}: nothing compiled, since that takes minutes")
        return
    if run.dry_run:
        for batch in run.batches(few=True):
            _time(run, recipe, batch, COMPILED_PATHS, "compiled")
        return
    path = run.record.path.absolute().with_name(f"{profile}.pt2")
    build = PackageBuild(package_command(profile, path, run.device.type), path, path.with_suffix(".pt2.log"))
    try:
        for batch in run.batches(few=run.quick):
            _time(run, recipe, batch, (*COMPILED_PATHS, package("bf16", build)), "compiled")
    finally:
        build.close()
        path.unlink(missing_ok=True)


def encoder_b32(run: Run) -> None:
    _encoder(run, B_32, compile_too=True)


def encoder_b16(run: Run) -> None:
    _encoder(run, B_16, compile_too=not run.quick)


def original_compiled(run: Run) -> None:
    recipe = run.recipe(B_32)
    for batch in run.batches(few=True):
        _time(run, recipe, batch, COMPILED_ORIGINAL, "original, compiled")


def kernels(run: Run) -> None:
    from tempme_export.bench.kernel_timing import KernelRequest, profile_rows

    names = (B_32,) if run.quick or run.dry_run else (B_32, B_16)
    for name in names:
        recipe = run.recipe(name)
        # torch.compile took 85 s for one oracle's attention and match.
        compiled = () if run.dry_run or run.quick else None
        request = KernelRequest((), (), (), run.device, run.effort, compiled)
        for batch in run.batches(few=run.dry_run or run.quick):
            take = timer(run.device, run.effort)
            keep = partial(run.record.add, "kernels")
            _, marginal = profile_rows(recipe, batch, "bf16", request, take, run.say, keep)
            run.record.add("marginals", *([] if marginal is None else [marginal]))


def determinism(run: Run) -> None:
    from tempme_export.bench.gpu_determinism import encoder_rows, kernel_rows

    recipe = run.recipe(B_32)
    dtypes = ("bf16",) if run.quick else ("bf16", "fp32", "fp16")
    for rows in (encoder_rows, kernel_rows):
        for row in rows(recipe, run.batches(few=True)[0], dtypes, run.device):
            run.record.rows.setdefault("determinism", []).append(dataclasses.asdict(row))
            if not row.passed:
                run.record.failures.append(f"{row.what}, {row.dtype}: runs differ, or NaNs: {row}")
        run.record.save()


STEPS: dict[str, Callable[[Run], None]] = {
    "encoder-b32": encoder_b32,
    "kernels": kernels,
    "determinism": determinism,
    "encoder-b16": encoder_b16,
    "original-compiled": original_compiled,
}


def build_package(path: Path, profile: str, *, dry_run: bool) -> None:
    """Compile the drawn model into `path`."""
    from tempme_export.exporters.pt2 import export_video

    recipe = tiny_recipe() if dry_run else drawn_recipe(profile)
    export_video(recipe, path, "bf16", "cpu" if dry_run else "cuda")


def main() -> None:
    """Entry point: exit code 1 with a traceback where the step fails, with what it found until then written."""
    parser = argparse.ArgumentParser(description="One step of gpu_check, or the package that one measures.")
    parser.add_argument("step", choices=[*STEPS, "package"])
    parser.add_argument("result", type=Path)
    parser.add_argument("--profile", default=B_32)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--quick", action="store_true")
    chosen = parser.parse_args()
    if chosen.step == "package":
        build_package(chosen.result, chosen.profile, dry_run=chosen.dry_run)
        return
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
    logger = logging.getLogger("tempme_export.bench")
    logger.setLevel(logging.INFO)
    start, record = time.perf_counter(), Record(chosen.result)

    def say(text: str) -> None:
        record.timeline.append((round(time.perf_counter() - start, 2), text))
        logger.info("%6.1f s  %s", time.perf_counter() - start, text)

    run = Run(record, chosen.dry_run, chosen.quick, say)
    if run.dry_run:
        record.notes.append("dry run: CPU, not a measurement")
        torch.set_num_threads(1)
    record.look("at the start")
    STEPS[chosen.step](run)
    record.look("at the end")


if __name__ == "__main__":
    main()
