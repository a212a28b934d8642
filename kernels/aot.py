"""Ahead-of-time builds: what a launcher would launch, compiled to PTX and cubin, or hsaco, without a GPU.

Nothing about a kernel is written twice: a launcher runs on tensors of the device `meta` while its launches are
recorded, and types, constants, tiles and hints are read off them. A built kernel takes exactly its inputs, int32
scalars and outputs, in this order, which is how TensorRT calls one.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tempme_export.kernels.launch import Call, interpreting, recording
from tempme_export.kernels.ptx import (
    assemble,
    entry,
    name_by_content,
    parameters,
    strip_debug,
    strip_hidden_arguments,
)

UNIVERSAL = "sm_80"  # its PTX runs on every later GPU: the driver translates it; sm_90's and later run on one family
TARGETS = (UNIVERSAL, "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942")

_TYPES = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.int32: "*i32"}
_PTX_TYPES = {"*": "u64", "i": "u32"}
_HINT = 16
_MAX_REGISTERS = 255  # per thread, of every NVIDIA GPU
_INT32 = range(-(2**31), 2**31)

_USED = re.compile(r"Used (\d+) registers")
_SPILLED = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
_REQUIRED_THREADS = re.compile(r"^\.reqntid .*$", re.MULTILINE)


@dataclass(frozen=True)
class Operand:
    """A tensor that a kernel reads or writes."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Variant:
    """Variant of a kernel, built once: launches that differ only in shapes and scalars share it.

    arguments  name and Triton type of what is passed at run time, in the order passed
    hinted     those of them whose value or address is a multiple of 16, which is what allows wide loads
    constants  name and value of what is compiled in, absent tensors as None
    num_stages None: Triton's default for the target
    """

    kernel: Any
    arguments: tuple[tuple[str, str], ...]
    hinted: tuple[str, ...]
    constants: tuple[tuple[str, Any], ...]
    num_warps: int
    num_stages: int | None

    @property
    def name(self) -> str:
        """The kernel's name, also in the built code."""
        return str(self.kernel.__name__)

    @property
    def parameters(self) -> tuple[str, ...]:
        """The PTX type of every argument."""
        return tuple(_PTX_TYPES[kind[0]] for _, kind in self.arguments)

    @property
    def dtype(self) -> str:
        """Triton's name of the first argument's elements, such as fp32."""
        return self.arguments[0][1].removeprefix("*")


@dataclass(frozen=True)
class Launch:
    """One kernel launch: a build, and what it is called with."""

    variant: Variant
    inputs: tuple[Operand, ...]
    scalars: tuple[tuple[str, int], ...]
    outputs: tuple[Operand, ...]
    grid: tuple[int, int, int]


@dataclass(frozen=True)
class Arguments:
    """The values of a launch that are passed at run time."""

    inputs: tuple[Tensor, ...]
    scalars: tuple[int, ...]
    outputs: tuple[Tensor, ...]


@dataclass(frozen=True)
class Resources:
    """Resources that a program of a built kernel takes.

    registers                  per thread
    spill_stores, spill_loads  bytes per thread; on gfx942 both are the private memory that spilling would take
    shared                     bytes, all passed at launch
    """

    registers: int
    spill_stores: int
    spill_loads: int
    shared: int


Assembler = Callable[[str, str], tuple[bytes, str]]  # as `assemble`


@dataclass(frozen=True)
class Compiled:
    """A built kernel.

    name        of its entry, which ends in a digest of the text as it was before registers were freed
    ptx         for NVIDIA targets: text without hidden arguments and debug information; None for gfx942
    binary      cubin assembled from that text, or hsaco
    parameters  PTX type of every argument: inputs, scalars, outputs. hsaco takes two null pointers after them.
    """

    name: str
    target: str
    ptx: str | None
    binary: bytes
    num_warps: int
    parameters: tuple[str, ...]
    resources: Resources


def launches_of(run: Callable[[], object]) -> tuple[Launch, ...]:
    """Every launch that `run` asks for; nothing is launched, and its tensors may be of the device `meta`."""
    with recording() as calls:
        run()
    return tuple(describe(call) for call in calls)


