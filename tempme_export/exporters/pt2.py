"""Video encoder -> AOTInductor package: compiled code and weights in one file that torch alone can load.

On the CPU our operators are decomposed into their dense forms; on a CUDA device they stay, and the compiler takes
the Triton kernels out of them. The code is for the processor and the GPU generation it was compiled on.

A package returns the embedding and every merge's decision: a few kilobytes per video, through which parity looks
into the very file that ships. Merged tokens stay inside, since as outputs they would keep every block's
activations in memory, and a second model that returns them would be other machine code than the one in use.
"""

import platform
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from tempme_export.artifacts.artifact import Artifact, Making, Spec
from tempme_export.encoder import ops
from tempme_export.encoder.model import Merges, VideoEncoder
from tempme_export.encoder.recipe import Recipe
from tempme_export.errors import BackendError, ExportError, UsageError
from tempme_export.exporters.common import DTYPES, tower_bytes, video_inputs
from tempme_export.files import library_path
from tempme_export.parity.tolerance import INT8
from tempme_export.runtime.devices import capability, quiet_torch, torch_device
from tempme_export.runtime.pt2 import PackageFacts, check_unpacking, read_package_facts

_MESSAGE_LINES = 8
_CODE_BYTES = 16 * 2**20
# Neither the number of threads nor their absence is compiled in; this decides only how loops are split.
_THREADS = {"cpp.dynamic_threads": True, "cpp.threads": 16}


class _WithAssignments(nn.Module):
    """The encoder with the decisions of its merges as further outputs."""

    def __init__(self, encoder: VideoEncoder, names: list[str]) -> None:
        super().__init__()
        self.encoder, self.names = encoder, names

    def forward(self, frames: Tensor, frame_mask: Tensor | None = None) -> dict[str, Tensor]:
        merges = Merges()
        embedding = self.encoder.encode(frames, frame_mask, merges)
        decisions = {name: assign for name, (assign, _) in zip(self.names, merges, strict=True)}
        return {"video_embedding": embedding, **decisions}


def check_builder(device: str) -> None:
    """Raise BackendError where a package cannot be built and tried here: no such device, no C++ compiler, or no folder
    to unpack code in."""
    torch_device(device)
    check_unpacking("a .pt2 package")
    with quiet_torch():
        from torch._inductor import config
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        names = config.cpp.cxx if isinstance(config.cpp.cxx, list | tuple) else [config.cpp.cxx]
        found = ", ".join(str(name) for name in names if name)
        raise BackendError(
            f"a .pt2 package needs a C++ compiler, and {found or 'none'} does not run here. Install g++ or name "
            "one in the environment variable CXX."
        ) from error


def _example(recipe: Recipe, device: str, frame_mask: bool) -> tuple[tuple[Tensor, ...], Any]:
    """The inputs to trace with, and each one's dynamic axis; None for a range of one video."""
    sizes = recipe.profile.batch
    # Tracing takes 0 and 1 for constants, so the usual batch is traced, or 2.
    traced = min(max(2, sizes.opt), sizes.max)
    inputs = tuple(video_inputs(recipe, traced, frame_mask, device).values())
    if sizes.max == 1:
        return inputs, None
    return inputs, ({0: Dim("batch", min=1, max=sizes.max)},) * len(inputs)


def _trace(recipe: Recipe, precision: str, device: str, frame_mask: bool) -> ExportedProgram:
    inputs, shapes = _example(recipe, device, frame_mask)
    encoder = VideoEncoder(recipe, DTYPES[precision]).to(device)
    module = _WithAssignments(encoder, [merge.assign_name for merge in recipe.schedule.merges])
    program = torch.export.export(module.eval(), inputs, dynamic_shapes=shapes)
    if torch.device(device).type == "cpu":
        program = program.run_decompositions(ops.DENSE_FORMS)
    return program


