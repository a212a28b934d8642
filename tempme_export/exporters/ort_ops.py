"""Our operators as a library for ONNX Runtime: compiled with this machine's C++ compiler, for its architecture.

It holds the nodes of `video.plugin.onnx` and knows no weights. ONNX Runtime takes them in place of the function bodies
in that file, which stays as it is; it needs nothing of this package.
"""

import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tempme_export.artifacts.artifact import Artifact, Making, Spec
from tempme_export.encoder.recipe import Recipe
from tempme_export.errors import BackendError, ExportError, UsageError
from tempme_export.exporters.plugin_nodes import plugin_nodes
from tempme_export.files import file_sha256
from tempme_export.kernels.native.build import COMPILER, compiler_version, find_compiler
from tempme_export.kernels.native.build import build as compile_library
from tempme_export.parity.tolerance import INT8

_BYTES = 2**20
_MESSAGE_LINES = 4
_PRECISIONS = ("fp32", "fp16")


def _compiler() -> str:
    """Raises BackendError where there is none."""
    found = find_compiler()
    if found is None:
        named = os.environ.get("CXX")
        raise BackendError(
            f"C++ compiler: found {f'CXX={named}, which is no program' if named else 'none'}, expected {COMPILER} to "
            "compile our operators for ONNX Runtime. Run: sudo apt install g++, or name one in the environment "
            "variable CXX."
        )
    return found


def check(spec: Spec) -> None:
    """Raises UsageError for what ONNX Runtime does not run on a processor, BackendError without a compiler."""
    if spec.precision not in _PRECISIONS:
        why = "are quantised without nodes of ours" if spec.precision == INT8 else "have no kernels there"
        raise UsageError(
            f"--ort-ops is for {' and '.join(_PRECISIONS)} in ONNX Runtime on processors, found --precision "
            f"{spec.precision}: such graphs {why}. Leave one of them out."
        )
    if spec.device != "cpu":
        raise UsageError(
            f"--ort-ops is for processors, found --device {spec.device}. Use --device cpu, or --trt for a GPU."
        )
    if sys.platform != "linux":
        raise BackendError(
            f"--ort-ops is compiled on Linux alone, found {sys.platform}. Leave it out, or export there."
        )
    _compiler()


def check_recipe(recipe: Recipe, spec: Spec) -> None:
    """Raises UsageError for a profile that never merges."""
    if not plugin_nodes(recipe):
        raise UsageError(
            f"profile {recipe.profile.name} merges no tokens, so its graph has no operator of ours. Leave out "
            "--ort-ops, or choose a --profile that merges."
        )


def files(artifact: Artifact, recipe: Recipe, spec: Spec) -> list[str]:
    """The library."""
    return [artifact.file]


def size(artifact: Artifact, recipe: Recipe, spec: Spec) -> int:
    """Its code."""
    return _BYTES


def scratch(artifact: Artifact, recipe: Recipe, spec: Spec) -> int:
    """Its objects."""
    return 2 * _BYTES


def preview(recipe: Recipe, spec: Spec) -> None:
    """Nothing."""


def _compile(compiler: str, target: Path) -> str:
    """Returns what the compiler says of itself."""
    try:
        with tempfile.TemporaryDirectory(prefix=".ops.", dir=target.parent) as folder:
            compile_library(compiler, target, Path(folder))
        return compiler_version(compiler)
    except subprocess.CalledProcessError as error:
        lines = [line for line in str(error.stderr).splitlines() if line.strip()][-_MESSAGE_LINES:]
        raise ExportError(
            f"{target.name} could not be compiled by {compiler}, expected C++17 as g++ 9 or clang 10 know it. Name "
            "another in the environment variable CXX, or leave out --ort-ops. The compiler's last lines follow.\n"
            + "\n".join(lines)
        ) from error
    except OSError as error:
        raise ExportError(
            f"{target.name} could not be compiled by {compiler}: {error}. Free space or mend the folder's "
            "permissions, or leave out --ort-ops."
        ) from error


def build(artifact: Artifact, making: Making) -> dict[str, Any]:
    """Raises ExportError where the compiler refuses or its output cannot be written."""
    compiler, target = _compiler(), making.folder / artifact.file
    version_of_compiler = _compile(compiler, target)
    libc, version = platform.libc_ver()
    return {
        "sha256": file_sha256(target),
        "graph": artifact.graph,
        "machine": platform.machine(),
        "libc": f"{libc} {version}".strip() or "another C library",
        "compiler": version_of_compiler,
    }
