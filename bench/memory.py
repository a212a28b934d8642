"""Memory that loading and encoding take, of this process and of a CUDA device. None where the system does not tell."""

import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tempme_export.runtime.malloc import trim_malloc

T = TypeVar("T")

PROCESS = Path("/proc/self")


@dataclass(frozen=True)
class Memory:
    """Memory that one step took, in 1e6 bytes.

    kept  growth of resident memory that is still there after the step
    peak  highest resident memory during the step, above that before it
    """

    kept: float
    peak: float


def _status_mb(process: Path, field: str) -> float:
    """A kB field of a process's status in 1e6 bytes."""
    for line in (process / "status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise OSError(f"{process}/status has no field {field}")


def measured(step: Callable[[], T], process: Path = PROCESS) -> tuple[T, Memory | None]:
    """Run `step`; its result and the memory of this process it took.

    Linux keeps the highest resident size and sets it back on request (proc(5), clear_refs); where it does not, the
    step runs all the same. Memory that was freed before is given back first, so that taking it again counts; what
    torch or ONNX Runtime keep in pools of their own cannot be.
    """
    gc.collect()
    trim_malloc()
    try:
        (process / "clear_refs").write_text("5", encoding="ascii")
        before = _status_mb(process, "VmRSS")
    except OSError:
        return step(), None
    result = step()
    return result, Memory(_status_mb(process, "VmRSS") - before, max(0.0, _status_mb(process, "VmHWM") - before))


def device_peak_mb(step: Callable[[], object], device: str) -> float | None:
    """Highest memory torch holds on a CUDA device while `step` runs, in 1e6 bytes; None on a CPU."""
    if not device.startswith("cuda"):
        return None
    import torch

    torch.cuda.reset_peak_memory_stats(device)
    step()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) / 1e6


OUT_OF_MEMORY = ("allocate memory", "out of memory", "bad_alloc", "bad allocation", "Failed to allocate")


def is_out_of_memory(error: BaseException) -> bool:
    """True for an exception of Python, torch, ONNX Runtime or OpenVINO that says that memory ran out."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, Exception) and any(words in str(error) for words in OUT_OF_MEMORY)
