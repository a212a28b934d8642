"""The probes of `tempme-doctor`, each in a process of its own: it loads one part for real and says what it saw.

Whatever a probe raises is the problem. Runtimes have theirs in modules that the registry names. The probes of a GPU
have not been run with one yet.
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
from typing import Any, cast

from tempme_export.artifacts import registry
from tempme_export.errors import BackendError
from tempme_export.runtime.probing import ProbeError, Report, report, version_of

_DECODERS = ("h264", "hevc", "vp9", "av1")


def _finding(error: Exception) -> str:
    """The finding of one of the package's errors, without its advice: the doctor has its own."""
    return str(error).partition(". ")[0]


def probe_module(name: str) -> Report:
    """Import a package that has nothing more to show."""
    return report(version_of(importlib.import_module(name)))


def probe_torch() -> Report:
    """Import torch and multiply on the CPU; `cuda` is the CUDA version it was built for, or None."""
    import torch

    product = torch.ones(2, 3) @ torch.ones(3, 2)
    if product.tolist() != [[3.0, 3.0], [3.0, 3.0]]:
        raise ProbeError(f"a product of ones on the CPU is {product.tolist()}")
    cuda = torch.version.cuda
    build = f"built for CUDA {cuda}" if cuda else "built for the CPU alone"
    return report(torch.__version__, build, f"CPU code {torch.backends.cpu.get_cpu_capability()}", cuda=cuda)


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
    return report(None, *notes)


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
    return report(None, f"a fused LayerNorm is within {error:.1g} of its definition")


def probe_driver() -> Report:
    """Ask the NVIDIA driver for its GPUs: `gpus`, `release` and `cuda`, the newest CUDA version that it runs."""
    from tempme_export.runtime.nvidia import find_gpu

    gpus = [find_gpu("cuda:0")]
    while True:
        try:
            gpus.append(find_gpu(f"cuda:{len(gpus)}"))
        except BackendError:
            break
    cuda = ".".join(map(str, gpus[0].cuda))
    found = [asdict(gpu) | {"capability": gpu.capability} for gpu in gpus]
    return report(gpus[0].driver or None, f"runs CUDA up to {cuda}", cuda=cuda, gpus=found)


def _runtime(name: str) -> Any:
    """The module that probes a runtime of the registry."""
    return importlib.import_module(next(one.probe for one in registry.libraries() if one.name == name))


def probe_provider(runtime: str, name: str) -> Report:
    """Run a graph of one node on one execution provider of a runtime that has several."""
    return cast(Report, _runtime(runtime).probe_provider(name))


def probe_provider_after_torch(runtime: str, name: str) -> Report:
    """The same where torch has loaded its CUDA libraries before, as in every command of this package."""
    importlib.import_module("torch")
    return probe_provider(runtime, name) | {"notes": ["with the CUDA libraries that torch has loaded"]}


def probe_av() -> Report:
    """Import PyAV and look for the decoders of the usual videos."""
    import av

    absent = [name for name in _DECODERS if name not in av.codecs_available]
    note = f"no decoder for {', '.join(absent)}" if absent else f"decodes {', '.join(_DECODERS)}"
    return report(version_of(av), note)


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
    return report(None, path)


def probe_cxx() -> Report:
    """Compile C++ with the compiler that torch takes for a package."""
    return _compile(
        os.environ.get("CXX") or "g++", "c++", "#include <vector>\nint probe(std::vector<int> v) { return v[0]; }"
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
    "provider": probe_provider,
    "provider_after_torch": probe_provider_after_torch,
    "av": probe_av,
    "cxx": probe_cxx,
    "cc": probe_cc,
}


def _asked(name: str, arguments: list[str]) -> Report:
    try:
        probe = PROBES.get(name) or _runtime(name).probe
        return {"report": probe(*arguments)}
    except ModuleNotFoundError as error:
        return {"problem": f"needs the module {error.name}, which is not installed"}
    except Exception as error:  # whatever a foreign library raises is the finding
        said = str(error).strip() or type(error).__name__
        if isinstance(error, BackendError):
            said = _finding(error)
        return {"problem": said if isinstance(error, ProbeError | BackendError) else f"{type(error).__name__}: {said}"}


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