def _is_stride(name: str) -> bool:
    return name.startswith(("stride_", "delta_", "size_"))


def _is_runtime(name: str, value: Any) -> bool:
    """Tensors and whole numbers are passed, apart from what every launch of a variant has alike.

    Counts (n_tokens, r, ...) are passed even where they are 1 and never hinted, so that one build serves all
    lengths. Strides of 0 and 1 are compiled in: those of absent tensors and of adjacent channels.
    """
    if isinstance(value, Tensor):
        return True
    return isinstance(value, int) and not (_is_stride(name) and value in (0, 1))


def _is_hinted(name: str, value: Any) -> bool:
    """True where a multiple of 16 is worth a build of its own: addresses and strides of rows, not of single sizes."""
    if isinstance(value, Tensor):
        return bool(value.storage_offset() * value.element_size() % _HINT == 0)
    return _is_stride(name) and not name.startswith("size_") and value % _HINT == 0


def _runtime(call: Call) -> dict[str, Any]:
    named = zip(call.kernel.arg_names, call.args, strict=False)
    return {name: value for name, value in named if _is_runtime(name, value)}


def arguments(call: Call) -> Arguments:
    """Arguments that a recorded launch passes at run time.

    Raises ValueError where the kernel's arguments are not inputs, scalars, outputs, or a scalar is not an int32.
    """
    inputs: list[Tensor] = []
    scalars: list[int] = []
    outputs: list[Tensor] = []
    for name, value in _runtime(call).items():
        if isinstance(value, Tensor):
            (outputs if scalars else inputs).append(value)
        elif outputs or value not in _INT32:
            raise ValueError(f"{call.kernel.__name__} takes {name} = {value}: expected an int32 ahead of all outputs.")
        else:
            scalars.append(value)
    return Arguments(tuple(inputs), tuple(scalars), tuple(outputs))


def _triton_type(name: str, value: Any) -> str:
    if not isinstance(value, Tensor):
        return "i32"
    if value.dtype not in _TYPES:
        raise ValueError(f"{name} is {value.dtype}, expected one of {', '.join(map(str, _TYPES))}.")
    return _TYPES[value.dtype]


def describe(call: Call) -> Launch:
    """A recorded launch as data. Raises ValueError as `arguments`, and for what no build can be made of."""
    passed, runtime, names = arguments(call), _runtime(call), call.kernel.arg_names
    values = dict(zip(names, call.args, strict=False)) | {k: v for k, v in call.meta.items() if k in names}
    options = {name: value for name, value in call.meta.items() if name not in names}
    variant = Variant(
        kernel=call.kernel,
        arguments=tuple((name, _triton_type(name, value)) for name, value in runtime.items()),
        hinted=tuple(name for name, value in runtime.items() if _is_hinted(name, value)),
        constants=tuple((name, value) for name, value in values.items() if name not in runtime),
        num_warps=options.pop("num_warps"),
        num_stages=options.pop("num_stages", None),
    )
    if options:
        raise ValueError(f"{variant.name} is launched with {', '.join(options)}, which builds do not know.")
    x, y, z = (*call.grid, 1, 1)[:3]
    operands = [Operand(k, v.dtype, tuple(v.shape)) for k, v in runtime.items() if isinstance(v, Tensor)]
    return Launch(
        variant=variant,
        inputs=tuple(operands[: len(passed.inputs)]),
        scalars=tuple((name, value) for name, value in runtime.items() if not isinstance(value, Tensor)),
        outputs=tuple(operands[len(passed.inputs) :]),
        grid=(x, y, z),
    )


def ptx_version(target: str) -> int:
    """The pinned PTX version, ten times: CUDA 12.0 reads 8.0, and Blackwell needs 8.7 (CUDA 12.8)."""
    return 80 if int(target.removeprefix("sm_")) < 100 else 87


