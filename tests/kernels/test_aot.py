"""Builds without a GPU: what they take, what they are called with, and that every target compiles in any Triton."""

import dataclasses
import functools
import importlib
import pkgutil
import re
from types import SimpleNamespace

import pytest
import torch

from tempme_export.kernels import aot, launch, merge
from tempme_export.kernels import ptx as ptx_text

pytestmark = pytest.mark.skipif(launch.interpreting(), reason="TRITON_INTERPRET is set: nothing can be compiled")

HEADS = 12  # ViT-B: a kernel may spill at the width that ships and not at a smaller one
MAX_SHARED = 48 * 1024
LATER = [target for target in aot.TARGETS if target.startswith("sm_") and target != aot.UNIVERSAL]

# The calls that together launch every kernel with every option.
OPERATIONS = (
    "match_keys",
    "match_clips",
    "merge_across",
    "add_norm",
    "attention_bias",
    "attention_match",
)
SCALAR = {"select_rows_kernel"}  # a score a thread, from rows of any length
every_operation = pytest.mark.parametrize("operation", OPERATIONS)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])

compiled = functools.cache(aot.compile)


@pytest.fixture
def launches(kernel_calls):
    """The launches of an operation at the width of ViT-B."""

    def find(operation, dtype):
        found = aot.launches_of(kernel_calls(dtype, "meta", HEADS)[operation])
        assert found
        return found

    return find


@pytest.fixture
def add_norm(launches):
    """What is built for the quickest kernel to compile."""
    (found,) = launches("add_norm", torch.float32)
    return found.variant


def count(pattern, ptx):
    return len(re.findall(pattern, ptx))


def wide_loads(ptx):
    return count(r"ld\.global\S*\.v4", ptx) + count(r"cp\.async\.c[ag]\S* .*, (16|0x10)\b", ptx)


# Every kernel for every target in one dtype, and what takes most registers or shared memory in the other.
BUILDS = [(operation, torch.bfloat16, target) for operation in OPERATIONS for target in aot.TARGETS]
BUILDS += [(operation, torch.float32, target) for operation in OPERATIONS for target in (aot.UNIVERSAL, "sm_90")]
BUILDS += [("match_keys_many", torch.float32, aot.UNIVERSAL)]


@pytest.mark.parametrize(("operation", "dtype", "target"), BUILDS, ids=str)
def test_every_target_compiles_within_limits(launches, operation, dtype, target):
    for found in launches(operation, dtype):
        built = compiled(found.variant, target)
        assert (built.resources.spill_stores, built.resources.spill_loads) == (0, 0), built.name
        assert 0 <= built.resources.shared <= MAX_SHARED, built.name
        assert 0 < built.resources.registers <= 512, built.name
        assert built.binary.startswith(b"\x7fELF")
        if target == "gfx942":
            assert built.ptx is None
        else:
            version = aot.ptx_version(target)
            assert f".version {version // 10}.{version % 10}\n" in built.ptx
            assert re.search(rf"^\.target {target}a?$", built.ptx, re.MULTILINE)
            assert wide_loads(built.ptx) > 0 or found.variant.name in SCALAR, built.name


@every_dtype
@every_operation
def test_ptx_takes_what_tensorrt_passes_and_nothing_else(launches, operation, dtype):
    for found in launches(operation, dtype):
        ptx = compiled(found.variant, aot.UNIVERSAL).ptx
        passed = ("u64",) * len(found.inputs) + ("u32",) * len(found.scalars) + ("u64",) * len(found.outputs)
        assert ptx_text.parameters(ptx) == passed == found.variant.parameters
        assert set(re.findall(r"_param_(\d+)", ptx)) == {str(k) for k in range(len(passed))}


@every_dtype
@every_operation
def test_no_kernel_counts_in_memory(launches, operation, dtype):
    """An atomic reads and writes one place, which would be an input or is not set yet."""
    for found in launches(operation, dtype):
        assert not re.search(r"\b(atom|red)\.", compiled(found.variant, aot.UNIVERSAL).ptx), found.variant.name


@every_dtype
@every_operation
def test_ptx_does_not_tell_where_it_was_built(launches, operation, dtype):
    for found in launches(operation, dtype):
        ptx = compiled(found.variant, aot.UNIVERSAL).ptx
        assert not re.search(r"\.loc|\.file|\.section|debug|/", re.sub(r"//.*", "", ptx)), found.variant.name


@pytest.mark.parametrize("target", LATER)
@every_operation
def test_the_universal_build_assembles_for_every_later_gpu(launches, operation, target):
    for found in launches(operation, torch.bfloat16):
        cubin, _ = ptx_text.assemble(compiled(found.variant, aot.UNIVERSAL).ptx, target)
        assert cubin.startswith(b"\x7fELF")


