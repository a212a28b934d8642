"""Facts about the machine and the software that a measurement belongs to."""

import os
import platform
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tempme_export.bench.core.row import VERSIONS


@dataclass(frozen=True)
class MachineRecord:
    """Machine and versions of a measurement.

    threads       what every backend may use for one operator on the CPU
    load_average  processes that ran or wanted to, over the minute before (getloadavg(3)); the measurement's own among
                  them; None where the system does not tell
    gpu, driver   None unless a GPU was measured
    """

    cpu: str
    threads: int
    load_average: float | None
    gpu: str | None
    driver: str | None
    python: str
    torch: str | None
    onnxruntime: str | None
    openvino: str | None
    tensorrt: str | None
    commit: str | None


def machine(device: str = "cpu") -> MachineRecord:
    """The facts of this process, and of the GPU that `device` names."""
    import torch

    facts = None
    if device.startswith("cuda"):
        from tempme_export.bench.gpu.state import gpu_state

        facts = gpu_state()
    versions: dict[str, Any] = {name: _version(name) or _version(f"{name}-gpu") for name in VERSIONS}
    return MachineRecord(
        **{**versions, "python": platform.python_version()},
        cpu=_cpu(),
        threads=torch.get_num_threads(),
        load_average=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        gpu=None if facts is None else facts.name,
        driver=None if facts is None else facts.driver,
        commit=_commit(),
    )


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """Commit of the working tree this file is tracked in, `-dirty` if changed; None for an installed copy."""
    here = Path(__file__).resolve()
    try:
        for command in (
            ["ls-files", "--error-unmatch", here.name],
            ["describe", "--always", "--dirty", "--abbrev=40"],
        ):
            done = subprocess.run(["git", *command], cwd=here.parent, capture_output=True, text=True, timeout=10)
            if done.returncode != 0:
                return None
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip()
