"""The probes of `tempme-doctor`, each in a process of its own: it loads one part for real and says what it saw.

A probe returns {"version": text or None, "notes": [text, ...]} and perhaps more; whatever it raises is the problem. The
probes of a GPU have not been run with one yet.
"""

import importlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

Report = dict[str, Any]

# An ONNX file of 63 bytes: y = x + x, float32 [2], opset 18.
DOUBLE = (
    b'\x08\x08:5\n\x0e\n\x01x\n\x01x\x12\x01y"\x03Add\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x02'
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x02B\x04\n\x00\x10\x12"
)
_REMOTE = "AzureExecutionProvider"  # calls a service; nothing on this machine
_DECODERS = ("h264", "hevc", "vp9", "av1")


class ProbeError(RuntimeError):
    """A part is there and does not do what it is for."""


def _version(module: Any) -> str | None:
    found = getattr(module, "__version__", None)
    return None if found is None else str(found)


def _finding(error: Exception) -> str:
    """The finding of one of the package's errors, without its advice: the doctor has its own."""
    return str(error).partition(". ")[0]


def _check_double(found: Any) -> None:
    if list(found) != [3.0, -5.0]:
        raise ProbeError(f"computed {list(found)} for 2 * [1.5, -2.5], expected [3.0, -5.0]")


def probe_module(name: str) -> Report:
    """Import a package that has nothing more to show."""
    return {"version": _version(importlib.import_module(name)), "notes": []}


def probe_torch() -> Report:
    """Import torch and multiply on the CPU; `cuda` is the CUDA version it was built for, or None."""
    import torch

    product = torch.ones(2, 3) @ torch.ones(3, 2)
    if product.tolist() != [[3.0, 3.0], [3.0, 3.0]]:
        raise ProbeError(f"a product of ones on the CPU is {product.tolist()}")
    cuda = torch.version.cuda
    build = f"built for CUDA {cuda}" if cuda else "built for the CPU alone"
    return {
        "version": torch.__version__,
        "notes": [build, f"CPU code {torch.backends.cpu.get_cpu_capability()}"],
        "cuda": cuda,
    }


def probe_torch_gpu() -> Report:
    """Compute on every GPU with torch."""
    import torch

    if torch.version.cuda is None:
        raise ProbeError("this torch was built for the CPU alone")
    torch.cuda.init()
    notes = []
    for index in range(torch.cuda.device_count()):
        ones = torch.ones(16, 16, device=f"cuda:{index}")
        if (ones @ ones).sum().item() != 16**3:
            raise ProbeError(f"a product of ones on cuda:{index} is wrong")
        free, total = torch.cuda.mem_get_info(index)
        notes.append(f"cuda:{index} has {free / 1e9:.0f} of {total / 1e9:.0f} GB free")
    if not notes:
        raise ProbeError("torch sees no GPU")
    return {"version": None, "notes": notes}


def probe_kernels() -> Report:
    """Compile one fused kernel on the GPU, run it and compare with its dense form in float64."""
    import torch

    from tempme_export.encoder import ops

    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 17, 64), torch.rand(64), torch.rand(64)
    expected = ops.layer_norm(x.double(), weight, bias)
    found = ops.layer_norm(*(tensor.cuda() for tensor in (x, weight, bias))).cpu()
    error = (found.double() - expected).abs().max().item()
    if not error < 1e-4:
        raise ProbeError(f"a fused LayerNorm is {error:.2g} off its definition")
    return {"version": None, "notes": [f"a fused LayerNorm is within {error:.1g} of its definition"]}


def probe_driver() -> Report:
    """Ask the NVIDIA driver for its GPUs: `gpus`, `release` and `cuda`, the newest CUDA version that it runs."""
    from tempme_export.errors import BackendError
    from tempme_export.runtime.nvidia import find_gpu

    try:
        gpus = [find_gpu("cuda:0")]
    except BackendError as error:
        raise ProbeError(_finding(error)) from error
    while True:
        try:
            gpus.append(find_gpu(f"cuda:{len(gpus)}"))
        except BackendError:
            break
    release, cuda = gpus[0].driver or None, ".".join(map(str, gpus[0].cuda))
    return {
        "version": release,
        "notes": [f"runs CUDA up to {cuda}"],
        "cuda": cuda,
        "gpus": [asdict(gpu) | {"capability": gpu.capability} for gpu in gpus],
    }


def probe_onnxruntime() -> Report:
    """Import ONNX Runtime; `providers` are those it was built with, which says nothing about whether they load."""
    import onnxruntime

    providers = [name for name in onnxruntime.get_available_providers() if name != _REMOTE]
    return {"version": _version(onnxruntime), "notes": [], "providers": providers}


def probe_provider(name: str) -> Report:
    """Run a graph of one node on one execution provider; ONNX Runtime falls back to another without a word."""
    import numpy as np
    import onnxruntime

    session = onnxruntime.InferenceSession(DOUBLE, providers=[name])
    if name not in session.get_providers():
        raise ProbeError(f"does not load: ONNX Runtime fell back to {', '.join(session.get_providers())}")
    (found,) = session.run(None, {"x": np.array([1.5, -2.5], np.float32)})
    _check_double(found)
    return {"version": None, "notes": []}


