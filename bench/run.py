"""A case, its backends and batch sizes -> Report: parity first, then timing side by side."""

import dataclasses
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tempme_export.bench.cases import BACKENDS, ORIGINAL, Case, benchmark_clips
from tempme_export.bench.machine import machine, peak_rss_mb
from tempme_export.bench.report import Report, Row
from tempme_export.bench.timing import Comparison, Progress, Protocol, compare
from tempme_export.complexity import complexity
from tempme_export.devices import torch_device
from tempme_export.errors import BackendError, UsageError
from tempme_export.hashing import file_sha256
from tempme_export.parity import Floats, cosine_distance, embedding_checks
from tempme_export.runtime.base import Runner
from tempme_export.tolerance import TOLERANCES


@dataclass(frozen=True)
class Request:
    """What to compare and how. The seed of the videos is the protocol's.

    backends  those that must be there; None takes all, and reports what is missing
    batches   videos per call, each measured on its own
    command   what the user typed, for the record
    """

    backends: tuple[str, ...] | None
    batches: tuple[int, ...]
    device: str
    protocol: Protocol
    command: str


@dataclass(frozen=True)
class Loaded:
    """A backend ready to run. `build_s` and `artifact_sha256` are None where it runs from weights."""

    name: str
    runner: Runner
    precision: str
    load_s: float
    build_s: float | None
    artifact_sha256: str | None

    def embed(self, frames: NDArray[np.float32]) -> NDArray[Any]:
        """[B, F, 3, S, S] normalised pixels -> [B, E], every frame counting."""
        inputs: dict[str, NDArray[Any]] = {"frames": frames}
        if "frame_mask" in self.runner.inputs:
            inputs["frame_mask"] = np.ones(frames.shape[:2], np.bool_)
        return self.runner.infer(inputs)["video_embedding"]


def chosen_backends(names: Sequence[str] | None) -> list[str]:
    """The original path, then the backends asked for, or all. Raises UsageError for an unknown one."""
    unknown = [name for name in names or () if name not in BACKENDS]
    if unknown:
        raise UsageError(f"unknown backends: {', '.join(unknown)}. Choose of: {', '.join(BACKENDS)}.")
    return [ORIGINAL, *(name for name in names or BACKENDS if name != ORIGINAL)]


def check_batches(case: Case, batches: Sequence[int]) -> None:
    """Raise UsageError for a batch size outside the profile's range."""
    limits = case.profile.batch
    outside = [batch for batch in batches if not limits.min <= batch <= limits.max]
    if outside:
        raise UsageError(
            f"--batch {', '.join(map(str, outside))}: profile {case.profile.name} is made for "
            f"{limits.min} to {limits.max} videos per call (shapes.batch)."
        )


def load(name: str, case: Case, device: str, folder: Path) -> Loaded:
    """Build the artifact into `folder`, unless the case brings it or none is needed, and load the backend.

    Raises BackendError where a package, runtime or device is missing, ExportError where building fails.
    """
    backend = BACKENDS[name]
    backend.require()
    artifact, build_s, sha256, precision = None, None, None, "fp32"
    if backend.build is not None:
        artifact, precision = case.artifact(backend.file), case.precision
        if artifact is None:
            start = time.perf_counter()
            artifact = backend.build(case, folder)
            build_s = time.perf_counter() - start
        sha256 = file_sha256(artifact)
    start = time.perf_counter()
    runner = backend.load(case, artifact, device)
    return Loaded(name, runner, precision, time.perf_counter() - start, build_s, sha256)


def load_all(
    names: Sequence[str], case: Case, request: Request, folder: Path, stage: Progress
) -> tuple[dict[str, Loaded], dict[str, str]]:
    """The backends that are there, and the reasons why others are not.

    Raises BackendError where the original path or one that was asked for by name is missing.
    """
    loaded, missing = {}, {}
    for name in names:
        stage(f"loading {name}")
        try:
            loaded[name] = load(name, case, request.device, folder)
        except BackendError as error:
            if request.backends is not None or name == ORIGINAL:
                raise
            missing[name] = str(error)
    return loaded, missing


