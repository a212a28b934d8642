"""Facts about the machine and the software that a measurement belongs to."""

import platform
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


@dataclass(frozen=True)
class Machine:
    """Where a measurement was taken. `threads` is what every backend may use for one operator on the CPU."""

    cpu: str
    threads: int
    python: str
    torch: str | None
    onnxruntime: str | None
    commit: str | None


def machine() -> Machine:
    """The facts of this process."""
    import torch

    return Machine(
        cpu=_cpu(),
        threads=torch.get_num_threads(),
        python=platform.python_version(),
        torch=_version("torch"),
        onnxruntime=_version("onnxruntime") or _version("onnxruntime-gpu"),
        commit=_commit(),
    )


def peak_rss_mb() -> float | None:
    """Largest resident memory of this process so far, in 1e6 bytes; None where the system does not tell."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


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
