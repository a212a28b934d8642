"""A measurement as it was asked for -> Report: which cases, which candidates, in which order."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from tempme_export.bench.candidates import chosen_candidates, on_backends
from tempme_export.bench.cases import Case, benchmark_clips, open_case, random_case
from tempme_export.bench.config import DEFAULT_FRAMES, BenchmarkConfig, chosen_profile
from tempme_export.bench.core.candidate import Entry
from tempme_export.bench.core.protocol import Progress, Protocol
from tempme_export.bench.counting.running import count_candidates
from tempme_export.bench.entries import with_methods
from tempme_export.bench.gpu.state import gpu_now
from tempme_export.bench.machine import machine
from tempme_export.bench.methods.catalogue import chosen
from tempme_export.bench.methods.derive import paper_comparison
from tempme_export.bench.report import Measured, Report
from tempme_export.bench.run import Bench, run
from tempme_export.bench.run_settings import RunSettings, check_batches, sweep
from tempme_export.bench.scaling import fits, profile_for_frames, saturations
from tempme_export.bench.stages import compare_stages, rendered_clip, source_for
from tempme_export.encoder.conventions import in_words
from tempme_export.encoder.profile import load_profile
from tempme_export.errors import UsageError
from tempme_export.files import scratch_folder
from tempme_export.runtime.devices import torch_device

THROUGHPUT, END_TO_END = "throughput", "end-to-end"
_GAIN = 1.05  # a larger batch that is not at least so much faster is past saturation


def measure(config: BenchmarkConfig, *, stage: Progress, progress: Progress) -> Report:
    """Measure one case, or one for each frame count.

    Raises UsageError for what contradicts itself, and what the parts raise.
    """
    torch_device(config.device)
    protocol = Protocol(seconds=config.seconds, samples=config.samples, budget=config.budget, seed=config.seed)
    if config.mode == END_TO_END and (config.methods is not None or config.slowdowns or len(config.batches or ()) > 1):
        raise UsageError(
            "--mode end-to-end measures backends at one batch size. Leave out --methods and --slow-down, "
            "name one batch."
        )
    chosen_candidates(config.backends)
    if config.methods is not None:
        chosen(config.methods)
    report = Report(gpu=gpu_now(config.device))
    try:
        for case in _cases(config, stage):
            stage(f"{case.profile.name}: {case.profile.frames} frames, {case.weights}")
            if config.source is not None:
                _show_conventions(case, stage)
            report += _measure_case(case, config, protocol, stage, progress)
            if report.interrupted:
                break
    except KeyboardInterrupt:
        if not report.rows:
            raise
        report += Report(notes=("interrupted, the frame counts that were finished are kept",), interrupted=True)
    return report + Report(
        saturations=tuple(map(asdict, saturations(report.rows))),
        fits=tuple(map(asdict, fits(report.rows))),
        gpu=gpu_now(config.device),
    )


def _show_conventions(case: Case, stage: Progress) -> None:
    """Conventions that a checkpoint's shapes cannot tell, in the words of the export."""
    notes = [("note", remark) for remark in case.recipe.checkpoint.remarks]
    for label, text in notes + in_words(case.recipe.conventions):
        stage(f"{label:<10} {text}")


def _cases(config: BenchmarkConfig, stage: Progress) -> Iterator[Case]:
    """The model asked for, or one with random weights for each frame count of a sweep."""
    counts = config.frames or ()
    if config.source is not None:
        if len(counts) > 1:
            raise UsageError("a checkpoint has one frame count. Sweep --frames without one, on random weights.")
        yield open_case(config.source, config.profile, counts[0] if counts else None, config.activation)
        return
    if config.activation is not None:
        raise UsageError("--activation is of a checkpoint, and none was given. Leave it out.")
    if len(counts) > 1:
        base = load_profile(config.profile) if config.profile else chosen_profile(None, DEFAULT_FRAMES)
        profiles = [profile_for_frames(base, frames) for frames in counts]
    else:
        profiles = [chosen_profile(config.profile, counts[0] if counts else None)]
    stage("no bundle or checkpoint was given: drawing random weights")
    for profile in profiles:
        yield random_case(profile, config.seed)


