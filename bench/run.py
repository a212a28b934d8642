"""A case, its backends and batch sizes -> Report: parity first, then timing side by side."""

import dataclasses
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tempme_export.bench.cases import BACKENDS, ORIGINAL, Case, check_device, moving_clips
from tempme_export.bench.machine import machine, peak_rss_mb
from tempme_export.bench.report import Report, Row
from tempme_export.bench.timing import Comparison, Progress, Protocol, compare
from tempme_export.checkpoint import file_sha256
from tempme_export.complexity import complexity
from tempme_export.errors import BackendError, UsageError
from tempme_export.runtime.base import Runner

PRECISION = "fp32"
TOLERANCE = 1e-6


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
    load_s: float
    build_s: float | None = None
    artifact_sha256: str | None = None


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
    if backend.package is not None and find_spec(backend.package[0]) is None:
        module, extra = backend.package
        raise BackendError(f"{module} is not installed. Run: pip install 'tempme-export[{extra}]'")
    artifact, build_s = None, None
    if backend.build is not None:
        artifact = case.artifact
        if artifact is None:
            start = time.perf_counter()
            artifact = backend.build(case, folder)
            build_s = time.perf_counter() - start
    start = time.perf_counter()
    runner = backend.load(case, artifact, device)
    load_s = time.perf_counter() - start
    return Loaded(name, runner, load_s, build_s, None if artifact is None else file_sha256(artifact))


def farthest(embeddings: npt.NDArray[np.float32], original: npt.NDArray[np.float32]) -> float:
    """Largest 1 - cosine between rows of two [B, E] float32 arrays, computed in float64."""
    a, b = embeddings.astype(np.float64), original.astype(np.float64)
    cosine = (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return float(np.max(1 - cosine))


def _row(
    case: Case, request: Request, batch: int, loaded: Loaded, distance: float, comparison: Comparison
) -> Row:
    timing = comparison.timings[loaded.name]
    counted = complexity(case.recipe.plan, case.recipe.backbone)
    return Row(
        backend=loaded.name,
        profile=case.profile.name,
        weights=case.weights,
        frames=case.profile.frames,
        batch=batch,
        precision=PRECISION,
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
        parity=distance <= TOLERANCE,
        artifact_sha256=loaded.artifact_sha256,
        **dataclasses.asdict(machine()),
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        command=request.command,
    )


def run(case: Case, request: Request, progress: Progress) -> Report:
    """Compare backends on the same videos: each is checked against the original path, then timed beside it.

    A backend whose embeddings differ from the original's is not timed; the report says so. Raises UsageError
    for unknown backends and batch sizes outside the profile, BackendError where the device or a backend that
    was named is missing.
    """
    wanted = chosen_backends(request.backends)
    check_batches(case, request.batches)
    check_device(request.device)
    missing: dict[str, str] = {}
    failed: dict[str, str] = {}
    rows: list[Row] = []
    comparisons: dict[int, Comparison] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tempme-bench-")))
        backends: dict[str, Loaded] = {}
        for name in wanted:
            progress(f"loading {name}")
            try:
                backends[name] = load(name, case, request.device, folder)
            except BackendError as error:
                if request.backends is not None or name == ORIGINAL:
                    raise
                missing[name] = str(error)
            else:
                stack.enter_context(backends[name].runner)
        for batch in request.batches:
            progress(f"batch {batch}: parity")
            size = case.recipe.backbone.image_size
            inputs = {"frames": moving_clips(batch, case.profile.frames, size, request.protocol.seed)}
            found = {name: one.runner.infer(inputs)["video_embedding"] for name, one in backends.items()}
            distances = {name: farthest(embeddings, found[ORIGINAL]) for name, embeddings in found.items()}
            for name, distance in distances.items():
                if not distance <= TOLERANCE:
                    failed[name] = f"batch {batch}: 1 - cosine {distance:.1e} > {TOLERANCE:.0e}"
                    del backends[name]
            if ORIGINAL in failed:
                break
            calls = {name: partial(one.runner.infer, inputs) for name, one in backends.items()}
            comparisons[batch] = compare(calls, request.protocol, progress=progress)
            rows += [
                _row(case, request, batch, one, distances[name], comparisons[batch])
                for name, one in backends.items()
            ]
    return Report(tuple(rows), comparisons, missing, failed)
