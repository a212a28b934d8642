"""Builds of the plugins' kernels: which target a GPU takes, and PTX that is compiled once in a process."""

import functools
import hashlib
from collections.abc import Callable, Iterable

from tempme_export.errors import BackendError, ExportError
from tempme_export.kernels import aot

MAX_SHARED = 48 * 1024  # bytes of shared memory that a kernel may take without being allowed more
_LEAST_CAPABILITY = (8, 0)
Compiler = Callable[[aot.Variant, str], aot.Compiled]


def ptx_target(capability: tuple[int, int]) -> str:
    """The target to compile for on a GPU: its own architecture, or the universal build where none is made for it.

    Raises BackendError for a GPU that is too old.
    """
    if capability < _LEAST_CAPABILITY:
        raise BackendError(
            f"the GPU has compute capability {capability[0]}.{capability[1]}; the fused kernels need 8.0 (Ampere) or "
            "newer. Leave out --trt: the ONNX files run on any GPU."
        )
    own = f"sm_{capability[0]}{capability[1]}"
    return own if own in aot.TARGETS else aot.UNIVERSAL


@functools.cache
def build(variant: aot.Variant, target: str, compiler: Compiler = aot.compile) -> aot.Compiled:
    """A kernel as PTX, compiled once in a process.

    Raises ExportError where it does not compile or takes more shared memory than TensorRT passes.
    """
    try:
        built = compiler(variant, target)
    except (ValueError, RuntimeError) as error:
        raise ExportError(f"{variant.name} could not be compiled for {target}: {error}") from error
    if built.resources.shared > MAX_SHARED:
        raise ExportError(
            f"{variant.name} takes {built.resources.shared} bytes of shared memory, more than the {MAX_SHARED} that a "
            "plugin may take. Choose smaller tiles in kernels/launch.py."
        )
    return built


def digest(builds: Iterable[aot.Compiled]) -> str:
    """Twelve hexadecimal digits that stand for the PTX texts of these builds."""
    texts = sorted(built.ptx or "" for built in builds)
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:12]
