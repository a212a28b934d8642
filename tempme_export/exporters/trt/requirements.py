"""Requirements of an engine: its precision and workspace, a GPU and its driver, TensorRT, Triton, torch with CUDA.

Imports nothing of weight but TensorRT itself, where it is installed.
"""

import importlib.util
import math
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from tempme_export.errors import BackendError, UsageError
from tempme_export.runtime.nvidia import Gpu, engine_device, find_gpu
from tempme_export.runtime.probing import ProbeError, Report, report, version_of
from tempme_export.runtime.tensorrt_package import (
    SUPPORTED,
    import_plugins,
    import_tensorrt,
    install_command,
    made_for_cuda,
    offers_tactics,
    parse_version,
)

PRECISIONS = ("fp32", "fp16", "bf16")
_LEAST_COMPUTE = (8, 0)
_BLACKWELL = (10, 0)
Missing = Callable[[str], tuple[str, ...]]
"""Device -> what lacks there to build an engine, each with what to do."""

_ONNX_STAYS = "Leave out --trt to export what runs anywhere."
_BUNDLE_STAYS = "The bundle keeps the engine that it has."
_DRIVERS = {(12, 0): 525, (12, 2): 535, (12, 8): 570, (13, 0): 580}  # the first that run this CUDA
_NO_CUDA = re.compile(r"^cuda\b.*=\s*None\s*$", re.MULTILINE)


class EngineHost:
    """This machine, as far as an engine depends on it. Imports TensorRT at most."""

    def gpu(self, device: str) -> Gpu:
        """Raises BackendError as `find_gpu`."""
        return find_gpu(engine_device(device))

    def tensorrt(self) -> str:
        """Its version. Raises BackendError as `import_tensorrt`."""
        return str(import_tensorrt().__version__)

    def made_for(self) -> int | None:
        """As `made_for_cuda`."""
        return made_for_cuda()

    def package(self, name: str) -> Path | None:
        """The file that importing it would load; None where it is not installed."""
        spec = importlib.util.find_spec(name)
        return None if spec is None or spec.origin is None else Path(spec.origin)


_HERE = EngineHost()


def check_options(precision: str, workspace_gib: float | None = None) -> None:
    """Raise UsageError for what no engine can be built with."""
    if precision not in PRECISIONS:
        raise UsageError(
            f"--precision {precision} and --trt do not go together: engines are built, and proven, in "
            f"{', '.join(PRECISIONS)}."
        )
    check_workspace(workspace_gib)


def check_workspace(workspace_gib: float | None) -> None:
    """Raise UsageError for a size that is none."""
    if workspace_gib is not None and not 0 < workspace_gib < math.inf:
        raise UsageError(f"a workspace of {workspace_gib:g} GiB was asked for, expected more than 0.")


def check_builder(device: str, otherwise: str = _ONNX_STAYS, missing: Missing | None = None) -> None:
    """Raise BackendError naming everything that is missing here to build an engine, and how to get it.

    Imports TensorRT where it is installed, and nothing else of weight. A device of "cpu" stands for the first GPU.

    otherwise  what can be done without an engine
    missing    what is asked for what is missing; None: `missing_for_engine`
    """
    refuse((missing or missing_for_engine)(device), otherwise)


def check_rebuild(device: str, workspace_gib: float | None, missing: Missing | None = None) -> None:
    """Raises as `check_workspace` and `check_builder`."""
    check_workspace(workspace_gib)
    check_builder(device, _BUNDLE_STAYS, missing)


def probe(gpu: str) -> Report:
    """Load TensorRT's bindings and libraries; with a GPU ("yes") also see whether that will do, and start the
    builder."""
    trt = import_tensorrt()
    import_plugins()
    if gpu == "yes":
        unfit = list(unfit_for_engine(find_gpu(), str(trt.__version__)))
        if unfit:
            raise ProbeError(" ".join(unfit))
        if not trt.Builder(trt.Logger(trt.Logger.ERROR)):
            raise ProbeError("its builder does not start")
    one_launch = () if offers_tactics(str(trt.__version__)) else (f"times one launch of each plugin; {SUPPORTED}",)
    return report(version_of(trt), "bindings and libraries", *one_launch)


def refuse(missing: tuple[str, ...], otherwise: str = _ONNX_STAYS) -> None:
    """Raise BackendError where something is missing."""
    if missing:
        listed = "".join(f"\n  - {one}" for one in missing)
        raise BackendError(f"no engine can be built here. {otherwise}{listed}")


def missing_for_engine(device: str, machine: EngineHost = _HERE) -> tuple[str, ...]:
    """Errors that `check_builder` would raise, in words; each with what to do."""
    missing, gpu, version = [], None, ""
    try:
        gpu = machine.gpu(device)
    except BackendError as error:
        missing.append(str(error))
    try:
        version = machine.tensorrt()
    except BackendError as error:
        fitting = "" if gpu is None or gpu.cuda >= (13, 0) else f" (for this driver: {install_command(gpu.cuda[0])})"
        missing.append(f"{error}{fitting}")
    if gpu is not None:
        missing += unfit_for_engine(gpu, version, machine)
    if machine.package("triton") is None:
        missing.append("Triton, which compiles the plugins, is not installed. Run: pip install triton")
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        missing.append("TRITON_INTERPRET is set, and interpreted kernels cannot be compiled. Unset it.")
    if _lacks_cuda(machine.package("torch")):
        missing.append(
            "torch is installed without CUDA, and the engine gets its memory from it. Install torch from PyPI, or from "
            "an index of its CUDA builds."
        )
    return tuple(missing)


def _lacks_cuda(torch: Path | None) -> bool:
    """True where torch's version file says that it is built without CUDA; importing torch takes a second."""
    if torch is None:
        return False
    version = torch.with_name("version.py")
    return version.is_file() and _NO_CUDA.search(version.read_text()) is not None


def unfit_for_engine(gpu: Gpu, version: str, machine: EngineHost = _HERE) -> Iterator[str]:
    """Requirements that the GPU or its driver is too old for; `version` is TensorRT's, empty where there is none."""
    if gpu.compute < _LEAST_COMPUTE:
        yield f"{gpu.name} has compute capability {gpu.compute[0]}.{gpu.compute[1]}; the plugins need 8.0 or newer."
    if not version:
        return
    made_for = machine.made_for() or 12
    needed = (made_for, 0)
    if made_for == 12:  # 535 and newer for TensorRT 11; PTX of Blackwell is of CUDA 12.8
        needed = (12, 8) if gpu.compute >= _BLACKWELL else (12, 2) if parse_version(version) >= (11,) else (12, 0)
    if gpu.cuda < needed:
        release = _DRIVERS.get(needed)
        driver = f"driver {release} or newer" if release else "a newer driver"
        other = f", or a TensorRT for CUDA 12: {install_command(12)}" if made_for > 12 else ""
        yield (
            f"the NVIDIA driver {gpu.driver or 'here'} runs CUDA {gpu.cuda[0]}.{gpu.cuda[1]}, and TensorRT {version} "
            f"needs {needed[0]}.{needed[1]} on {gpu.name}. Install {driver}{other}."
        )
