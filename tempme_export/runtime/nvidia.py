"""The NVIDIA driver's own answers through ctypes: which GPU, driver and CUDA version, without torch's second of import.

Has not been run with a GPU yet.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tempme_export.errors import BackendError

CUDA, NVML = "libcuda.so.1", "libnvidia-ml.so.1"
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
_NAME_BYTES = 256
RELEASE_FILE = Path("/sys/module/nvidia/version")


@dataclass(frozen=True)
class Gpu:
    """One GPU as the driver sees it, CUDA_VISIBLE_DEVICES applied.

    compute  major and minor compute capability
    driver   release, such as 580.65.06; empty where it cannot be read
    cuda     newest CUDA version that the driver runs
    """

    name: str
    compute: tuple[int, int]
    driver: str
    cuda: tuple[int, int]

    @property
    def capability(self) -> str:
        """Such as sm_90."""
        return f"sm_{self.compute[0]}{self.compute[1]}"


def engine_device(device: str) -> str:
    """The GPU that an engine is built for and verified on: `device`, or the first GPU where that is the CPU."""
    return "cuda" if device == "cpu" else device


def gpu_index(device: str) -> int:
    """`cuda` or `cuda:N` -> N. Raises BackendError for another device."""
    kind, _, index = device.partition(":")
    if kind != "cuda" or (index and not index.isdecimal()):
        raise BackendError(f"device {device!r} is no NVIDIA GPU. Use cuda or cuda:N.")
    return int(index or 0)


def open_library(name: str) -> Any:
    """A shared library of the driver. Raises OSError where it is missing."""
    return ctypes.CDLL(name)


OpenLibrary = Callable[[str], Any]


def _call(library: Any, name: str, *arguments: Any) -> None:
    code = getattr(library, name)(*arguments)
    if code:
        raise BackendError(
            f"the NVIDIA driver is installed and {name} answers with error {code}. Run nvidia-smi to see what is "
            "wrong; in a container, pass the GPU through (docker run --gpus all)."
        )


def find_gpu(device: str = "cuda", open_library: OpenLibrary = open_library) -> Gpu:
    """The GPU behind `cuda` or `cuda:N`. Raises BackendError without a driver or such a GPU."""
    index = gpu_index(device)
    try:
        library = open_library(CUDA)
    except OSError as error:
        raise BackendError(
            f"no NVIDIA GPU: {CUDA} does not load ({error}). Install NVIDIA's driver, or in a container pass the GPU "
            "through (docker run --gpus all)."
        ) from error
    _call(library, "cuInit", 0)
    count, handle = ctypes.c_int(), ctypes.c_int()
    _call(library, "cuDeviceGetCount", ctypes.byref(count))
    if index >= count.value:
        raise BackendError(
            f"device {device} was asked for and the NVIDIA driver shows {count.value} GPUs. Choose another --device, "
            "or see CUDA_VISIBLE_DEVICES."
        )
    _call(library, "cuDeviceGet", ctypes.byref(handle), index)
    name = ctypes.create_string_buffer(_NAME_BYTES)
    _call(library, "cuDeviceGetName", name, _NAME_BYTES, handle)
    numbers = [ctypes.c_int() for _ in range(3)]
    for number, attribute in zip(numbers, (_MAJOR, _MINOR), strict=False):
        _call(library, "cuDeviceGetAttribute", ctypes.byref(number), attribute, handle)
    _call(library, "cuDriverGetVersion", ctypes.byref(numbers[2]))
    major, minor, version = (number.value for number in numbers)
    release = driver_release(open_library)
    return Gpu(name.value.decode(), (major, minor), release, (version // 1000, version % 1000 // 10))


def driver_release(open_library: OpenLibrary = open_library, release_file: Path = RELEASE_FILE) -> str:
    """The driver's release by NVML, or by the kernel module's own file; empty where neither says."""
    text = ctypes.create_string_buffer(_NAME_BYTES)
    try:
        library = open_library(NVML)
        if library.nvmlInit_v2() == 0 and library.nvmlSystemGetDriverVersion(text, _NAME_BYTES) == 0:
            return text.value.decode()
    except (OSError, AttributeError):  # containers without the driver's utilities
        text.value = b""
    return release_file.read_text().strip() if release_file.is_file() else ""