def probe_provider_after_torch(name: str) -> Report:
    """The same where torch has loaded its CUDA libraries before, as in every command of this package."""
    importlib.import_module("torch")
    return probe_provider(name) | {"notes": ["with the CUDA libraries that torch has loaded"]}


def probe_openvino() -> Report:
    """Compile and run a graph of one node on the CPU."""
    import numpy as np

    from tempme_export.runtime.openvino import without_telemetry

    with without_telemetry():
        import openvino

    core = openvino.Core()
    compiled = core.compile_model(core.read_model(DOUBLE), "CPU")
    _check_double(compiled({"x": np.array([1.5, -2.5], np.float32)})[0])
    version = (_version(openvino) or "").partition("-")[0]
    return {"version": version or None, "notes": [f"devices {', '.join(core.available_devices)}"]}


def probe_av() -> Report:
    """Import PyAV and look for the decoders of the usual videos."""
    import av

    absent = [name for name in _DECODERS if name not in av.codecs_available]
    notes = [f"no decoder for {', '.join(absent)}"] if absent else [f"decodes {', '.join(_DECODERS)}"]
    return {"version": _version(av), "notes": notes}


def probe_tensorrt(with_builder: str) -> Report:
    """Load TensorRT's bindings and libraries; with a GPU ("yes") also see whether that will do, and start the
    builder."""
    from tempme_export.errors import BackendError
    from tempme_export.exporters.trt.requirements import unfit_for_engine
    from tempme_export.runtime.nvidia import find_gpu
    from tempme_export.runtime.tensorrt_package import SUPPORTED, import_plugins, import_tensorrt, offers_tactics

    try:
        trt = import_tensorrt()
    except BackendError as error:
        raise ProbeError(_finding(error)) from error
    import_plugins()
    if with_builder == "yes":
        unfit = list(unfit_for_engine(find_gpu(), str(trt.__version__)))
        if unfit:
            raise ProbeError(" ".join(unfit))
        if not trt.Builder(trt.Logger(trt.Logger.ERROR)):
            raise ProbeError("its builder does not start")
    notes = ["bindings and libraries"]
    if not offers_tactics(str(trt.__version__)):
        notes.append(f"times one launch of each plugin; {SUPPORTED}")
    return {"version": _version(trt), "notes": notes}


def _compile(compiler: str, language: str, source: str, *flags: str) -> Report:
    path = shutil.which(compiler)
    if path is None:
        raise ProbeError(f"{compiler} is not installed")
    with tempfile.TemporaryDirectory() as folder:
        command = [path, "-shared", "-fPIC", *flags, "-x", language, "-", "-o", str(Path(folder) / "probe.so")]
        done = subprocess.run(command, input=source, capture_output=True, text=True, check=False)
    if done.returncode:
        said = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip())
        raise ProbeError(f"{compiler} does not compile here: {said}")
    return {"version": None, "notes": [path]}


def probe_cxx() -> Report:
    """Compile C++ with the compiler that torch takes for a package."""
    return _compile(
        os.environ.get("CXX", "g++"), "c++", "#include <vector>\nint probe(std::vector<int> v) { return v[0]; }"
    )


def probe_cc() -> Report:
    """Compile C against Python's headers, as Triton does before it launches its first kernel."""
    compiler = os.environ.get("CC") or ("gcc" if shutil.which("gcc") else "clang")
    include = f"-I{sysconfig.get_path('include')}"
    return _compile(compiler, "c", "#include <Python.h>\nint probe(void) { return 0; }", include)


PROBES: dict[str, Callable[..., Report]] = {
    "module": probe_module,
    "torch": probe_torch,
    "torch_gpu": probe_torch_gpu,
    "kernels": probe_kernels,
    "driver": probe_driver,
    "onnxruntime": probe_onnxruntime,
    "provider": probe_provider,
    "provider_after_torch": probe_provider_after_torch,
    "openvino": probe_openvino,
    "av": probe_av,
    "tensorrt": probe_tensorrt,
    "cxx": probe_cxx,
    "cc": probe_cc,
}


def _asked(name: str, arguments: list[str]) -> Report:
    try:
        return {"report": PROBES[name](*arguments)}
    except ModuleNotFoundError as error:
        return {"problem": f"needs the module {error.name}, which is not installed"}
    except Exception as error:  # whatever a foreign library raises is the finding
        said = str(error).strip() or type(error).__name__
        return {"problem": said if isinstance(error, ProbeError) else f"{type(error).__name__}: {said}"}


def main() -> None:
    """`NAME ARGUMENT ...` -> one JSON document on stdout, which no library can write between: theirs goes to stderr."""
    from tempme_export.files import name_temporary_folder

    name_temporary_folder()
    answer = os.dup(1)
    os.dup2(2, 1)
    found = json.dumps(_asked(sys.argv[1], sys.argv[2:]))
    with os.fdopen(answer, "w") as stream:
        stream.write(found)
    os._exit(0)  # nothing here needs a library's farewell, and some of them crash in it


if __name__ == "__main__":
    main()
