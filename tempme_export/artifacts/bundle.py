"""The bundle: a folder of artifacts with a manifest that accounts for every byte."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tempme_export import files
from tempme_export.artifacts import registry
from tempme_export.artifacts.backend import Folder
from tempme_export.artifacts.graph_files import is_data
from tempme_export.artifacts.manifest import misfits
from tempme_export.encoder.conventions import Statement
from tempme_export.encoder.profile import Profile, parse_profile
from tempme_export.encoder.schedule import Schedule, build_schedule
from tempme_export.errors import BundleError, ExportError, ReleaseError
from tempme_export.files import file_sha256
from tempme_export.names import printable

MANIFEST, SELFTEST = "manifest.json", "selftest.npz"
FORMAT = 1
SUFFIX = ".tempme"
_KEYS = {
    "format",
    "tool_version",
    "checkpoint",
    "profile",
    "backbone",
    "schedule",
    "precision",
    "frame_mask",
    "opset",
    "logit_scale",
    "image",
    "versions",
    "tolerances",
    "parity",
    "files",
    "sha256",
}


@dataclass(frozen=True)
class Bundle:
    """An opened bundle. `path` is absolute, and `manifest` the parsed manifest.json."""

    path: Path
    manifest: dict[str, Any]

    @property
    def profile(self) -> Profile:
        """The profile it was built from."""
        return parse_profile(self.manifest["profile"], source=f"{self.path / MANIFEST}: profile")

    @property
    def conventions(self) -> tuple[Statement, ...]:
        """Conventions that its checkpoint's shapes could not tell, and who said them; none in earlier bundles."""
        return tuple(Statement(about, **said) for about, said in self.manifest.get("conventions", {}).items())

    @property
    def schedule(self) -> Schedule:
        """The schedule it was built with."""
        profile, tokens = self.profile, self.manifest["schedule"]["tokens_per_frame"]
        layers = len(self.manifest["schedule"]["blocks"])
        return build_schedule(profile.merge, layers=layers, frames=profile.frames, tokens_per_frame=tokens)


def folder_of(bundle: Bundle) -> Folder:
    """A bundle's artifacts, as backends open them."""
    facts = {option: found for option in registry.options() if (found := bundle.manifest.get(option)) is not None}
    return Folder(bundle.path, bundle.manifest["precision"], facts, frozenset(bundle.manifest["files"]))


def failed_path(out: Path) -> Path:
    """Path at which a build that failed parity is kept."""
    return out.with_name(out.name + ".failed")


