"""The verdict on a folder of artifacts: each one on its runtime, against the self-test."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tempme_export.artifacts.bundle import PT2, TEXT, VIDEO
from tempme_export.encoder.schedule import Schedule
from tempme_export.errors import BackendError, ParityError, PrecisionError
from tempme_export.media.preprocess import Preprocess
from tempme_export.parity.checks import ParityReport, check_batches, check_text, check_video
from tempme_export.parity.engine import judge_engine
from tempme_export.parity.selftest import SelfTest
from tempme_export.parity.tolerance import TOLERANCES
from tempme_export.runtime.engine_facts import ENGINE, SOURCE, EngineFacts
from tempme_export.runtime.nvidia import engine_device
from tempme_export.runtime.ort import OrtRunner
from tempme_export.runtime.pt2 import Pt2Runner
from tempme_export.runtime.tensorrt import find_engine_gpu


def judge(
    folder: Path,
    selftest: SelfTest,
    plan: Schedule,
    preprocess: Preprocess,
    precision: str,
    batches: tuple[int, ...],
    device: str,
    engine: EngineFacts | None = None,
    elsewhere: bool = False,
) -> list[ParityReport]:
    """Run every artifact of a folder against the self-test: the graphs under ONNX Runtime, a package under torch, an
    engine, whose facts are `engine`, under TensorRT.

    A runtime that cannot run the precision gives a report that says so; a missing one, or a missing device,
    raises BackendError, and so does a package or an engine of another machine or device, unless the bundle was built
    `elsewhere`.
    """
    tolerance, ort = TOLERANCES[precision], f"ONNX Runtime, {device}"
    names = [name for merge in plan.merges for name in (merge.assign_name, merge.tokens_name)]

    def graph(name: str) -> tuple[Any, ...]:
        with OrtRunner(folder / name, device, expose=names) as exposing:
            checks = check_video(selftest, plan, preprocess, exposing, tolerance)
        with OrtRunner(folder / name, device) as runner:
            return *checks, *check_batches(selftest, preprocess, runner, batches, tolerance)

    def text() -> tuple[Any, ...]:
        with OrtRunner(folder / TEXT, device) as runner:
            return tuple(check_text(selftest, runner, tolerance))

    def package() -> tuple[Any, ...]:
        with Pt2Runner(folder / PT2, device) as runner:
            checks = check_video(selftest, plan, preprocess, runner, tolerance, with_tokens=False)
            return *checks, *check_batches(selftest, preprocess, runner, batches, tolerance)

    runs: list[tuple[str, str, Callable[[], tuple[Any, ...]]]] = [
        (VIDEO, ort, partial(graph, VIDEO)),
        (TEXT, ort, text),
    ]
    if (folder / PT2).is_file():
        runs.append((PT2, f"AOTInductor, {device}", package))
    if (folder / SOURCE).is_file():
        runs.append((SOURCE, ort, partial(graph, SOURCE)))
    reports = []
    for artifact, backend, run in runs:
        try:
            reports.append(ParityReport(artifact, backend, run()))
        except BackendError as error:
            without_kernels = isinstance(error, PrecisionError) and precision != "fp32"
            if not without_kernels and not (elsewhere and artifact == PT2):
                raise
            reports.append(ParityReport(artifact, backend, (), reason=str(error)))
    if engine is not None:
        reports.append(_judge_engine(folder, engine, selftest, preprocess, device, elsewhere))
    return reports


def _judge_engine(
    folder: Path, facts: EngineFacts, selftest: SelfTest, preprocess: Preprocess, device: str, elsewhere: bool
) -> ParityReport:
    try:
        find_engine_gpu(folder / ENGINE, facts, engine_device(device))
    except BackendError as error:
        if not elsewhere:
            raise
        return ParityReport(ENGINE, f"TensorRT {facts.tensorrt}, {facts.gpu}", (), reason=str(error))
    return judge_engine(folder / ENGINE, facts, selftest, preprocess, engine_device(device))


def raise_if_failed(reports: Sequence[ParityReport], where: str) -> None:
    """Raise ParityError naming every check that failed; `where` says what became of the artifacts."""
    failed = [
        f"{report.artifact}: {check.name} is {check.value:.3g}, limit {check.limit:g}"
        for report in reports
        if report.status == "failed"
        for check in report.checks
        if not check.passed
    ]
    if failed or any(report.status == "failed" for report in reports):
        raise ParityError(f"parity failed. {'; '.join(failed) or 'Nothing was compared'}. {where}")