def _measure_case(
    case: Case, config: BenchmarkConfig, protocol: Protocol, stage: Progress, progress: Progress
) -> Report:
    settings = _settings(case, config, protocol)
    check_batches(case.profile, settings.batches)
    with _candidates(case, config, stage) as (candidates, missing):
        if config.mode == END_TO_END:
            return Report(missing=missing) + _whole_way(case, candidates, config, settings, stage, progress)
        stage("counting tokens and operations")
        counted = count_candidates(candidates, benchmark_clips([case.recipe], config.seed)[:1])
        report = Report(tokens=tuple(one.to_dict() for one in counted))
        report += run(candidates, settings, stage=stage, progress=progress)
    if config.methods is None:
        return Report(missing=missing) + report
    speeds = {row.method or "": row.videos_per_s for row in reversed(report.rows)}
    rows = paper_comparison(chosen(config.methods), case.profile, case.recipe.backbone, speeds, missing)
    return report + Report(methods=tuple(rows))


@contextmanager
def _candidates(case: Case, config: BenchmarkConfig, stage: Progress) -> Iterator[tuple[list[Entry], dict[str, str]]]:
    """Candidates of a comparison, ready to run; freed afterwards, with what was built for it."""
    with ExitStack() as stack:
        folder = stack.enter_context(scratch_folder("tempme-bench"))
        if config.methods is None:
            candidates, missing = on_backends(case, config.backends, config.device, folder, stage)
        else:
            candidates, missing = with_methods(case, config.methods, config.backends, config.device, folder, stage)
        for one in candidates:
            stack.enter_context(one.runner)
        yield candidates, missing


def _settings(case: Case, config: BenchmarkConfig, protocol: Protocol) -> RunSettings:
    limits, throughput = case.profile.batch, config.mode == THROUGHPUT
    usual = sweep(limits.max, limits.min) if throughput else (limits.min,)
    return RunSettings(
        batches=config.batches or usual,
        device=config.device,
        protocol=protocol,
        command=config.command,
        least_gain=_GAIN if throughput and config.batches is None else 0.0,
        slowdowns=config.slowdowns,
    )


def _whole_way(
    case: Case,
    candidates: list[Entry],
    config: BenchmarkConfig,
    settings: RunSettings,
    stage: Progress,
    progress: Progress,
) -> Report:
    """From file to embedding on every backend that computes what the original does."""
    (batch,) = settings.batches
    bench = Bench(candidates, settings, stage, progress)
    distances, _ = bench.measure_distances(batch)
    ways = {one.name: one.split() for one in bench.entries}
    if not ways:
        return Report(failed=bench.failed)
    stage(f"timing the whole way with {', '.join(ways)}")
    source = source_for(case.recipe, config.allow_damaged)
    with ExitStack() as stack:
        videos = config.videos or (stack.enter_context(rendered_clip()),)
        comparison, tables = compare_stages(ways, source, videos, batch, settings.protocol, progress=progress)
    origin = _origin(case, config)
    stages = [{**asdict(table), "one_minus_cosine": distances[table.candidate].plain, **origin} for table in tables]
    measured = Measured(case.profile.name, case.profile.frames, batch, comparison)
    return Report(measured=(measured,), stages=tuple(stages), failed=bench.failed, interrupted=comparison.interrupted)


def _origin(case: Case, config: BenchmarkConfig) -> dict[str, Any]:
    """Origin of a table that is no `Row`, in the same words."""
    return {
        "parity": True,
        "profile": case.profile.name,
        "frames": case.profile.frames,
        "weights": case.weights,
        "device": config.device,
        **asdict(machine(config.device)),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": config.command,
    }
