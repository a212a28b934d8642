"""Facts about a GPU that its measurements depend on. What cannot be asked is None."""

import dataclasses
import importlib
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

_QUERY = "driver_version,clocks.sm,clocks.mem,power.draw,power.limit,temperature.gpu"


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


def _by_nvml(index: int) -> dict[str, Any]:
    """Facts that nvidia-ml-py tells; nothing where it is missing or refuses."""
    try:
        nvml: Any = importlib.import_module("pynvml")
        nvml.nvmlInit()
    except Exception:  # the package's errors have no common public root when it is a stub
        return {}
    found: dict[str, Any] = {}
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        questions: dict[str, Callable[[], Any]] = {
            "driver": lambda: str(nvml.nvmlSystemGetDriverVersion()),
            "sm_clock": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
            "memory_clock": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
            "power": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1e3,
            "power_limit": lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1e3,
            "temperature": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
            "throttle": lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle),
        }
        for name, ask in questions.items():
            try:
                found[name] = ask()
            except Exception:  # one answer the driver refuses must not cost the others
                continue
    except Exception:  # no such device: nvidia-smi is asked next, and what nobody answers stays empty
        return found
    finally:
        nvml.nvmlShutdown()
    return found


def _by_smi(index: int) -> dict[str, Any]:
    """Facts that nvidia-smi tells; nothing where it is missing or refuses."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    command = [program, f"--id={index}", f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    fields = [field.strip() for field in done.stdout.strip().split(",")]
    if done.returncode != 0 or len(fields) != len(_QUERY.split(",")):
        return {}

    def number(text: str) -> float | None:
        try:
            return float(text)
        except ValueError:
            return None

    numbers = [number(field) for field in fields[1:]]
    whole = [None if one is None else int(one) for one in numbers]
    return {
        "driver": fields[0],
        "sm_clock": whole[0],
        "memory_clock": whole[1],
        "power": numbers[2],
        "power_limit": numbers[3],
        "temperature": whole[4],
    }


def gpu_state() -> GpuState | None:
    """The current CUDA device as it is now; None without one."""
    if not torch.cuda.is_available():
        return None
    index = torch.cuda.current_device()
    properties = torch.cuda.get_device_properties(index)
    return GpuState(
        name=properties.name,
        capability=f"sm_{properties.major}{properties.minor}",
        memory_gb=properties.total_memory / 1e9,
        multiprocessors=properties.multi_processor_count,
        **(_by_nvml(index) or _by_smi(index)),
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
