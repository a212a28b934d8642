"""Compiling the library of operators with the system's C++ compiler. Nothing but the C library is linked to it."""

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
COMPILER = "g++"

# Products are never contracted with sums, so that every level computes the same bits.
_FLAGS = (
    *("-std=c++17", "-fPIC", "-fvisibility=hidden", "-fno-exceptions", "-fno-rtti", "-Wno-psabi"),
    *("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"),
)
_AVX2 = ("-mavx2",)
_LEVELS = {"any": (), "avx2": _AVX2, "avx512": (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl")}


def find_compiler(environment: Mapping[str, str] = os.environ) -> str | None:
    """Path of the compiler that CXX names, else of g++; None where it is not there."""
    return shutil.which(environment.get("CXX") or COMPILER, path=environment.get("PATH"))


def compiler_version(compiler: str) -> str:
    """First line of what it says of itself."""
    said = subprocess.run([compiler, "--version"], capture_output=True, text=True, errors="replace", check=True).stdout
    return said.partition("\n")[0].strip()


def levels(machine: str) -> dict[str, tuple[str, ...]]:
    """Levels of instructions that are compiled for an architecture, the lowest first: name -> the flags it takes."""
    return _LEVELS if machine in ("x86_64", "AMD64") else {"any": ()}


def commands(compiler: str, target: Path, folder: Path, flags: Sequence[str], machine: str) -> Iterator[list[str]]:
    """The compiler's calls, in order: every unit to an object in `folder`, and all of them to `target`."""
    chosen = levels(machine)
    units = [("level.cpp", name, ("-O3", f"-DTEMPME_LEVEL={name}", *extra)) for name, extra in chosen.items()]
    units += [("core.cpp", "core", ("-O2", f"-DTEMPME_LEVELS={len(chosen)}")), ("ort.cpp", "ort", ("-O2",))]
    objects = []
    for source, name, own in units:
        objects.append(str(folder / f"{name}.o"))
        yield [compiler, *_FLAGS, *own, *flags, "-c", str(FOLDER / source), "-o", objects[-1]]
    yield [compiler, *flags, "-shared", "-Wl,--as-needed", *objects, "-o", str(target)]


def build(compiler: str, target: Path, folder: Path, flags: Sequence[str] = (), machine: str | None = None) -> None:
    """Compile the library to `target`.

    folder  for objects, which stay there
    flags   further ones for every call, such as a sanitizer's
    Raises CalledProcessError, with what the compiler said, where it refuses.
    """
    for command in commands(compiler, target, folder, flags, machine or platform.machine()):
        subprocess.run(command, capture_output=True, text=True, errors="replace", check=True)
