"""The installed TensorRT: whether it imports, whether its version can be used, which CUDA it was made for.

Quick deployable plugins built ahead of time came with 10.9. Up to 10.13 the bindings hand TensorRT a kernel name whose
memory is gone, 10.14 builds none, and before 11.1 such a plugin may offer no tactics.
"""

import importlib
import importlib.metadata
import os
import re
import sys
from typing import Any

from tempme_export.errors import BackendError

SUPPORTED = ">=10.15, better >=11.1"
_MINIMUM, _RECOMMENDED = (10, 15), (11, 1)
_USABLE = ("Builder", "OnnxParser", "Runtime", "__version__")
_LIBRARIES = re.compile(r"tensorrt[-_]cu(\d+)[-_](?:libs|bindings)")


def install_command(cuda: int | None = None) -> str:
    """Command that installs a usable TensorRT; `cuda` is the driver's newest major version."""
    package = "tensorrt" if cuda is None else f"tensorrt-cu{min(max(cuda, 12), 13)}"
    return f"pip install '{package}>=10.15'"


def parse_version(text: str) -> tuple[int, ...]:
    """The leading numbers of a version: 10.13.3.9.post1 -> (10, 13, 3, 9)."""
    found = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(map(int, found[0].split("."))) if found else ()


def check_version(version: str) -> None:
    """Raise BackendError for a TensorRT that cannot hold the plugins."""
    if parse_version(version)[:2] < _MINIMUM:
        raise BackendError(
            f"TensorRT {version} is installed, which has no plugins built ahead of time or breaks them, expected "
            f"{SUPPORTED}. Run: {install_command()}"
        )


def offers_tactics(version: str) -> bool:
    """True where a plugin built ahead of time may offer several launch configurations, of which the fastest is kept."""
    return parse_version(version)[:2] >= _RECOMMENDED


def made_for_cuda() -> int | None:
    """The CUDA major version that the installed TensorRT packages are named after; None where none says."""
    names = (distribution.metadata["Name"] or "" for distribution in importlib.metadata.distributions())
    found = {int(match[1]) for name in names if (match := _LIBRARIES.fullmatch(name.lower()))}
    return max(found) if found else None


def start(factory: Any, logger: Any) -> Any:
    """One of TensorRT's own objects. Raises BackendError where it gives none, which is how CUDA's failure shows."""
    try:
        return factory(logger)
    except (TypeError, RuntimeError) as error:
        raise BackendError(
            f"TensorRT's {factory.__name__} does not start: {error}. Run nvidia-smi to see whether the GPU is well."
        ) from error


def import_plugins() -> Any:
    """The package `tensorrt.plugin`. Raises ImportError without it.

    It warns on standard output that it is experimental, where data belongs; so that goes to standard error.
    """
    if sys.stdout is None:  # closed
        return importlib.import_module("tensorrt.plugin")
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        return importlib.import_module("tensorrt.plugin")
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def import_tensorrt() -> Any:
    """The tensorrt package. Raises BackendError where it is missing, does not load or has a version of no use."""
    try:
        trt = importlib.import_module("tensorrt")
    except ModuleNotFoundError as error:
        raise BackendError(f"TensorRT is not installed (no module {error.name}). Run: {install_command()}") from error
    except (ImportError, OSError, RuntimeError) as error:  # a loader's own, a subprocess of NVIDIA's installer
        raise BackendError(
            f"TensorRT's Python bindings are installed and its libraries do not load: {error}. Run: {install_command()}"
        ) from error
    absent = [name for name in _USABLE if not hasattr(trt, name)]
    if absent:
        raise BackendError(
            f"a package named tensorrt is installed that has no {', '.join(absent)}: a runtime alone, or what an "
            f"uninstall left. Run: {install_command()}"
        )
    check_version(str(trt.__version__))
    return trt
