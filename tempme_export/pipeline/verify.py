"""Verification of a bundle: it computes here what it did where it was built. Needs nothing that made it."""

from pathlib import Path

from tempme_export.artifacts.bundle import SELFTEST, Bundle, folder_of, one_release, open_bundle, verify_files
from tempme_export.media.preprocess import preprocess_in
from tempme_export.parity.checks import ParityReport
from tempme_export.parity.selftest import check_fits, load_selftest
from tempme_export.parity.verification import Parity, Standard, raise_if_failed, verify_artifacts
from tempme_export.progress import SILENT, Progress


def verify(path: str | Path, *, device: str = "cpu", progress: Progress = SILENT) -> list[ParityReport]:
    """Check every byte of a bundle and run its self-test on this machine.

    Raises BundleError for a changed file or a bundle that is replaced meanwhile, ParityError where the self-test fails,
    BackendError without a runtime. `progress` hears of the steps, that the files are Intact, and of Parity.
    """
    bundle = open_bundle(path)
    with one_release(bundle):
        reports = _verify_bundle(bundle, device, progress)
    progress.tell(Parity(tuple(reports)))
    raise_if_failed(reports, f"{bundle.path} does not compute here what it did where it was built.")
    return reports


def _verify_bundle(bundle: Bundle, device: str, progress: Progress) -> list[ParityReport]:
    with progress.step("hashing the files"):
        intact = verify_files(bundle)
    progress.tell(intact)
    sizes, preprocess = bundle.profile.batch, preprocess_in(bundle.manifest)
    selftest, schedule = load_selftest(bundle.path / SELFTEST), bundle.schedule
    check_fits(selftest, schedule, preprocess.size, bundle.manifest["backbone"]["embed"])
    batches = tuple(sorted({sizes.min, sizes.opt}))
    return verify_artifacts(
        folder_of(bundle), Standard(selftest, schedule, preprocess, batches), device, elsewhere=True, progress=progress
    )
