"""ONNX Runtime with the library of our operators, on a processor."""

import platform
from pathlib import Path
from types import ModuleType
from typing import Any

from tempme_export.artifacts.backend import ArtifactFacts, Setting
from tempme_export.errors import BackendError, BundleError
from tempme_export.files import file_sha256, library_path
from tempme_export.runtime import ort
from tempme_export.runtime.ort import OrtRunner


def check_fit(path: Path, facts: ArtifactFacts, device: str) -> None:
    """Raises BackendError for a library of another architecture."""
    here = platform.machine()
    if facts["machine"] != here:
        raise BackendError(
            f"{path.name} was compiled for {facts['machine']}, and this is {here}. Export the bundle again on this "
            "machine."
        )


class OrtOpsRunner(OrtRunner):
    """A graph on the CPU provider, its nodes of ours by the operators of a library."""

    def __init__(self, library: Path, facts: ArtifactFacts, setting: Setting) -> None:
        """Raises as `OrtRunner`; BackendError for a library that does not load here, BundleError for one that is not
        what the manifest says."""
        self._library, self._facts = library.absolute(), facts
        graph = library.with_name(facts["graph"])
        super().__init__(graph, setting.device, setting.extra_outputs, setting.threads, "ort-ops", setting.max_batch)

    def _session_options(self, ort: ModuleType) -> Any:
        options = super()._session_options(ort)
        check_fit(self._library, self._facts, "cpu")
        self._check_library()
        errors = ort.capi.onnxruntime_pybind11_state
        try:
            with library_path(self._library) as named:
                options.register_custom_ops_library(named)
        except (errors.Fail, errors.RuntimeException) as error:
            raise BackendError(
                f"{self._library.name} does not load into ONNX Runtime {ort.__version__} here: {error}. Run: "
                "pip install -U 'tempme-export[cpu]', or export the bundle again on this machine."
            ) from error
        return options

    def _check_library(self) -> None:
        """Before any of its code runs."""
        try:
            found = file_sha256(self._library)
        except OSError as error:
            raise BundleError(f"{self._library} cannot be read: {error}. Export the bundle again.") from error
        if found != self._facts["sha256"]:
            raise BundleError(
                f"{self._library}: found the hash {found[:12]}, expected {self._facts['sha256'][:12]} as the manifest "
                "says. Export the bundle again."
            )


def choose_device(facts: ArtifactFacts, device: str | None) -> str:
    """The CPU. Raises BackendError as `ort.check_device`."""
    return ort.choose_device(facts, device)


def describe(facts: ArtifactFacts, device: str) -> str:
    """Words for a report."""
    return f"{ort.describe(facts, device)}, our operators"


def open_runner(path: Path, facts: ArtifactFacts, setting: Setting) -> OrtOpsRunner:
    """Raises as `OrtOpsRunner`."""
    return OrtOpsRunner(path, facts, setting)
