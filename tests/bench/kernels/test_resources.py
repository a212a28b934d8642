"""`tempme-bench kernels --resources`: its rows, its table, and what it refuses."""

import importlib.util
import json

import pytest
import torch

from tempme_export.bench.kernels import resources
from tempme_export.encoder.profile import load_profile
from tempme_export.errors import BackendError
from tempme_export.kernels import aot, launch

pytestmark = pytest.mark.skipif(launch.interpreting(), reason="TRITON_INTERPRET is set: nothing can be compiled")


@pytest.fixture
def quick(monkeypatch):
    """One dtype, two targets and the two kernels that compile soonest."""
    every = resources.representative_launches
    soon = {"add_norm_kernel", "split_rows_kernel"}
    monkeypatch.setattr(resources, "DTYPES", (torch.float32,))
    monkeypatch.setattr(aot, "TARGETS", ("sm_90", "gfx942"))
    monkeypatch.setattr(
        resources, "representative_launches", lambda *args: [one for one in every(*args) if one.variant.name in soon]
    )


def test_every_kernel_is_represented_with_all_its_options():
    launches = resources.representative_launches(load_profile("vit-b-32-12f"), torch.bfloat16)
    inputs = {one.variant.name: {operand.name for operand in one.inputs} for one in launches}
    assert {"add_norm_kernel", "attention_match_kernel", "merge_kernel"} < set(inputs)
    assert len(launches) == len(inputs)
    assert {"delta", "size", "position"} < inputs["merge_kernel"]
    assert "bias" in inputs["attention_match_kernel"]
    assert "delta" in inputs["add_norm_kernel"]


def test_the_table_has_a_row_per_kernel_and_target(tempme_bench, quick):
    code, out, err = tempme_bench("kernels", "--resources")
    assert (code, err) == (0, "")
    assert "…" not in out and "vit-b-32-12f, triton" in out
    rows = [line.split() for line in out.splitlines() if "_kernel" in line]
    assert sorted({row[0] for row in rows}) == ["add_norm_kernel", "split_rows_kernel"]
    assert sorted(target for row in rows for target in row if target in aot.TARGETS) == ["gfx942"] * 2 + ["sm_90"] * 2


def test_json_holds_what_was_compiled(tempme_bench, quick, tmp_path):
    code, out, _ = tempme_bench("kernels", "--resources", "--frames", 8, "--json")
    assert code == 0
    document = json.loads(out)
    assert document["profile"] == "vit-b-32-8f"
    assert document["triton"] == resources.triton_version()
    first = next(row for row in document["rows"] if row["kernel"] == "add_norm_kernel")
    assert first["dtype"] == "fp32" and first["target"] == "sm_90"
    assert first["compiled_for"].startswith("x ") and first["registers"] > 0
    assert first["spill_stores"] == first["spill_loads"] == 0


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


def test_without_a_gpu_there_is_nothing_to_time(tempme_bench, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, out, err = tempme_bench("kernels")
    assert (code, out) == (4, "")
    assert "nothing to time" in err and "tempme-bench kernels --resources" in err


def test_a_missing_triton_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendError, match="pip install triton"):
        resources.triton_version()
