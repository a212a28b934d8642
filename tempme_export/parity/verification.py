"""The verdict on a folder of artifacts: each one on its backends, against the self-test."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tempme_export.artifacts import registry
from tempme_export.artifacts.backend import Backend, Folder, Reveals, Setting
from tempme_export.encoder.schedule import Schedule
from tempme_export.errors import BackendError, ParityError, PrecisionError
from tempme_export.media.preprocess import Preprocess
from tempme_export.media.stored_tokenizer import TOKENIZER, StoredTokenizer
from tempme_export.parity.checks import (
    Check,
    ParityReport,
    check_batches,
    check_text,
    check_tokenizer,
    check_video,
    inputs_for,
    unit_length,
)
from tempme_export.parity.selftest import SelfTest
from tempme_export.parity.tolerance import TOLERANCES, Tolerance
from tempme_export.progress import SILENT, Progress
from tempme_export.runtime.base import Runner


@dataclass(frozen=True)
class Standard:
    """Reference that artifacts are verified against.

    batches  videos per call to try
    """

    selftest: SelfTest
    schedule: Schedule
    preprocess: Preprocess
    batches: tuple[int, ...]

    @property
    def extra_outputs(self) -> tuple[str, ...]:
        """Names of the values that every merge exposes: its decision and the tokens it made."""
        return tuple(name for merge in self.schedule.merges for name in (merge.assign_name, merge.tokens_name))


@dataclass(frozen=True)
class Parity:
    """The verdict on every artifact that was verified."""

    reports: tuple[ParityReport, ...]


def verify_artifacts(
    folder: Folder, standard: Standard, device: str, elsewhere: bool = False, progress: Progress = SILENT
) -> list[ParityReport]:
    """Run every artifact of a folder against the self-test, on each backend that verifies it, and its tokenizer.

    A runtime that cannot run the precision gives a report that says so; a missing one, or a missing device,
    raises BackendError, and so does an artifact of another machine or device, unless the folder was built `elsewhere`.
    """
    reports = []
    backends = registry.verifying(folder, device)
    with progress.step("verifying parity", len(backends), "artifacts") as step:
        for done, backend in enumerate(backends):
            step.advance(done, f"{backend.artifact.file} on {backend.name}")
            reports.append(verify_on(backend, folder, standard, device, elsewhere))
            if backend == registry.text_backend() and folder.holds(TOKENIZER):
                reports.append(_verify_tokenizer(folder, standard.selftest))
    return reports


def _verify_tokenizer(folder: Folder, selftest: SelfTest) -> ParityReport:
    stored = StoredTokenizer((folder.path / TOKENIZER).read_bytes(), selftest.token_ids.shape[1])
    return ParityReport(TOKENIZER, "tokenizers", (check_tokenizer(selftest, stored),))


def verify_on(
    backend: Backend, folder: Folder, standard: Standard, device: str, elsewhere: bool = False
) -> ParityReport:
    """Run one artifact on one backend; raises as `verify_artifacts`. `device` is where the others run."""
    where, file = backend.device_or_usual(device), backend.artifact.file
    said = f"{backend.name}, {where}"
    try:
        said = backend.describe(folder, where)
        backend.check_fit(folder, where)
    except BackendError as error:
        if not (elsewhere and backend.artifact.bound):
            raise
        return ParityReport(file, said, (), reason=str(error))
    try:
        return ParityReport(file, said, _checks(backend, folder, standard, where))
    except PrecisionError as error:
        if folder.precision == "fp32":
            raise
        return ParityReport(file, said, (), reason=str(error))


def _checks(backend: Backend, folder: Folder, standard: Standard, device: str) -> tuple[Check, ...]:
    selftest, tolerance, setting = standard.selftest, TOLERANCES[folder.precision], Setting(device)
    if backend.artifact.tower == "text":
        with backend.open(folder, setting) as runner:
            return tuple(check_text(selftest, runner, tolerance))
    if backend.reveals is Reveals.NOTHING:
        batches = embedding_batches(folder.facts_of(backend.artifact).get("batch", standard.batches), selftest)
        with backend.open(folder, setting) as runner:
            return tuple(embedding_checks(replace(standard, batches=batches), runner, tolerance, backend.replays))
    schedule, preprocess, batches = standard.schedule, standard.preprocess, standard.batches
    if backend.reveals is Reveals.DECISIONS:
        with backend.open(folder, setting) as runner:
            checks = check_video(selftest, schedule, preprocess, runner, tolerance, with_tokens=False)
            return *checks, *check_batches(selftest, preprocess, runner, batches, tolerance)
    with backend.open(folder, replace(setting, extra_outputs=standard.extra_outputs)) as with_merges:
        checks = check_video(selftest, schedule, preprocess, with_merges, tolerance)
    with backend.open(folder, setting) as runner:
        return *checks, *check_batches(selftest, preprocess, runner, batches, tolerance)


def embedding_batches(batches: Sequence[int], selftest: SelfTest) -> tuple[int, ...]:
    """The batches asked for, and all of the self-test's clips together."""
    return tuple(sorted({*batches, len(selftest.clips)}))


def embedding_checks(standard: Standard, runner: Runner, tolerance: Tolerance, runs_before: int = 0) -> list[Check]:
    """Checks of an artifact that returns embeddings alone: level (c), at every batch.

    runs_before  the runs after which a batch is checked: where a runner replays what it recorded, a replay is
    """
    selftest, preprocess = standard.selftest, standard.preprocess
    checks = check_batches(selftest, preprocess, runner, standard.batches, tolerance, runs_before)
    frames = np.stack([preprocess(clip) for clip in selftest.clips])
    return [*checks, unit_length("video", runner.infer(inputs_for(runner, frames))["video_embedding"])]


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
