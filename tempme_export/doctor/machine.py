"""The parts of a machine, found by loading each for real, several at a time. Nothing here raises for what it finds."""

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tempme_export.artifacts import registry
from tempme_export.doctor.process import TIME_LIMIT, ask_probe
from tempme_export.files import name_temporary_folder
from tempme_export.runtime.processor import Int8Products, int8_products
from tempme_export.runtime.tensorrt_package import parse_version

PACKAGE = "tempme-export"
CUDA_PROVIDER = "CUDAExecutionProvider"


@dataclass(frozen=True)
class Host:
    """The machine as Python sees it; `cores` are those this process may use, `memory` is in bytes, `int8` is how the
    processor sums products of 8 bits."""

    python: str
    system: str
    cores: int
    memory: int | None
    package: str | None
    int8: Int8Products = "unknown"


@dataclass(frozen=True)
class Disk:
    """Free bytes where a folder lies, None where that cannot be read."""

    path: str
    free: int | None


@dataclass(frozen=True)
class ListedGpu:
    """One GPU: its name and generation, such as sm_90."""

    name: str
    capability: str


@dataclass(frozen=True)
class Part:
    """One probed part.

    version  what it says itself, or its installed version; None where it has none
    notes    what it can do
    problem  why it cannot be used; None where it can
    """

    name: str
    version: str | None = None
    notes: tuple[str, ...] = ()
    problem: str | None = None


@dataclass(frozen=True)
class Machine:
    """All that was found. `parts` is in the order of PARTS; one that makes no sense without another is left out."""

    host: Host
    disks: tuple[Disk, ...]
    gpus: tuple[ListedGpu, ...]
    parts: tuple[Part, ...]

    def part(self, name: str) -> Part | None:
        """A part by name; None where it was not probed."""
        return next((part for part in self.parts if part.name == name), None)


def floors(requirements: Iterable[str]) -> dict[str, str]:
    """Distribution -> its `>=` version, of requirement lines such as `torch>=2.11; extra == "gpu"`."""
    lowest = {}
    for line in requirements:
        name = re.match(r"[\w.-]+", line)
        floor = re.search(r">=\s*([\d.]+)", line.partition(";")[0])
        if name and floor:
            lowest[name[0].lower().replace("-", "_")] = floor[1]
    return lowest


def own_floors() -> dict[str, str]:
    """Lowest versions that this package asks for; none where it is not installed."""
    try:
        return floors(importlib.metadata.requires(PACKAGE) or ())
    except importlib.metadata.PackageNotFoundError:
        return {}


def installed_version(*distributions: str) -> str | None:
    """The version of the first of these that is installed."""
    for name in distributions:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


Ask = Callable[..., dict[str, Any]]


@dataclass(frozen=True)
class Source:
    """Source of answers: `ask` runs a probe, `has` tells if a module is there, `floors` are the lowest versions."""

    ask: Ask
    has: Callable[[str], bool]
    floors: Mapping[str, str]


def _part(name: str, answer: Mapping[str, Any], version: str | None = None, floor: str | None = None) -> Part:
    if "problem" in answer:
        return Part(name, version, (), str(answer["problem"]))
    report = answer["report"]
    version = report["version"] or version
    problem = None
    if floor and version and parse_version(version) < parse_version(floor):
        problem = f"version {version} is installed, {floor} or newer is needed"
    return Part(name, version, tuple(report["notes"]), problem)


@dataclass(frozen=True)
class _Library:
    """A Python package: where it is imported from, the distributions it may come with, its probe."""

    name: str
    module: str
    distributions: tuple[str, ...]
    probe: tuple[str, ...]


def _plain(name: str, module: str | None = None) -> _Library:
    return _Library(name, module or name, (name,), ("module", module or name))


# The slowest first: there may be fewer cores than probes.
_SLOW = (
    _plain("open_clip_torch", "open_clip"),
    _Library("torch", "torch", ("torch",), ("torch",)),
    _plain("onnxscript"),
)
_QUICK = (
    _plain("matplotlib"),
    _plain("polars"),
    _plain("onnx"),
    _plain("triton"),
    _Library("av", "av", ("av",), ("av",)),
    _plain("numpy"),
    _plain("safetensors"),
    _plain("pillow", "PIL.Image"),
    _plain("tokenizers"),
    _plain("ftfy"),
)
_COMPILERS = ("triton", "C compiler")  # what a fused kernel takes beside a GPU
_TOOLS = {"C++ compiler": "cxx", "C compiler": "cc"}


def _runtimes(on_gpu: bool) -> tuple[_Library, ...]:
    """The packages that backends run on: those whose probe hangs on a GPU, or the others."""
    found = (one for one in registry.libraries() if one.on_gpu == on_gpu)
    return tuple(_Library(one.name, one.name, one.distributions, (one.name,)) for one in found)