def _dump(document: dict[str, Any]) -> bytes:
    return (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode()


def _self_sha256(manifest: dict[str, Any]) -> str:
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(_dump(rest)).hexdigest()


def write_manifest(folder: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Write manifest.json over the files that lie in `folder`, their hashes and its own; what it holds."""
    entries = {
        path.name: {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        for path in sorted(folder.iterdir())
        if path.name != MANIFEST
    }
    manifest = printable({"format": FORMAT, **content, "files": entries})
    manifest["sha256"] = _self_sha256(manifest)
    (folder / MANIFEST).write_bytes(_dump(manifest))
    return dict(manifest)


def open_bundle(path: str | Path) -> Bundle:
    """Read a bundle's manifest, without reading its artifacts.

    Raises BundleError when there is none, it is damaged, changed, incomplete or of another format version.
    """
    folder = Path(path)
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        raise BundleError(f"{folder} {found}, expected the folder that tempme-export wrote.")
    if not (folder / MANIFEST).is_file():
        raise BundleError(f"{folder} has no {MANIFEST}, so it is no bundle.")
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
    except (ValueError, OSError, RecursionError) as error:
        raise BundleError(f"{folder / MANIFEST} is damaged: {error}. Export the bundle again.") from error
    version = manifest.get("format") if isinstance(manifest, dict) else None
    if version != FORMAT:
        raise BundleError(f"{folder / MANIFEST} has format {version!r}, this version reads {FORMAT}. Export again.")
    missing = sorted(_KEYS - manifest.keys())
    if missing:
        raise BundleError(f"{folder / MANIFEST} lacks {', '.join(missing)}. Export the bundle again.")
    if manifest["sha256"] != _self_sha256(manifest):
        raise BundleError(f"{folder / MANIFEST} was changed. Export the bundle again.")
    of_artifacts = (words for one in registry.ARTIFACTS for words in one.misfits(manifest))
    if wrong := [*misfits(manifest), *of_artifacts]:
        raise BundleError(f"{folder / MANIFEST}: {'; '.join(wrong)}. Export the bundle again.")
    return Bundle(folder.absolute(), manifest)


def check_release(bundle: Bundle, names: Iterable[str] = ()) -> None:
    """Compare the folder with the release that was opened: its manifest, and the sizes of the files of these names.

    Raises ReleaseError where there is another one or none, BundleError for a file that is missing or was changed.
    """
    try:
        found = open_bundle(bundle.path).manifest["sha256"]
    except BundleError as error:
        raise ReleaseError(f"{bundle.path} is no longer what was opened: {error}") from error
    if found != bundle.manifest["sha256"]:
        raise ReleaseError(
            f"{bundle.path}: found another release, {found[:12]}, than was opened, {bundle.manifest['sha256'][:12]}. "
            "Open it again."
        )
    problems = []
    for name in names:
        entry, path = bundle.manifest["files"].get(name), bundle.path / name
        if entry is None or not path.is_file():
            problems.append(f"{name} is missing")
        elif path.stat().st_size != entry["bytes"]:
            problems.append(f"{name} was changed")
    if problems:
        raise BundleError(f"{bundle.path}: {'; '.join(problems)}. Export the bundle again.")


@contextmanager
def one_release(bundle: Bundle, names: Iterable[str] = ()) -> Iterator[None]:
    """Ensure that these files and the manifest, as read within, are of the release that was opened.

    Raises as `check_release`, also for what failed within: another release's file may have been the reason.
    """
    names = tuple(names)
    check_release(bundle, names)
    try:
        yield
    finally:
        check_release(bundle, names)


@dataclass(frozen=True)
class Intact:
    """All files of a bundle, every byte as its manifest says."""

    files: int


def verify_files(bundle: Bundle) -> Intact:
    """Hash every file against the manifest, and the manifest against itself.

    Raises BundleError naming each file that is changed, missing or unknown.
    """
    manifest, folder = bundle.manifest, bundle.path
    problems = []
    exact = (folder / MANIFEST).read_bytes() == _dump(manifest)
    if not exact or manifest["sha256"] != _self_sha256(manifest):
        problems.append(f"{MANIFEST} was changed")
    for name, entry in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif path.is_symlink() and is_data(name):
            problems.append(f"{name} is a link, which runtimes do not follow out of a folder")
        elif path.stat().st_size != entry["bytes"] or file_sha256(path) != entry["sha256"]:
            problems.append(f"{name} was changed")
    known = {*manifest["files"], MANIFEST}
    problems += [f"{path.name} does not belong" for path in sorted(folder.iterdir()) if path.name not in known]
    if problems:
        raise BundleError(f"{folder}: {'; '.join(problems)}. Export the bundle again.")
    return Intact(len(manifest["files"]))


def _check_replaceable(out: Path) -> None:
    # A manifest alone proves nothing: browser extensions and web applications have one of that name.
    usual = [*(one.file for one in registry.ARTIFACTS if one.option is None), SELFTEST]
    is_bundle = (out / MANIFEST).is_file() and any((out / name).is_file() for name in usual)
    if not is_bundle and not (out.is_dir() and not any(out.iterdir())):
        raise BundleError(f"{out} exists and is no bundle; it is left alone. Choose another --out.")


def _made_from(folder: Path) -> dict[str, str]:
    """Path and hash of a bundle's checkpoint; nothing for what is no bundle."""
    try:
        found: dict[str, str] = open_bundle(folder).manifest["checkpoint"]
    except BundleError:
        return {}
    return found


def _taken(out: Path, sha256: str | None) -> BundleError:
    """The refusal of a name that something has; of a bundle made from other weights than `sha256`, it says so."""
    there = _made_from(out)
    differs = sha256 is not None and there.get("sha256", sha256) != sha256
    other = f" and was made from another checkpoint, {there['path']}" if differs else ""
    return BundleError(f"{out} exists{other}. Add --force to replace it, or choose another --out.")


def check_destination(out: Path, needed_bytes: int, force: bool, sha256: str | None = None) -> None:
    """Refuse before the work is done what would fail after it.

    sha256  of the checkpoint, to tell a bundle of another one
    Raises BundleError for an output that exists without `force`, or is no bundle; ExportError for a folder
    that cannot be written or a disk without `needed_bytes` free.
    """
    if failed_path(out).exists():
        _check_replaceable(failed_path(out))
    if out.exists() or out.is_symlink():
        _check_replaceable(out)
        if not force:
            raise _taken(out, sha256)
    parent = out.absolute().parent
    if not parent.is_dir():
        raise ExportError(f"{parent} is not a folder, so {out.name} cannot be written there. Choose another --out.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ExportError(f"{parent} cannot be written to. Choose another --out.")
    free = shutil.disk_usage(parent).free
    if free < needed_bytes:
        raise ExportError(
            f"{parent} has {free / 1e9:.2f} GB free and the bundle needs about {needed_bytes / 1e9:.2f} GB. "
            "Free some space or choose another --out."
        )


def publish(work: Path, out: Path, *, replace: bool) -> None:
    """Give a complete folder that `files.building` made its final name, at once.

    replace  also where a bundle is there, which is then deleted
    Raises BundleError where something else is there, or a bundle that is not to be replaced.
    """
    if replace and os.path.lexists(out):
        _check_replaceable(out)
    try:
        files.publish(work, out, replace=replace)
    except FileExistsError as error:
        raise _taken(out, _made_from(work).get("sha256")) from error
