"""Facts about a GPU that its measurements depend on. What cannot be asked is None."""

import dataclasses
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch


@dataclass(frozen=True)
class GpuState:
    """One device at one moment: clocks in MHz, power in W, temperature in degrees C, memory in 1e9 bytes.

    throttle  the driver's bit mask of reasons for which clocks are held down; 0 and 1 (idle) are none
    """

    name: str
    capability: str
    memory_gb: float
    multiprocessors: int
    driver: str | None = None
    sm_clock: int | None = None
    memory_clock: int | None = None
    power: float | None = None
    power_limit: float | None = None
    temperature: int | None = None
    throttle: int | None = None


_FIELDS = {
    "driver": "driver_version",
    "sm_clock": "clocks.sm",
    "memory_clock": "clocks.mem",
    "power": "power.draw",
    "power_limit": "power.limit",
    "temperature": "temperature.gpu",
    "throttle": "clocks_throttle_reasons.active",
}


def _whole(answer: str) -> int:
    return int(answer, 0)


_KINDS: dict[str, Callable[[str], Any]] = {"driver": str, "power": float, "power_limit": float}


def _asked(index: int, name: str, program: str) -> Any:
    """A fact that nvidia-smi tells; None where it refuses, which must not cost the others."""
    command = [program, f"--id={index}", f"--query-gpu={_FIELDS[name]}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
        answer = done.stdout.strip()
        return _KINDS.get(name, _whole)(answer) if done.returncode == 0 and answer else None
    except (OSError, subprocess.TimeoutExpired, ValueError):
        return None


def gpu_state() -> GpuState | None:
    """The current CUDA device as it is now; None without one."""
    if not torch.cuda.is_available():
        return None
    index = torch.cuda.current_device()
    program = shutil.which("nvidia-smi")
    properties = torch.cuda.get_device_properties(index)
    return GpuState(
        name=properties.name,
        capability=f"sm_{properties.major}{properties.minor}",
        memory_gb=properties.total_memory / 1e9,
        multiprocessors=properties.multi_processor_count,
        **({} if program is None else {name: _asked(index, name, program) for name in _FIELDS}),
    )


def versions() -> dict[str, str | None]:
    """Of the packages that a measurement depends on."""
    found: dict[str, str | None] = {"cuda": torch.version.cuda}
    for name in ("torch", "triton", "numpy", "tempme-export"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def gpu_now(device: str) -> tuple[dict[str, Any], ...]:
    """Clocks, throttling and power of the GPU as it is; empty on a CPU."""
    facts = gpu_state() if device.startswith("cuda") else None
    return () if facts is None else (dataclasses.asdict(facts),)