def is_there(module: str) -> bool:
    """True for a package that can be found, without loading it."""
    try:
        return importlib.util.find_spec(module.partition(".")[0]) is not None
    except (ImportError, ValueError):  # a module that was replaced or half removed
        return False


def probe_library(library: _Library, source: Source, *more: str) -> tuple[Part, Mapping[str, Any]]:
    """One package: absent, broken, too old or working; with the rest of what its probe reported."""
    if not source.has(library.module):
        return Part(library.name, problem="is not installed"), {}
    answer = source.ask(*library.probe, *more)
    names = (name.replace("-", "_") for name in library.distributions)
    floor = next((source.floors[name] for name in names if name in source.floors), None)
    return _part(library.name, answer, installed_version(*library.distributions), floor), answer.get("report", {})


def probe_host() -> Host:
    """Python, system, cores and memory."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        memory = None
    system = f"{platform.system()} {platform.machine()}"
    return Host(platform.python_version(), system, cores, memory, installed_version(PACKAGE), int8_products())


def probe_disk(path: Path) -> Disk:
    """Free space where `path` lies."""
    try:
        return Disk(str(path), shutil.disk_usage(path).free)
    except OSError:
        return Disk(str(path), None)


def probe_disks() -> tuple[Disk, ...]:
    """The folder in which a bundle would be written, and the one for temporary files of compilers."""
    try:
        here = Path.cwd()
    except OSError:  # the folder was removed
        here = Path.home()
    name_temporary_folder()
    return tuple(map(probe_disk, dict.fromkeys((here, Path(tempfile.gettempdir())))))


def _provider(runtime: str, name: str, ask: Ask) -> Part:
    """One execution provider: alone, and where that fails as in a process that has imported torch."""
    alone = _part(name, ask("provider", runtime, name))
    if alone.problem is None or name == "CPUExecutionProvider":
        return alone
    after = _part(name, ask("provider_after_torch", runtime, name))
    return after if after.problem is None else alone


def _providers(runtime: Part, report: Mapping[str, Any], ask: Ask, pool: ThreadPoolExecutor) -> list[Part]:
    """Every provider that a runtime was built with, if it has any; CUDA also where it was not."""
    built = list(report.get("providers", ()))
    if runtime.problem is not None or not built:
        return []
    parts = list(pool.map(lambda name: _provider(runtime.name, name, ask), built))
    if CUDA_PROVIDER not in built:
        parts.append(Part(CUDA_PROVIDER, problem=f"this {runtime.name} was built without it"))
    return parts


def _gpu_parts(found: Mapping[str, Part], ask: Ask) -> list[Part]:
    """torch on the GPU, then a fused kernel; each only where what it stands on works."""
    if any(found[name].problem for name in ("driver", "torch")):
        return []
    on_gpu = _part("torch on GPU", ask("torch_gpu"))
    if on_gpu.problem or any(found[name].problem for name in _COMPILERS):
        return [on_gpu]
    return [on_gpu, _part("fused kernels", ask("kernels"))]


def this_machine(limit: float = TIME_LIMIT) -> Source:
    """Every probe in a process of its own, for at most `limit` seconds."""
    return Source(partial(ask_probe, limit=limit), is_there, own_floors())


def examine(source: Source | None = None) -> Machine:
    """Probe everything, several parts at a time; None: on this machine."""
    source, host = source or this_machine(), probe_host()
    asked = source.ask

    def library(one: _Library, *more: str) -> tuple[Part, Mapping[str, Any]]:
        return probe_library(one, source, *more)

    with ThreadPoolExecutor(max(2, host.cores)) as pool:
        driver_answer = pool.submit(asked, "driver")
        asked_of = (*_SLOW, *_runtimes(on_gpu=False), *_QUICK)
        libraries = {one.name: pool.submit(library, one) for one in asked_of}
        tools = {name: pool.submit(asked, probe) for name, probe in _TOOLS.items()}
        driver = driver_answer.result()
        gpu = "yes" if "report" in driver else "no"
        on_gpu = [pool.submit(library, one, gpu) for one in _runtimes(on_gpu=True)]
        reports = [libraries[one.name].result() for one in _runtimes(on_gpu=False)]
        providers = [part for runtime, report in reports for part in _providers(runtime, report, asked, pool)]
        found = {"driver": _part("driver", driver)}
        found |= {name: future.result()[0] for name, future in libraries.items()}
        found |= {name: _part(name, future.result()) for name, future in tools.items()}
        parts = [*found.values(), *_gpu_parts(found, asked), *providers, *(one.result()[0] for one in on_gpu)]
    gpus = driver.get("report", {}).get("gpus", ())
    return Machine(host, probe_disks(), tuple(ListedGpu(gpu["name"], gpu["capability"]) for gpu in gpus), tuple(parts))
