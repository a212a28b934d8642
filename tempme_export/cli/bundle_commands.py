"""The subcommands of `tempme-export` that use a bundle and need nothing of what made it: verify, triton-repo."""

from pathlib import Path

from tempme_export.artifacts.bundle import Bundle, open_bundle
from tempme_export.cli import console
from tempme_export.cli.terminal import show_warning, write_json
from tempme_export.errors import ExportError
from tempme_export.pipeline.verify import verify
from tempme_export.serving.repository import write_repository


def say_done(text: str, statuses: list[str]) -> None:
    """Say that it is done, and whether parity is proven."""
    if "not run" in statuses:
        text += "; parity was NOT RUN for the lines above, so nothing is proven about them on this machine"
    console.show_done(text)


def write_bundle_json(bundle: Bundle, written: tuple[Path, ...] = ()) -> None:
    """The bundle and its manifest on stdout. A stdout that fails is a warning: the bundle is in place."""
    repository = {"repository": list(written)} if written else {}
    try:
        write_json({"bundle": bundle.path, "manifest": bundle.manifest} | repository)
    except ExportError as error:
        show_warning(f"{error} {bundle.path} is complete.")


def verify_bundle(folder: Path, device: str, as_json: bool) -> None:
    """Check a bundle's bytes and run its self-test."""
    reports = verify(folder, device=device, progress=console.progress())
    if as_json:
        write_json({"bundle": str(folder), "parity": [report.to_dict() for report in reports]})
    say_done(f"{folder} verified", [report.status for report in reports])
    console.show_uses(folder, verified=True)


def serve_bundle(folder: Path, repository: Path, threads: int | None, force: bool, as_json: bool) -> None:
    """Write the model repository of a bundle that is there."""
    bundle = open_bundle(folder)
    written = write_repository(bundle, repository, force, threads)
    console.show_repository(written)
    if as_json:
        write_bundle_json(bundle, written)
    console.show_done(f"{repository} serves {folder}")
    console.show_server(repository)
