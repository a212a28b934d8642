"""A measurement as it was asked for -> Report: which cases, which contenders, in which order."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from tempme_export.bench.backends import chosen_backends
from tempme_export.bench.cases import Case, benchmark_clips, open_case, random_case
from tempme_export.bench.contenders import Contender, on_backends, with_methods
from tempme_export.bench.counting.running import count_contenders
from tempme_export.bench.machine import machine
from tempme_export.bench.methods.beside import beside_paper
from tempme_export.bench.methods.catalogue import chosen
from tempme_export.bench.report import Report
from tempme_export.bench.run import Bench, Request, check_batches, gpu_now, run, sweep
from tempme_export.bench.scaling import fits, knees, profile_for_frames
from tempme_export.bench.stages import measure_stages, rendered_clip, source_for
from tempme_export.bench.timing import Progress, Protocol
from tempme_export.bench.wanted import DEFAULT_FRAMES, Wanted, chosen_profile
from tempme_export.encoder.conventions import in_words
from tempme_export.encoder.profile import load_profile
from tempme_export.errors import UsageError
from tempme_export.files import scratch_folder
from tempme_export.runtime.devices import torch_device

THROUGHPUT, END_TO_END = "throughput", "end-to-end"


def measure(wanted: Wanted, *, stage: Progress, progress: Progress) -> Report:
    """Measure one case, or one for each frame count.

    Raises UsageError for what contradicts itself, and what the parts raise.
    """
    torch_device(wanted.device)
    protocol = Protocol(seconds=wanted.seconds, samples=wanted.samples, seed=wanted.seed)
    if wanted.mode == END_TO_END and (wanted.methods is not None or len(wanted.batches or ()) > 1):
        raise UsageError("--mode end-to-end measures backends at one batch size. Leave out --methods, name one batch.")
    chosen_backends(wanted.backends)
    if wanted.methods is not None:
        chosen(wanted.methods)
    report = Report(gpu=gpu_now(wanted.device))
    try:
        for case in _cases(wanted, stage):
            stage(f"{case.profile.name}: {case.profile.frames} frames, {case.weights}")
            if wanted.source is not None:
                _show_conventions(case, stage)
            report += _measure_case(case, wanted, protocol, stage, progress)
            if report.interrupted:
                break
    except KeyboardInterrupt:
        if not report.rows:
            raise
        report += Report(notes=("interrupted, the frame counts that were finished are kept",), interrupted=True)
    rows = [asdict(row) for row in report.rows]
    return report + Report(
        knees=tuple(one.to_dict() for one in knees(rows)),
        fits=tuple(one.to_dict() for one in fits(rows)),
        gpu=gpu_now(wanted.device),
    )


def _show_conventions(case: Case, stage: Progress) -> None:
    """What a checkpoint's shapes cannot tell, in the words of the export."""
    notes = [("note", remark) for remark in case.recipe.checkpoint.remarks]
    for label, text in notes + in_words(case.recipe.conventions):
        stage(f"{label:<10} {text}")


def _cases(wanted: Wanted, stage: Progress) -> Iterator[Case]:
    """The model asked for, or one with random weights for each frame count of a sweep."""
    counts = wanted.frames or ()
    if wanted.source is not None:
        if len(counts) > 1:
            raise UsageError("a checkpoint has one frame count. Sweep --frames without one, on random weights.")
        yield open_case(wanted.source, wanted.profile, counts[0] if counts else None, wanted.activation)
        return
    if wanted.activation is not None:
        raise UsageError("--activation is of a checkpoint, and none was given. Leave it out.")
    if len(counts) > 1:
        base = load_profile(wanted.profile) if wanted.profile else chosen_profile(None, DEFAULT_FRAMES)
        profiles = [profile_for_frames(base, frames) for frames in counts]
    else:
        profiles = [chosen_profile(wanted.profile, counts[0] if counts else None)]
    stage("no bundle or checkpoint was given: drawing random weights")
    for profile in profiles:
        yield random_case(profile, wanted.seed)


def _measure_case(case: Case, wanted: Wanted, protocol: Protocol, stage: Progress, progress: Progress) -> Report:
    request = _request(case, wanted, protocol)
    check_batches(case.profile, request.batches)
    with _contenders(case, wanted, stage) as (contenders, missing):
        if wanted.mode == END_TO_END:
            return Report(missing=missing) + _whole_way(case, contenders, wanted, request, stage, progress)
        stage("counting tokens and operations")
        counted = count_contenders(contenders, benchmark_clips([case.recipe], wanted.seed)[:1])
        report = Report(tokens=tuple(one.to_dict() for one in counted))
        report += run(contenders, request, stage=stage, progress=progress)
    if wanted.methods is None:
        return Report(missing=missing) + report
    speeds = {row.method: row.videos_per_s for row in reversed(report.rows)}
    rows = beside_paper(chosen(wanted.methods), case.profile, case.recipe.backbone, speeds, missing)
    return report + Report(methods=tuple(rows))


@contextmanager
def _contenders(case: Case, wanted: Wanted, stage: Progress) -> Iterator[tuple[list[Contender], dict[str, str]]]:
    """What stands side by side, ready to run; freed afterwards, with what was built for it."""
    with ExitStack() as stack:
        folder = stack.enter_context(scratch_folder("tempme-bench"))
        if wanted.methods is None:
            contenders, missing = on_backends(case, wanted.backends, wanted.device, folder, stage)
        else:
            contenders, missing = with_methods(case, wanted.methods, wanted.backends, wanted.device, folder, stage)
        for one in contenders:
            stack.enter_context(one.loaded.runner)
        yield contenders, missing


def _request(case: Case, wanted: Wanted, protocol: Protocol) -> Request:
    limits, throughput = case.profile.batch, wanted.mode == THROUGHPUT
    usual = sweep(limits.max, limits.min) if throughput else (limits.min,)
    return Request(
        batches=wanted.batches or usual,
        device=wanted.device,
        protocol=protocol,
        command=wanted.command,
        until_knee=throughput and wanted.batches is None,
        handicap=wanted.handicap,
    )


def _whole_way(
    case: Case, contenders: list[Contender], wanted: Wanted, request: Request, stage: Progress, progress: Progress
) -> Report:
    """From file to embedding on every backend that computes what the original does."""
    (batch,) = request.batches
    bench = Bench(contenders, request, stage, progress)
    distances, _ = bench.judge(batch)
    tables = []
    with ExitStack() as stack:
        videos = wanted.videos or (stack.enter_context(rendered_clip()),)
        for one in bench.contenders:
            stage(f"the whole way with {one.name}")
            transfer, encode = one.loaded.split()
            table = measure_stages(
                encode,
                source_for(case.recipe, wanted.allow_damaged),
                videos,
                batch,
                request.protocol,
                contender=one.name,
                transfer=transfer,
                progress=progress,
            )
            tables.append({**table.to_dict(), "one_minus_cosine": distances[one.name].plain, **_origin(case, wanted)})
    return Report(stages=tuple(tables), failed=bench.failed)


def _origin(case: Case, wanted: Wanted) -> dict[str, Any]:
    """Where a table that is no `Row` comes from, in the same words."""
    return {
        "parity": True,
        "profile": case.profile.name,
        "frames": case.profile.frames,
        "weights": case.weights,
        "device": wanted.device,
        **asdict(machine(wanted.device)),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": wanted.command,
    }