def test_every_kernel_is_compiled(launches):
    import triton

    from tempme_export.kernels import jit

    written = set()
    for module in pkgutil.iter_modules(jit.__path__):
        members = vars(importlib.import_module(f"{jit.__name__}.{module.name}"))
        written |= {name for name, one in members.items() if isinstance(one, triton.JITFunction)}
    tried = {found.variant.name for operation in OPERATIONS for found in launches(operation, torch.float32)}
    assert tried == {name for name in written if name.endswith("_kernel")}


def test_wide_loads_hang_on_the_hints(add_norm):
    blind = dataclasses.replace(add_norm, hinted=())
    assert wide_loads(compiled(add_norm, aot.UNIVERSAL).ptx) > 0
    assert wide_loads(compiled(blind, aot.UNIVERSAL).ptx) == 0


def test_a_launch_is_described_by_what_the_launcher_passes(launches):
    (found,) = launches("merge_across", torch.bfloat16)
    width = 64 * HEADS
    assert [one.name for one in found.inputs] == ["x", "delta", "size", "assign", "position", "weight", "bias"]
    assert dict(found.scalars) == {
        **{"n_tokens": 100, "n_cls": 2, "r": 30, "n_positions": 4},
        **{"stride_clip": 50 * width, "stride_token": width, "delta_clip": 50 * width, "delta_token": width},
        "size_clip": 50,
    }
    assert [(one.name, one.dtype, one.shape) for one in found.outputs] == [
        ("out", torch.bfloat16, (2, 70, width)),
        ("normed", torch.bfloat16, (2, 70, width)),
        ("size_out", torch.float32, (2, 70)),
        ("log_size", torch.float32, (2, 70)),
    ]
    types, constants = dict(found.variant.arguments), dict(found.variant.constants)
    assert (types["x"], types["weight"], types["assign"], types["r"]) == ("*bf16", "*fp32", "*i32", "i32")
    assert constants["stride_channel"] == constants["delta_channel"] == constants["size_token"] == 1
    assert constants["WIDTH"] == width and constants["FACTOR"] == 2
    assert found.grid[0] == 2 and found.grid[2] == 1


def test_absent_tensors_are_compiled_in_with_their_strides(kernel_calls):
    (found,) = aot.launches_of(kernel_calls(torch.float16, "meta", HEADS)["layer_norm"])
    constants = dict(found.variant.constants)
    assert constants["delta"] is None and constants["out"] is None
    assert constants["delta_clip"] == constants["delta_token"] == constants["delta_channel"] == 0
    assert [one.name for one in found.inputs] == ["x", "weight", "bias"]
    assert [one.name for one in found.outputs] == ["normed"]


def norm_launch(x):
    weight = torch.empty(x.shape[2], device="meta")
    (found,) = aot.launches_of(lambda: merge.layer_norm(x, weight, weight))
    return found


def test_one_build_serves_all_lengths_and_batches():
    one, other = (norm_launch(torch.empty(*shape, 768, device="meta")) for shape in ((1, 1), (7, 50)))
    assert one.variant == other.variant and hash(one.variant) == hash(other.variant)
    assert one.scalars != other.scalars


def test_hints_follow_addresses_and_strides():
    rows = torch.empty(2, 8, 800, device="meta")
    hinted = {"x", "weight", "bias", "stride_clip", "stride_token", "normed"}
    assert set(norm_launch(rows[..., 4:772]).variant.hinted) == hinted
    assert set(norm_launch(rows[..., 3:771]).variant.hinted) == hinted - {"x"}
    assert set(norm_launch(torch.empty(2, 8, 777, device="meta")[..., :768]).variant.hinted) == hinted - {
        "stride_clip",
        "stride_token",
    }


def test_nothing_is_launched_and_launchers_refuse_cpu_tensors_again_afterwards(kernel_calls):
    operation = kernel_calls(torch.float32, "cpu", 1)["add_norm"]
    assert len(aot.launches_of(operation)) == 1
    with pytest.raises(ValueError, match="Triton kernels need a GPU"):
        operation()


def call(*args, **meta):
    kernel = SimpleNamespace(__name__="odd_kernel", arg_names=["x", "n_rows", "y", "n_more", "BLOCK"])
    return launch.Call(kernel, (1,), args, {"BLOCK": 4, "num_warps": 4, **meta})


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        (call(torch.empty(1), 5, torch.empty(1), 6), "odd_kernel takes n_more = 6: expected an int32 ahead of all out"),
        (call(torch.empty(1), 2**31, torch.empty(1)), "n_rows = 2147483648: expected an int32"),
        (call(torch.empty(1, dtype=torch.float64), 5, torch.empty(1)), "x is torch.float64, expected one of"),
        (call(torch.empty(1), 5, torch.empty(1), num_ctas=2), "launched with num_ctas, which builds do not know"),
    ],
    ids=["order", "wide", "dtype", "option"],
)
def test_what_no_build_can_be_made_of_is_refused(odd, said):
    with pytest.raises(ValueError, match=said):
        aot.describe(odd)


