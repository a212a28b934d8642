"""A bundle -> does it compute here what it did where it was built? Needs nothing that made it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tempme_export.artifacts.bundle import SELFTEST, Bundle, folder_of, one_release, open_bundle, verify_files
from tempme_export.media.preprocess import preprocess_in
from tempme_export.parity.checks import ParityReport
from tempme_export.parity.selftest import check_fits, load_selftest
from tempme_export.parity.verification import Standard, judge, raise_if_failed

Progress = Callable[[str, Any], None]


def _silent(stage: str, result: Any) -> None:
    """No progress wanted."""


def verify(path: str | Path, *, device: str = "cpu", progress: Progress = _silent) -> list[ParityReport]:
    """Check every byte of a bundle and run its self-test on this machine.

    Raises BundleError for a changed file or a bundle that is replaced meanwhile, ParityError where the self-test fails,
    BackendError without a runtime.
    """
    bundle = open_bundle(path)
    with one_release(bundle):
        reports = _judge_bundle(bundle, device, progress)
    progress("parity", reports)
    raise_if_failed(reports, f"{bundle.path} does not compute here what it did where it was built.")
    return reports


def _judge_bundle(bundle: Bundle, device: str, progress: Progress) -> list[ParityReport]:
    verify_files(bundle)
    progress("files", bundle)
    sizes, preprocess = bundle.profile.batch, preprocess_in(bundle.manifest)
    selftest, plan = load_selftest(bundle.path / SELFTEST), bundle.plan
    check_fits(selftest, plan, preprocess.size, bundle.manifest["backbone"]["embed"])
    batches = tuple(sorted({sizes.min, sizes.opt}))
    return judge(folder_of(bundle), Standard(selftest, plan, preprocess, batches), device, elsewhere=True)
