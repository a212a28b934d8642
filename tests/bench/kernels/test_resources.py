"""`tempme-bench kernels --resources`: its rows, its table, and what it refuses."""

import pytest
import torch

from tempme_export.bench.kernels import resources
from tempme_export.bench.tables.counts import resource_tables
from tempme_export.encoder.profile import load_profile
from tempme_export.kernels import launch

pytestmark = pytest.mark.skipif(launch.interpreting(), reason="TRITON_INTERPRET is set: nothing can be compiled")


@pytest.fixture(scope="module")
def rows():
    """One dtype, two targets and the two kernels that compile soonest."""
    some = {"add_norm_kernel", "split_rows_kernel"}
    profile = load_profile("vit-b-32-8f")
    return resources.compile_rows(profile, lambda _: None, (torch.float32,), ("sm_90", "gfx942"), some)


def test_every_kernel_is_represented_with_all_its_options():
    launches = resources.representative_launches(load_profile("vit-b-32-12f"), torch.bfloat16)
    inputs = {one.variant.name: {operand.name for operand in one.inputs} for one in launches}
    assert {"add_norm_kernel", "attention_match_kernel", "merge_kernel"} < set(inputs)
    assert len(launches) == len(inputs)
    assert {"delta", "size", "position"} < inputs["merge_kernel"]
    assert "bias" in inputs["attention_match_kernel"]
    assert "delta" in inputs["add_norm_kernel"]


def test_the_table_has_a_row_per_kernel_and_target(rows):
    (table,) = resource_tables(rows, "vit-b-32-8f, triton 3")
    assert table.caption.endswith("vit-b-32-8f, triton 3")
    shown = [dict(zip(table.heads, row, strict=True)) for row in table.rows]
    assert [(row["kernel"], row["target"]) for row in shown] == [
        (kernel, target) for kernel in ("add_norm_kernel", "split_rows_kernel") for target in ("sm_90", "gfx942")
    ]


def test_a_row_holds_what_was_compiled(rows):
    first = next(row.to_dict() for row in rows if row.kernel == "add_norm_kernel")
    assert first["dtype"] == "fp32" and first["target"] == "sm_90"
    assert first["compiled_for"].startswith("x ") and first["registers"] > 0
    assert first["spill_stores"] == first["spill_loads"] == 0
    assert resources.triton_version().count(".") >= 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["kernels", "--resources", "--batches", "2"], 2, "Leave out --batches and --dtype"),
        (["kernels", "--resources", "--dtype", "fp16"], 2, "Leave out --batches and --dtype"),
        (["kernels", "--resources", "somewhere"], 2, "unexpected extra argument"),
        (["kernels", "--resources", "--frames", "8,12"], 2, "--frames: found 2 numbers, expected one"),
        (["kernels", "--resources", "--profile", "nowhere.toml"], 3, "nowhere.toml is not a file"),
    ],
    ids=["batches", "dtype", "source", "frames", "profile"],
)
def test_refusals(tempme_bench, arguments, code, message):
    found, out, err = tempme_bench(*arguments)
    assert (found, out) == (code, "")
    assert err.startswith("error: ") and message in err


def test_sizes_from_a_checkpoint_are_refused(tempme_bench, tiny):
    code, _, err = tempme_bench("kernels", "--resources", "--profile", tiny[1])
    assert code == 2
    assert "profile tiny takes its sizes from a checkpoint" in err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_there_is_nothing_to_time(tempme_bench):
    code, out, err = tempme_bench("kernels")
    assert (code, out) == (4, "")
    assert "nothing to time" in err and "tempme-bench kernels --resources" in err


def test_a_missing_triton_is_named(run_python):
    said = run_python(
        """
        import sys

        sys.modules["triton"] = None
        from tempme_export.bench.kernels.resources import triton_version
        from tempme_export.errors import BackendError

        try:
            triton_version()
        except BackendError as error:
            print(error)
        """
    )
    assert "pip install triton" in said
