"""What a compiled package (`video.pt2`) says about itself: the exporter writes it in, the runtime reads it."""

import json
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tempme_export.errors import BundleError

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
    except (OSError, zipfile.BadZipFile, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"{path} is no package that can be read: {error}. Export the bundle again.") from error
