"""An AOTInductor package as a Runner. It needs torch and nothing of the encoder's code."""

import json
import os
import platform
import shutil
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.torch_version import TorchVersion

from tempme_export.artifacts.backend import ArtifactFacts, Setting
from tempme_export.errors import BackendError, BundleError, UsageError
from tempme_export.files import library_path
from tempme_export.runtime.base import Arrays, Runner
from tempme_export.runtime.devices import after_fork, capability, quiet_torch, torch_device

KEY = "tempme"
_X86 = ("DEFAULT", "AVX2", "AVX512")  # rising: each runs the code of those before it


@dataclass(frozen=True)
class PackageFacts:
    """Facts of a package: the exporter writes them as JSON, under KEY in the package's metadata.

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
        """Values for the manifest."""
        return asdict(self)

    def to_metadata(self) -> dict[str, str]:
        """Values for the compiler, which takes strings only."""
        return {KEY: json.dumps(self.to_dict())}


def _stored(archive: zipfile.ZipFile) -> str | None:
    for name in archive.namelist():
        if name.endswith("metadata.json"):
            value = json.loads(archive.read(name)).get(KEY)
            if value is not None:
                return str(value)
    return None


def read_package_facts(path: Path) -> PackageFacts:
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


def _runs(built_for: str, here: str) -> bool:
    if built_for in _X86 and here in _X86:
        return _X86.index(built_for) <= _X86.index(here)
    return built_for == here


@dataclass(frozen=True)
class Here:
    """Host that runs packages: torch's version, and the device's instructions, as `devices.capability` names them."""

    torch: str
    capability: str


def check_package(facts: PackageFacts, device: torch.device, name: str, here: Here | None = None) -> None:
    """Raise BackendError for a package of another device, a newer torch or another processor than what is here.

    Loading it would end in an undefined symbol, or the process in an illegal instruction.
    """
    if facts.device != device.type:
        raise BackendError(
            f"{name} was compiled for {facts.device}, and {device.type} was asked for. Use --device {facts.device}, "
            f"or export with --pt2 --device {device.type}."
        )
    here = here or Here(str(torch.__version__), capability(device))
    built, installed = (version.split("+")[0] for version in (facts.torch, here.torch))
    if TorchVersion(installed) < TorchVersion(built):
        raise BackendError(
            f"{name} was compiled by torch {built}, and torch {installed} is installed. Install torch {built} or newer."
        )
    machine = platform.machine()
    if facts.machine != machine or not _runs(facts.capability, here.capability):
        raise BackendError(
            f"{name} was compiled for {facts.machine} {facts.capability}, and this is {machine} {here.capability}. "
            "Export the bundle again on this machine."
        )


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


class Pt2Runner(Runner):
    """A package on the device it was compiled for. Returns the embedding and every merge's decision."""

    not_after_fork = "torch"

    def __init__(self, path: Path, device: str | None = None, name: str = "pt2", threads: int | None = None) -> None:
        """device  None: the one it was compiled for.

        Raises UsageError for `threads`, which torch counts for the whole process; BundleError for a file that is no
        package, BackendError where this machine, torch or device cannot run it, or code may not be unpacked.
        """
        if threads is not None:
            raise UsageError(
                f"threads: found {threads!r}, and {path.name} runs on torch's threads, which all of a process shares. "
                "Leave it out, and call torch.set_num_threads or set OMP_NUM_THREADS."
            )
        facts = read_package_facts(path)
        self.name, self._path, self._device = name, path.absolute(), torch_device(device or facts.device)
        self.max_batch = facts.max_batch
        self.inputs = {key: (np.dtype(dtype), shape) for key, (dtype, shape) in facts.inputs.items()}
        self.opened()

    def _open(self) -> Any:
        """The package's code and weights."""
        check_package(read_package_facts(self._path), self._device, self._path.name)
        check_unpacking(self._path.name, self._path.stat().st_size)
        index = -1 if self._device.index is None else self._device.index
        try:
            with quiet_torch(), library_path(self._path) as named:
                from torch._inductor import aoti_load_package

                return aoti_load_package(named, device_index=index)
        except RuntimeError as error:
            raise BundleError(f"{self._path} cannot be loaded: {str(error).splitlines()[0]}") from error

    def _leave_behind(self) -> None:
        super()._leave_behind()
        after_fork()

    @torch.inference_mode()
    def _infer(self, inputs: Mapping[str, NDArray[np.generic]]) -> Arrays:
        return {key: value.cpu().numpy() for key, value in self.opened()(*self._tensors(inputs)).items()}

    @torch.inference_mode()
    def run_tensors(self, *tensors: torch.Tensor) -> dict[str, torch.Tensor]:
        """The package itself, without a copy: its inputs in order and its outputs, all on its device.

        Nothing is checked: the batch is at most the package's largest. The call may return before its work is done.
        """
        found: dict[str, torch.Tensor] = self.opened()(*tensors)
        return found

    def resident(self, inputs: Mapping[str, NDArray[np.generic]]) -> Callable[[], object] | None:
        """The package without a copy."""
        if self._device.type == "cpu":
            return None
        return partial(self.run_tensors, *self._tensors(inputs))

    def _tensors(self, inputs: Mapping[str, NDArray[np.generic]]) -> list[torch.Tensor]:
        return [torch.from_numpy(np.ascontiguousarray(inputs[name])).to(self._device) for name in self.inputs]


def choose_device(facts: ArtifactFacts, device: str | None) -> str:
    """Device that it was compiled for unless another is asked for. Raises BackendError for one that is not there."""
    return str(torch_device(device or facts["device"]))


def check_fit(path: Path, facts: ArtifactFacts, device: str) -> None:
    """Raises BackendError as `check_package`, and where its code may not be unpacked."""
    check_package(read_package_facts(path), torch_device(device), path.name)
    check_unpacking(path.name, path.stat().st_size)


def describe(facts: ArtifactFacts, device: str) -> str:
    """Words for a report."""
    return f"AOTInductor, {device}"


def open_runner(path: Path, facts: ArtifactFacts, setting: Setting) -> Pt2Runner:
    """Raises as `Pt2Runner`."""
    return Pt2Runner(path, setting.device, threads=setting.threads)
