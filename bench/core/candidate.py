"""A way to run a case, and what it is once opened."""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tempme_export.artifacts.graph_files import graph_bytes, graph_files
from tempme_export.bench.cases import Case
from tempme_export.bench.core.clocks import DeviceCall, Work
from tempme_export.bench.memory import measured
from tempme_export.errors import BackendError
from tempme_export.files import file_sha256
from tempme_export.parity.checks import inputs_for
from tempme_export.runtime.base import Runner
from tempme_export.runtime.devices import torch_device
from tempme_export.runtime.pytorch import TorchRunner

Embed = Callable[[NDArray[np.float32]], NDArray[Any]]


@dataclass(frozen=True)
class Costs:
    """Getting ready; the columns of a row that are so called. None where there is no file.

    load_mb  resident memory that loading added, in 1e6 bytes; artifact_mb likewise
    """

    load_s: float
    load_mb: float | None
    build_s: float | None = None
    artifact_mb: float | None = None
    artifact_sha256: str | None = None


@dataclass(frozen=True)
class Entry:
    """A candidate opened for a case: what stands beside others in a comparison.

    name     in tables and files: the candidate's or, where methods stand side by side, the method's
    backend  the candidate's name
    onnx     the file, where it runs an ONNX graph
    expect   the embeddings it must give: those of the original path of the same method; None: its own
    """

    name: str
    backend: str
    case: Case
    runner: Runner
    device: torch.device
    precision: str
    costs: Costs
    onnx: Path | None = None
    expect: Embed | None = None

    def embed(self, frames: NDArray[np.float32]) -> NDArray[Any]:
        """[B, F, 3, S, S] normalised pixels -> [B, E], every frame counting."""
        return self.runner.infer(inputs_for(self.runner, frames))["video_embedding"]

    def resident(self, frames: NDArray[np.float32]) -> Callable[[], float] | None:
        """A call that encodes videos which already lie on the GPU and returns the seconds between its device events.

        None on a CPU, and for a backend whose inputs cannot be put there beforehand.
        """
        call = self.runner.resident(inputs_for(self.runner, frames))
        return None if call is None else DeviceCall(Work((call,)), self.device)

    def split(self) -> tuple[Callable[[Any], Any] | None, Callable[[Any], Any]]:
        """Copying videos to the GPU, and encoding them there; on a CPU, and where a backend copies by itself, None and
        `embed`."""
        runner = self.runner
        if not (isinstance(runner, TorchRunner) and runner.on_gpu):
            return None, self.embed
        return lambda frames: runner.to_device({"frames": frames}), runner.encode


@dataclass(frozen=True)
class Candidate:
    """One way to run a case.

    load       a case, its artifact and a device -> a runner; raises BackendError where it cannot run there
    build      writes the artifact into a folder and returns its path, where the case brings none; None for one that
               runs from weights
    require    raises BackendError where a package or this device is missing; asked before anything is built
    file       the artifact's name in a bundle; empty for one that runs from weights
    precision  None: the artifact's
    device     the only kind of device it runs on; None for any
    slow_on    the kinds of device on which it is measured only when named: getting ready takes minutes there, or it is
               not what one would run
    """

    name: str
    load: Callable[[Case, Path | None, str], Runner]
    build: Callable[[Case, Path], Path] | None = None
    require: Callable[[str], object] = lambda device: None
    file: str = ""
    precision: str | None = "fp32"
    device: str | None = None
    slow_on: tuple[str, ...] = ()

    def open(self, case: Case, device: str, folder: Path) -> Entry:
        """Build the artifact into `folder`, unless the case brings it or none is needed, and load it.

        Raises BackendError where a package, runtime or device is missing, ExportError where building fails.
        """
        kind = torch_device(device).type
        if self.device not in (None, kind):
            raise BackendError(f"it runs on {self.device} only, and this measurement on {kind}.")
        self.require(device)
        artifact, build_s = self._artifact(case, folder)
        size, sha256 = (None, None) if artifact is None else (graph_bytes(artifact) / 1e6, _sha256(artifact))
        start = time.perf_counter()
        runner, memory = measured(lambda: self.load(case, artifact, device))
        load_s, load_mb = time.perf_counter() - start, None if memory is None else memory.kept
        costs = Costs(load_s, load_mb, build_s, size, sha256)
        onnx = artifact if self.file.endswith(".onnx") else None
        precision = self.precision or case.precision
        return Entry(self.name, self.name, case, runner, torch_device(device), precision, costs, onnx)

    def _artifact(self, case: Case, folder: Path) -> tuple[Path | None, float | None]:
        """The file it runs and the seconds that building it took; None where the case brings it or none is needed."""
        if self.build is None:
            return None, None
        artifact = case.artifact(self.file)
        if artifact is not None:
            return artifact, None
        start = time.perf_counter()
        artifact = self.build(case, folder)
        return artifact, time.perf_counter() - start


def _sha256(artifact: Path) -> str:
    """Of the file, or of the hashes of all its files."""
    hashes = [file_sha256(path) for path in graph_files(artifact)]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