def batches_of(clips: NDArray[np.float32], batch: int) -> list[NDArray[np.float32]]:
    """Every clip at least once, in batches of one size; clips repeat to fill the last."""
    return [clips[np.arange(first, first + batch) % len(clips)] for first in range(0, len(clips), batch)]


def disagreement(original: Floats, found: Floats, precision: str) -> str:
    """How embeddings [B, E] miss the tolerance against the original path's; empty where they do not."""
    checks = embedding_checks("embedding", original, found, TOLERANCES[precision])
    return "; ".join(f"{c.name} is {c.value:.1e}, the limit {c.limit:g}" for c in checks if not c.passed)


def _row(case: Case, request: Request, batch: int, loaded: Loaded, distance: float, comparison: Comparison) -> Row:
    timing = comparison.timings[loaded.name]
    counted = complexity(case.recipe.plan, case.recipe.backbone)
    return Row(
        backend=loaded.name,
        profile=case.profile.name,
        weights=case.weights,
        frames=case.profile.frames,
        batch=batch,
        precision=loaded.precision,
        device=request.device,
        videos_per_s=batch / timing.p50,
        frames_per_s=batch * case.profile.frames / timing.p50,
        ratio=timing.ratio.value,
        ratio_low=timing.ratio.low,
        ratio_high=timing.ratio.high,
        p50_ms=timing.p50 * 1e3,
        p90_ms=timing.p90 * 1e3,
        p99_ms=timing.p99 * 1e3,
        mean_ms=timing.mean * 1e3,
        cov=timing.cov,
        samples=len(timing.samples),
        warmup=comparison.warmup_rounds,
        stable=timing.stable,
        gmacs=counted.gmacs,
        gflops=counted.gflops,
        final_tokens=case.recipe.plan.final_tokens,
        peak_rss_mb=peak_rss_mb(),
        build_s=loaded.build_s,
        load_s=loaded.load_s,
        one_minus_cosine=distance,
        parity=True,
        artifact_sha256=loaded.artifact_sha256,
        **dataclasses.asdict(machine()),
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        command=request.command,
    )


def run(case: Case, request: Request, *, stage: Progress, progress: Progress) -> Report:
    """Compare backends on the same videos: each is checked against the original path, then timed beside it.

    stage     is told what begins
    progress  is told now and then how far a measurement is

    A backend whose embeddings differ from the original's is not timed; the report says so. Raises UsageError
    for unknown backends and batch sizes outside the profile, BackendError where the device or a backend that
    was named is missing.
    """
    names = chosen_backends(request.backends)
    check_batches(case, request.batches)
    torch_device(request.device)
    rows: list[Row] = []
    failed: dict[str, str] = {}
    comparisons: dict[int, Comparison] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tempme-bench-")))
        backends, missing = load_all(names, case, request, folder, stage)
        for loaded in backends.values():
            stack.enter_context(loaded.runner)
        stage("choosing clips")
        clips = benchmark_clips(case.recipe, request.protocol.seed)
        for batch in request.batches:
            stage(f"batch {batch}: parity")
            inputs = batches_of(clips, batch)
            found = {name: np.concatenate([one.embed(x) for x in inputs]) for name, one in backends.items()}
            for name, embeddings in found.items():
                wrong = disagreement(found[ORIGINAL], embeddings, backends[name].precision)
                if wrong:
                    failed[name] = f"batch {batch}: {wrong}"
                    del backends[name]
            if ORIGINAL in failed:
                break
            stage(f"batch {batch}: timing {', '.join(backends)}")
            calls = {name: partial(one.embed, inputs[0]) for name, one in backends.items()}
            comparison = compare(calls, request.protocol, progress=progress)
            comparisons[batch] = comparison
            rows += [
                _row(case, request, batch, one, cosine_distance(found[ORIGINAL], found[name]), comparison)
                for name, one in backends.items()
            ]
    return Report(tuple(rows), comparisons, missing, failed)
