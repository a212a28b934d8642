"""What a compiled package (`video.pt2`) says about itself: the exporter writes it in, the runtime reads it."""

import json
import os
import shutil
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tempme_export.errors import BackendError, BundleError

KEY = "tempme"


@dataclass(frozen=True)
class PackageFacts:
    """Stored as JSON under KEY in the package's metadata.

    torch       version that compiled it
    device      "cpu" or "cuda"
    machine     architecture of the host, as `platform.machine()` names it
    capability  instructions or GPU generation it was compiled for, as `devices.capability` names them
    precision   "fp32", "fp16" or "bf16", inside
    max_batch   most videos per call; the fewest is one
    inputs      name -> (numpy dtype, shape), None for the batch
    """

    torch: str
    device: str
    machine: str
    capability: str
    precision: str
    max_batch: int
    inputs: dict[str, tuple[str, tuple[int | None, ...]]]

    def to_dict(self) -> dict[str, Any]:
        """For the manifest."""
        return asdict(self)

    def to_metadata(self) -> dict[str, str]:
        """For the compiler, which takes strings only."""
        return {KEY: json.dumps(self.to_dict())}


def _stored(archive: zipfile.ZipFile) -> str | None:
    for name in archive.namelist():
        if name.endswith("metadata.json"):
            value = json.loads(archive.read(name)).get(KEY)
            if value is not None:
                return str(value)
    return None


def read_facts(path: Path) -> PackageFacts:
    """Read the facts without loading any of the code.

    Raises BundleError for a file that is no package, or none of this tool.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            stored = _stored(archive)
        if stored is None:
            raise BundleError(f"{path} was not written by tempme-export, so its inputs are unknown.")
        facts = json.loads(stored)
        inputs = {name: (dtype, tuple(shape)) for name, (dtype, shape) in facts.pop("inputs").items()}
        return PackageFacts(**facts, inputs=inputs)
    except (OSError, zipfile.BadZipFile, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BundleError(f"{path} is no package that can be read: {error}. Export the bundle again.") from error


def check_unpacking(name: str, needed_bytes: int = 0) -> None:
    """Raise BackendError where torch cannot unpack a package's code into the folder for temporary files and run it."""
    if not hasattr(os, "statvfs"):  # Windows
        return
    folder = Path(os.environ.get("TMPDIR", "/tmp"))
    if not folder.is_dir():
        problem = "is not there"
    elif not os.access(folder, os.W_OK | os.X_OK):
        problem = "cannot be written to"
    elif os.statvfs(folder).f_flag & getattr(os, "ST_NOEXEC", 0):
        problem = "is mounted noexec, so that no code in it may run"
    elif shutil.disk_usage(folder).free < needed_bytes:
        problem = f"has {shutil.disk_usage(folder).free / 1e6:.0f} MB free of the {needed_bytes / 1e6:.0f} it takes"
    else:
        return
    raise BackendError(
        f"{name}: torch unpacks its code into {folder}, which {problem}. Set TMPDIR to another folder, such as "
        f"TMPDIR={Path.home()}."
    )