def test_an_unknown_target_is_refused(add_norm):
    with pytest.raises(ValueError, match=r"no builds are made for 'sm_75'. Expected one of sm_80, .*gfx942"):
        aot.compile(add_norm, "sm_75")


@pytest.mark.parametrize("kind", ["global", "profile"])
def test_scratch_memory_is_refused(kind):
    metadata = SimpleNamespace(name="greedy_kernel", **{f"{kind}_scratch_size": 128})
    with pytest.raises(RuntimeError, match=r"greedy_kernel needs .*128 .*scratch memory"):
        aot.check_scratch(metadata)


PTX = """.version 8.0
.target sm_80
.address_size 64
.visible .entry small_kernel(
\t.param .u64 .ptr .global .align 1 small_kernel_param_0,
\t.param .u32 small_kernel_param_1,
\t.param .u64 .ptr .global .align 1 small_kernel_param_2,
\t.param .u64 .ptr .global .align 1 small_kernel_param_3
)
.reqntid 128
{
\t.reg .b64 %rd<2>;
\tld.param.b64 %rd1, [small_kernel_param_0];
\tret;
}
"""


def test_the_two_hidden_arguments_are_stripped_and_ptxas_accepts_the_rest():
    stripped = ptx_text.strip_hidden_arguments(PTX)
    assert ptx_text.parameters(PTX) == ("u64", "u32", "u64", "u64")
    assert ptx_text.parameters(stripped) == ("u64", "u32")
    assert "param_2" not in stripped and "param_3" not in stripped
    assert ptx_text.assemble(stripped, aot.UNIVERSAL)[0].startswith(b"\x7fELF")


@pytest.mark.parametrize(
    ("ptx", "said"),
    [
        (PTX.replace("[small_kernel_param_0]", "[small_kernel_param_3]"), "uses small_kernel_param_3"),
        (
            PTX.replace(".u64 .ptr .global .align 1 small_kernel_param_3", ".u32 small_kernel_param_3"),
            "hidden pointers",
        ),
        (PTX.replace(".visible .entry", ".func"), "has 0 entries"),
        (PTX + PTX, "has 2 entries"),
        (PTX.replace(".param .u32", ".parameter"), "unknown form"),
    ],
    ids=["used", "no pointer", "none", "two", "unknown"],
)
def test_other_text_is_not_stripped(ptx, said):
    with pytest.raises(ValueError, match=said):
        ptx_text.strip_hidden_arguments(ptx)


def test_texts_that_differ_name_their_kernels_differently():
    named, other = ptx_text.name_by_content(PTX), ptx_text.name_by_content(PTX.replace("128", "256"))
    assert re.fullmatch(r"small_kernel_[0-9a-f]{12}", ptx_text.entry(named))
    assert ptx_text.entry(named) != ptx_text.entry(other)
    assert ptx_text.name_by_content(PTX) == named
    assert named.replace(ptx_text.entry(named), "small_kernel", 1) == PTX


def test_builds_of_one_kernel_have_names_of_their_own(launches):
    found = [one.variant for dtype in (torch.float32, torch.bfloat16) for one in launches("add_norm", dtype)]
    built = [compiled(variant, aot.UNIVERSAL) for variant in found]
    assert len({one.name for one in built}) == 2
    for one in built:
        assert f".entry {one.name}(" in one.ptx and one.name.encode() in one.binary


def test_a_refusal_of_ptxas_is_shown():
    with pytest.raises(
        RuntimeError, match=r"(?s)ptxas refused the PTX for sm_80:.*Not a name of any known instruction"
    ):
        ptx_text.assemble(PTX.replace("ret;", "return;"), aot.UNIVERSAL)


@pytest.mark.parametrize(("capped", "freed"), [(8, 0), (8, 24)], ids=["gains", "loses"])
def test_a_kernel_that_spills_may_take_every_register_if_it_gains(add_norm, capped, freed):
    def assemble(ptx, target):
        spilled = freed if ".maxnreg 255\n" in ptx else capped
        return b"cubin", f"{spilled} bytes spill stores, {spilled} bytes spill loads\nUsed 96 registers"

    built = aot.compile(add_norm, aot.UNIVERSAL, assemble)
    assert built.resources.spill_stores == built.resources.spill_loads == min(capped, freed)
    assert (".maxnreg" in built.ptx) == (freed < capped)
