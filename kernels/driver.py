"""Launches of kernels built ahead of time through the CUDA driver alone: without Triton, called as TensorRT calls."""

import ctypes
from collections.abc import Sequence
from typing import Any

from torch import Tensor

LIBRARY = "libcuda.so.1"
_DYNAMIC_SHARED = 48 * 1024  # what a kernel may ask for without being allowed more
_MAX_DYNAMIC_SHARED_ATTRIBUTE = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_ERROR_LOG, _ERROR_LOG_BYTES = 5, 6  # CU_JIT_ERROR_LOG_BUFFER and its _SIZE_BYTES
_LOG_BYTES = 8192
_WARP = 32
_INT32 = range(-(2**31), 2**31)


class DriverError(RuntimeError):
    """The CUDA driver is missing or refused a call."""


def open_library(name: str = LIBRARY) -> ctypes.CDLL:
    """The CUDA driver. Raises DriverError where there is none."""
    try:
        return ctypes.CDLL(name)
    except OSError as error:
        raise DriverError(
            f"{name} cannot be loaded ({error}). It comes with the NVIDIA driver: install that, or in a container "
            "start with the GPU passed through (docker run --gpus all)."
        ) from error


class Driver:
    """The few calls of the CUDA driver that a launch takes; each raises DriverError with the driver's own words.

    library  stands in for libcuda in tests
    """

    def __init__(self, library: Any = None) -> None:
        self._library = open_library() if library is None else library
        self.call("cuInit", 0)

    def call(self, name: str, *arguments: Any, detail: ctypes.Array[ctypes.c_char] | None = None) -> None:
        """Call a function that returns a CUresult; `detail` holds what it may have written about a failure."""
        result = getattr(self._library, name)(*arguments)
        if result:
            said = "" if detail is None else detail.value.decode(errors="replace").strip()
            raise DriverError(f"{name} failed: {self._describe(result)}." + (f"\n{said}" if said else ""))

    def _describe(self, result: int) -> str:
        found = []
        for name in ("cuGetErrorName", "cuGetErrorString"):
            text = ctypes.c_char_p()
            getattr(self._library, name)(result, ctypes.byref(text))
            found.append((text.value or b"unknown").decode())
        return f"{found[0]} ({result}), {found[1]}"

    def require_context(self) -> None:
        """Raise DriverError unless this thread has a current context, which modules are loaded into."""
        context = ctypes.c_void_p()
        self.call("cuCtxGetCurrent", ctypes.byref(context))
        if not context:
            raise DriverError(
                "no CUDA context is current in this thread. Put a tensor on the GPU first, in this thread: torch then "
                "makes its context current."
            )


class Function:
    """A loaded kernel. It stays loaded until its context ends.

    parameters  PTX type of every argument, as `aot.Compiled` has it
    shared      bytes of shared memory of a program
    """

    def __init__(
        self, driver: Driver, handle: ctypes.c_void_p, parameters: Sequence[str], shared: int, num_warps: int
    ) -> None:
        self._driver, self._handle = driver, handle
        self._parameters, self._shared, self._threads = tuple(parameters), shared, num_warps * _WARP

    def launch(
        self,
        grid: tuple[int, int, int],
        inputs: Sequence[Tensor],
        scalars: Sequence[int],
        outputs: Sequence[Tensor],
        stream: int,
    ) -> None:
        """Enqueue one launch on a stream of the current context, such as torch.cuda.current_stream().cuda_stream.

        Raises ValueError where the arguments are not those the kernel was built with, DriverError where the
        driver refuses.
        """
        given = ("u64",) * len(inputs) + ("u32",) * len(scalars) + ("u64",) * len(outputs)
        if given != self._parameters:
            raise ValueError(
                f"{len(inputs)} inputs, {len(scalars)} scalars and {len(outputs)} outputs are {' '.join(given)}, "
                f"but the kernel was built for {' '.join(self._parameters)}."
            )
        wide = [scalar for scalar in scalars if scalar not in _INT32]
        if wide:
            raise ValueError(f"scalars {wide} do not fit an int32.")
        values = [
            *(ctypes.c_uint64(tensor.data_ptr()) for tensor in inputs),
            *(ctypes.c_int32(scalar) for scalar in scalars),
            *(ctypes.c_uint64(tensor.data_ptr()) for tensor in outputs),
        ]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        self._driver.call(
            "cuLaunchKernel",
            self._handle,
            *(ctypes.c_uint(size) for size in (*grid, self._threads, 1, 1, self._shared)),
            ctypes.c_void_p(stream),
            pointers,
            None,
        )


def load(
    image: str | bytes,
    name: str,
    *,
    parameters: Sequence[str],
    shared: int,
    num_warps: int,
    driver: Driver | None = None,
) -> Function:
    """Load a kernel into the current context: PTX (text), which the driver translates, or cubin (bytes).

    name        of the kernel
    parameters  PTX type of every argument: pointers u64, int32 scalars u32
    shared      bytes of shared memory of a program; more than 48 KiB are asked for
    driver      None: libcuda

    Raises DriverError without a driver or context, and where the driver refuses the image, with its log.
    """
    driver = driver or Driver()
    driver.require_context()
    data = image.encode() + b"\0" if isinstance(image, str) else image
    log = ctypes.create_string_buffer(_LOG_BYTES)
    options = (ctypes.c_int * 2)(_ERROR_LOG, _ERROR_LOG_BYTES)
    values = (ctypes.c_void_p * 2)(ctypes.addressof(log), _LOG_BYTES)
    module, handle = ctypes.c_void_p(), ctypes.c_void_p()
    driver.call("cuModuleLoadDataEx", ctypes.byref(module), data, 2, options, values, detail=log)
    driver.call("cuModuleGetFunction", ctypes.byref(handle), module, name.encode())
    if shared > _DYNAMIC_SHARED:
        driver.call("cuFuncSetAttribute", handle, _MAX_DYNAMIC_SHARED_ATTRIBUTE, shared)
    return Function(driver, handle, parameters, shared, num_warps)