def compile(variant: Variant, target: str, assembler: Assembler | None = None) -> Compiled:
    """Build a kernel for one of `TARGETS`; needs Triton, no driver and no GPU.

    assembler  makes the cubin; None: Triton's ptxas

    Raises ValueError for another target and RuntimeError under TRITON_INTERPRET=1, for a kernel that needs
    scratch memory, and where ptxas refuses.
    """
    if target not in TARGETS:
        raise ValueError(f"no builds are made for {target!r}. Expected one of {', '.join(TARGETS)}.")
    if interpreting():
        raise RuntimeError(
            "TRITON_INTERPRET is set, and interpreted kernels cannot be compiled. Unset it before the start."
        )
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types, names = dict(variant.arguments), variant.kernel.arg_names
    source = ASTSource(
        fn=variant.kernel,
        signature={name: types.get(name, "constexpr") for name in names},
        constexprs=dict(variant.constants),
        attrs={(names.index(name),): [["tt.divisibility", _HINT]] for name in variant.hinted},
    )
    # Stated because triton 3.9 warns that its default will change.
    options: dict[str, Any] = {"num_warps": variant.num_warps, "enable_fp_fusion": True}
    if variant.num_stages is not None:
        options["num_stages"] = variant.num_stages
    if target.startswith("gfx"):
        built = triton.compile(source, target=GPUTarget("hip", target, 64), options=options)
        check_scratch(built.metadata)
        return _compiled_hsaco(variant, target, built)
    options["ptx_version"] = ptx_version(target)
    built = triton.compile(source, target=GPUTarget("cuda", int(target.removeprefix("sm_")), 32), options=options)
    check_scratch(built.metadata)
    return _compiled_cubin(variant, target, built, assembler or assemble)


def check_scratch(metadata: Any) -> None:
    """Raise RuntimeError for a built kernel that needs scratch memory."""
    sizes = [getattr(metadata, f"{kind}_scratch_size", 0) for kind in ("global", "profile")]
    if any(sizes):
        raise RuntimeError(
            f"{metadata.name} needs {sizes[0]} bytes of global and {sizes[1]} of profiling scratch memory, which a "
            "caller without Triton does not allocate. Change the kernel."
        )


def _compiled_cubin(variant: Variant, target: str, built: Any, assemble: Assembler) -> Compiled:
    ptx = name_by_content(strip_debug(strip_hidden_arguments(built.asm["ptx"])))
    if parameters(ptx) != variant.parameters:
        raise RuntimeError(f"{variant.name} takes {parameters(ptx)} in PTX, expected {variant.parameters}.")
    found = re.search(r"\.target (\w+)", ptx)
    assert found is not None, "PTX names its target"
    cubin, log = assemble(ptx, found[1])
    if _spills(log) != (0, 0):
        # ptxas spills a few bytes where that fits more programs on a processor, and mostly does not once it may take
        # every register. It then takes them, needed or not, so only a kernel that gains from it says so.
        freer = _REQUIRED_THREADS.sub(rf"\g<0>\n.maxnreg {_MAX_REGISTERS}", ptx)
        freer_cubin, freer_log = assemble(freer, found[1])
        if _spills(freer_log) < _spills(log):
            ptx, cubin, log = freer, freer_cubin, freer_log
    used = _USED.search(log)
    if used is None:
        raise RuntimeError(f"ptxas did not say how many registers {variant.name} takes:\n{log}")
    resources = Resources(int(used[1]), *_spills(log), built.metadata.shared)
    return Compiled(entry(ptx), target, ptx, cubin, built.metadata.num_warps, variant.parameters, resources)


def _spills(log: str) -> tuple[int, int]:
    """Bytes of spill stores and loads that ptxas reports."""
    found = _SPILLED.search(log)
    if found is None:
        raise RuntimeError(f"ptxas did not say what was spilled:\n{log}")
    return int(found[1]), int(found[2])


def _compiled_hsaco(variant: Variant, target: str, built: Any) -> Compiled:
    def count(key: str) -> int:
        found = re.search(rf"\.{key}:\s+(\d+)", built.asm["amdgcn"])
        if found is None:
            raise RuntimeError(f"the assembly of {variant.name} for {target} does not say its {key}.")
        return int(found[1])

    spilled = count("private_segment_fixed_size")
    resources = Resources(count("vgpr_count"), spilled, spilled, built.metadata.shared)
    return Compiled(
        variant.name, target, None, built.asm["hsaco"], built.metadata.num_warps, variant.parameters, resources
    )