def _facts(recipe: Recipe, precision: str, device: str, program: ExportedProgram) -> PackageFacts:
    args, _ = program.example_inputs
    inputs = {
        name: (str(np.dtype(str(tensor.dtype).removeprefix("torch."))), (None, *tensor.shape[1:]))
        for name, tensor in zip(("frames", "frame_mask"), args, strict=False)
    }
    chosen = torch.device(device)
    return PackageFacts(
        torch=str(torch.__version__),
        device=chosen.type,
        machine=platform.machine(),
        capability=capability(chosen),
        precision=precision,
        max_batch=recipe.profile.batch.max,
        inputs=inputs,
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what it was raised from."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = getattr(seen, "inner_exception", None) or seen.__cause__


def _refusal(error: Exception, path: Path) -> BackendError | ExportError:
    from torch._inductor.exc import CppCompileError, InvalidCxxCompiler, TritonMissing

    causes = list(_chain(error))
    for cause in causes:
        if isinstance(cause, InvalidCxxCompiler | TritonMissing):
            return BackendError(f"{path.name} cannot be built here: {cause}")
    inner = next((cause for cause in causes if isinstance(cause, CppCompileError)), causes[-1])
    text = inner.output if isinstance(inner, CppCompileError) else str(inner)
    lines = [line for line in text.splitlines() if line.strip()][-_MESSAGE_LINES:]
    return ExportError(
        f"{path.name} could not be compiled by torch {torch.__version__}: {type(inner).__name__}. The compiler's "
        "last lines follow. Leave out --pt2, or install the versions of constraints.txt.\n" + "\n".join(lines)
    )


def _check_alone(package: Path) -> None:
    """Raise ExportError where an operator of this package was left in: it would need Python to run."""
    with zipfile.ZipFile(package) as archive:
        named = [name for name in archive.namelist() if name.endswith(".json")]
        left = [name for name in named if b"tempme::" in archive.read(name)]
    if left:
        raise ExportError(
            f"{package.name} calls back into the operators of tempme_export, so that torch alone cannot run it. "
            "This is a fault of the exporter with the installed torch; install the versions of constraints.txt."
        )


def _reason(stderr: str) -> str:
    """The line of a failed load that says most. Where a tensor cannot be made of a weight, torch says so and goes on
    with a null pointer: what comes last is the address at which the process ended."""
    lines = stderr.strip().splitlines() or ["It said nothing."]
    return next((line for line in lines if "Exception in aoti_torch" in line), lines[-1])


class Compiler:
    """AOTInductor: compiles a program, and loads what it made."""

    def compile(self, program: ExportedProgram, package: Path, configs: Mapping[str, Any]) -> None:
        """Write the package. Raises anything from KeyError to what the compiler's process left."""
        from torch._inductor import aoti_compile_and_package

        aoti_compile_and_package(program, package_path=str(package), inductor_configs=dict(configs))

    def load(self, package: Path) -> subprocess.CompletedProcess[str]:
        """Load a package in a fresh process: machine code can end the process that tries."""
        words = [
            sys.executable,
            "-c",
            "import sys, torch; torch._inductor.aoti_load_package(sys.argv[1])",
            str(package),
        ]
        return subprocess.run(words, capture_output=True, text=True, check=False)


COMPILER = Compiler()


def _check_loads(package: Path, done: subprocess.CompletedProcess[str]) -> None:
    """Raise ExportError where the process that loaded a package did not end as it should."""
    if done.returncode:
        how = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
        raise ExportError(
            f"{package.name} was compiled, and a process that loaded it ended by {how}. {_reason(done.stderr)} "
            f"This is a fault between torch {torch.__version__} and this machine's C++ compiler or driver. Leave out "
            "--pt2, or name another compiler in the environment variable CXX."
        )


def write_package(program: ExportedProgram, facts: PackageFacts, path: Path, compiler: Compiler = COMPILER) -> None:
    """Compile a program with its facts as metadata; `path` is there when it has loaded, and not before.

    Raises as `export_video`.
    """
    from torch._inductor.utils import fresh_cache

    with (
        library_path(path) as named,
        tempfile.TemporaryDirectory(prefix=".pt2.", dir=Path(named).parent) as folder,
        quiet_torch(),
        torch.no_grad(),
    ):
        package = Path(folder) / path.name
        try:
            with fresh_cache(dir=folder):
                compiler.compile(program, package, {**_THREADS, "aot_inductor.metadata": facts.to_metadata()})
        except Exception as error:
            raise _refusal(error, path) from error
        _check_alone(package)
        _check_loads(package, compiler.load(package))
        package.replace(path)


def export_video(
    recipe: Recipe, path: Path, precision: str = "fp32", device: str = "cpu", frame_mask: bool = False
) -> None:
    """Compile the video tower for the machine at hand and write it to `path`, which ends in `.pt2`.

    Inputs as `video.onnx`: frames float32 [batch, F, 3, S, S], with `frame_mask` also bool [batch, F], 1 <= batch
    <= the profile's largest. Returns a dict: `video_embedding` float32 [batch, E] of unit length, then
    `assign_00`, `assign_01`, ... int32 [batch * clips, N], every merge's decision.
    Raises BackendError without a C++ compiler, Triton or the device, ExportError where compiling fails or what was
    compiled does not load.
    """
    if path.suffix != ".pt2":
        raise ExportError(f"{path} must end in .pt2, which torch asks of a package.")
    check_builder(device)
    with quiet_torch(), torch.no_grad():
        program = _trace(recipe, precision, device, frame_mask)
    write_package(program, _facts(recipe, precision, device, program), path)


def check(spec: Spec) -> None:
    """Raises UsageError for int8, which torch does not compile here, and BackendError as `check_builder`."""
    if spec.precision == INT8:
        raise UsageError("--precision int8 is for ONNX on CPUs, found --pt2. Use fp16 or bf16 there.")
    check_builder(spec.device)


def check_recipe(recipe: Recipe, spec: Spec) -> None:
    """Nothing of its own."""


def files(artifact: Artifact, recipe: Recipe, spec: Spec) -> list[str]:
    """The package."""
    return [artifact.file]


def size(artifact: Artifact, recipe: Recipe, spec: Spec) -> int:
    """Its weights and code."""
    return tower_bytes(recipe, "video", spec.precision) + _CODE_BYTES


def scratch(artifact: Artifact, recipe: Recipe, spec: Spec) -> int:
    """Compiling it takes its weights as an object file, and linked."""
    return 3 * tower_bytes(recipe, "video", spec.precision)


def preview(recipe: Recipe, spec: Spec) -> None:
    """Nothing."""


def build(artifact: Artifact, making: Making) -> dict[str, Any]:
    """Raises as `export_video`."""
    spec, path = making.spec, making.folder / artifact.file
    export_video(making.recipe, path, spec.precision, spec.device, spec.frame_mask)
    return read_package_facts(path).to_dict()
