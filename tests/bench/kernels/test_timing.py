"""The kernel benchmark: its bytes, its sums and rows, and what it refuses; on a GPU, a small run of it."""

import dataclasses
import json
import math

import pytest
import torch

from tempme_export.bench.core.bootstrap import Ratio
from tempme_export.bench.core.clocks import DeviceCall, Work, timer
from tempme_export.bench.core.protocol import FEWEST, Protocol
from tempme_export.bench.core.timing import Timing
from tempme_export.bench.gpu.rehearsal import rehearsal_recipe
from tempme_export.bench.kernels import cases, timing, traffic
from tempme_export.errors import BackendError

CPU = torch.device("cpu")
BATCH = 3  # not a power of two, and not the number of frames or clips


@pytest.fixture(scope="module")
def recipe(one_thread):
    """Four blocks of width 128, two of which join clips by twos."""
    return rehearsal_recipe()


@pytest.fixture(scope="module")
def calls(recipe):
    """Every call of the tiny encoder in bfloat16."""
    return cases.kernel_calls(recipe.schedule, 128, 2, BATCH, torch.bfloat16)


def tensors(value):
    if isinstance(value, torch.Tensor):
        return [value]
    return [one for item in value for one in tensors(item)] if isinstance(value, tuple | list) else []


def test_bytes_are_those_of_every_input_and_output(calls):
    for call in calls:
        inputs = call.draw(CPU)
        moved = sum(one.numel() * one.element_size() for one in tensors(inputs) + tensors(call.run(*inputs)))
        assert call.n_bytes == moved, call


def test_bytes_by_hand():
    assert traffic.add_norm(2, 3, 8, 2) == 4 * (2 * 3 * 8 * 2) + 2 * 8 * 4
    assert traffic.attention(2, 3, 8, 2, bias=False) == 4 * (2 * 3 * 8 * 2)
    assert traffic.attention_match(2, 3, 8, 2, bias=True) == 4 * (2 * 3 * 8 * 2) + 2 * (2 * 3 * 4)
    assert traffic.match_clips(2, 3, 8, 2, delta=False) == 2 * 3 * 8 * 2 + 2 * 3 * 4
    read = 2 * (2 * 3 * 8 * 2) + 2 * (2 * 3 * 4) + 5 * 8 * 2 + 2 * 8 * 4
    written = 2 * (2 * 2 * 8 * 2) + 2 * (2 * 2 * 4)
    assert traffic.merge_norm(2, 3, 8, 2, 1, delta=True, size=True, positions=5) == read + written


def test_plain_pytorch_computes_what_the_operators_do(calls):
    for call in calls:
        inputs = call.draw(CPU)
        for ours, plain in zip(tensors(call.run(*inputs)), tensors(call.plain(*inputs)), strict=True):
            torch.testing.assert_close(ours, plain, rtol=1.6e-2, atol=1.6e-2)


def test_the_calls_are_the_encoders(recipe, calls):
    across = ["match_clips", "merge_norm", "add_norm"]
    within = ["attention_match", "merge_norm", "attention", "add_norm"]
    expected = []
    for block in recipe.schedule.blocks:
        expected += [(block.index, name) for name in (across if block.r_cross else []) + within]
    assert [(call.block, call.name) for call in calls] == expected
    assert {call.name for call in calls if call.sign < 0} == {"add_norm", "attention"}
    assert calls[0].draw(CPU)[1] is None, "the first attention has no sizes"
    first_merge = calls[1].draw(CPU)
    assert first_merge[1] is not None and first_merge[2] is None


def test_nothing_merges_without_merging(recipe):
    blocks = tuple(dataclasses.replace(block, r_cross=0, r_intra=0) for block in recipe.schedule.blocks)
    schedule = dataclasses.replace(recipe.schedule, blocks=blocks)
    assert cases.kernel_calls(schedule, 128, 2, 1, torch.float32) == []


def fake(seconds):
    """A timer that knows the answer: {name: seconds per call}, from 20 % below to 20 % above."""

    def of(name):
        samples = tuple(seconds[name] * (1 + part) for part in (-0.2, -0.1, 0, 0, 0.1, 0.2))
        return Timing(name, (9.0,) * 6, True, Ratio(1.0, 1.0, 1.0), device_samples=samples)

    return lambda works: {name: of(name) for name in works}


def test_a_row_holds_what_the_timer_said(calls):
    call = dataclasses.replace(calls[0], n_bytes=4_000_000)
    times = {"warm": 1e-6, "cold": 2e-6, "plain": 30e-6, "plain cold": 50e-6}
    row = timing.kernel_row("p", 3, "bf16", call, fake(times)(times), copy_gb_s=4000.0)
    assert (row.profile, row.batch, row.dtype, row.block, row.kernel) == ("p", 3, "bf16", 0, "attention_match")
    assert (row.sign, row.mbytes) == (1, 4.0)
    found = (row.warm_us, row.cold_us, row.cold_p20_us, row.cold_p80_us, row.warm_gb_s, row.cold_gb_s)
    assert found == pytest.approx((1, 2, 1.8, 2.2, 4000, 2000))
    assert (row.share_of_copy, row.times_as_fast) == pytest.approx((0.5, 25))
    assert row.compiled_us is None and row.compiled_cold_us is None
    times |= {"compiled": 5e-6, "compiled cold": 6e-6}
    row = timing.kernel_row("p", 3, "bf16", call, fake(times)(times), copy_gb_s=4000.0)
    assert (row.compiled_us, row.compiled_cold_us) == pytest.approx((5, 6))


def test_merging_costs_what_is_there_less_what_would_be_there(calls):
    times = {"warm": 1e-6, "cold": 2e-6, "plain": 1.0, "plain cold": 1.0}
    some = [call for call in calls if call.block in (0, 2)]
    rows = [timing.kernel_row("p", 3, "bf16", call, fake(times)(times), 1.0) for call in some]
    rows = [dataclasses.replace(row, warm_us=5.0) if row.kernel == "match_clips" else row for row in rows]
    cost = timing.marginal_row(rows, encode_s=1e-3)
    # Block 0: two calls less two. Block 2: four less three, one of them the match that takes 5 us when warm.
    assert cost.warm_us_by_block == pytest.approx({0: 0, 2: 5})
    assert cost.cold_us_by_block == pytest.approx({0: 0, 2: 2})
    assert (cost.warm_ms, cost.cold_ms, cost.encode_ms) == pytest.approx((0.005, 0.002, 1.0))
    assert (cost.warm_share, cost.cold_share) == pytest.approx((0.005, 0.002))
    alone = timing.marginal_row(rows, encode_s=None)
    assert alone.encode_ms is None and alone.warm_share is None and alone.cold_share is None


def test_cold_inputs_push_one_another_out(calls, monkeypatch):
    monkeypatch.setattr(timing, "l2_bytes", lambda device: 300_000)
    call = calls[0]
    sets = timing.input_sets(call, CPU)
    assert len(sets) == math.ceil(4 * 300_000 / call.n_bytes) + 1
    assert len({one[0].data_ptr() for one in sets}) == len(sets)
    for one in sets[1:]:
        torch.testing.assert_close(one[0], sets[0][0], rtol=0, atol=0)


def test_a_run_from_request_to_rows(recipe, monkeypatch):
    monkeypatch.setattr(timing, "draw_checkpoint", lambda profile, seed: recipe.checkpoint)
    settings = timing.KernelSettings((recipe.profile,), (1, 2), ("bf16", "fp32"), CPU, Protocol(), compiled=())
    names = ("warm", "cold", "plain", "plain cold")
    take = fake({**dict.fromkeys(names, 1e-6), "copy": 1e-3, "encode": 2e-3})
    report = timing.time_kernels(settings, lambda _: None, take)
    assert [(one.batch, one.dtype) for one in report.marginals] == [(1, "bf16"), (1, "fp32"), (2, "bf16"), (2, "fp32")]
    assert all(one.encode_ms == pytest.approx(2) for one in report.marginals)
    assert len(report.rows) == 4 * 22
    assert json.loads(json.dumps(report.to_dict()))["kernels"][0]["kernel"] == "attention_match"


def test_samples_are_taken_in_turns():
    order = []
    works = {name: Work((lambda name=name: order.append(name),)) for name in "ab"}
    timings = timer(CPU, Protocol(seconds=1e-9, samples=6, budget=1e-9, window=3, resamples=5), 0.0)(works)
    assert "".join(order[-8:]) == "abababab"
    assert {name: len(one.seconds) for name, one in timings.items()} == {"a": FEWEST, "b": FEWEST}


def test_a_short_work_is_repeated_until_a_sample_lasts():
    calls = []
    call = DeviceCall(Work((lambda: calls.append(1),) * 3), CPU, sample_s=1e-3)
    assert 0 < call() < 1e-4
    assert len(calls) > 3 * 10 and len(calls) % 3 == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["kernels"], 4, "there is nothing to time"),
        (["kernels", "--profile", "vit-b-32-8f", "--batches", "1,64", "--dtype", "fp16,bf16"], 4, "nothing to time"),
        (["kernels", "--dtype", "fp8"], 2, "--dtype: found fp8, expected of"),
        (["kernels", "--batches", "0"], 2, "found '0', expected a whole number"),
        (["kernels", "--strict"], 2, "tempme-bench kernels: found --strict, expected one of its options"),
        (["kernels", "--profile", "nowhere.toml"], 3, "nowhere.toml is not a file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_refusals(tempme_bench, monkeypatch, arguments, code, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found, out, err = tempme_bench(*arguments)
    assert (found, out) == (code, "")
    assert err.startswith("error: ") and message in err and err.count("\n") == 1


def test_tables_and_document_hold_every_row(tempme_bench, recipe, monkeypatch):
    names = ("warm", "cold", "plain", "plain cold")
    take = fake({**dict.fromkeys(names, 1e-6), "copy": 1e-3, "encode": 2e-3})
    monkeypatch.setattr(timing, "draw_checkpoint", lambda profile, seed: recipe.checkpoint)
    monkeypatch.setattr(timing, "require_gpu", lambda: CPU)
    monkeypatch.setattr(timing, "timer", lambda device, effort: take)
    monkeypatch.setattr(timing, "one_of_each_kind", lambda calls: ())
    monkeypatch.setattr("tempme_export.bench.commands.chosen_profile", lambda profile, frames: recipe.profile)
    code, out, err = tempme_bench("kernels", "--profile", "tiny")
    assert (code, err) == (0, "")
    assert "…" not in out
    assert sum("merge_norm" in line for line in out.splitlines()) == 6
    code, out, _ = tempme_bench("kernels", "--profile", "tiny", "--json")
    document = json.loads(out)
    assert code == 0
    assert len(document["kernels"]) == 22 and len(document["marginals"]) == 1
    assert {"gpu", "versions", "machine"} < set(document)


def test_a_gpu_is_required(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendError, match="nothing to time"):
        timing.require_gpu()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu(recipe):
    device = timing.require_gpu()
    protocol = Protocol(seconds=1e-4, samples=5, budget=2.0, window=3)
    settings = timing.KernelSettings((), (), (), device, protocol, compiled=(1,))
    take = timer(device, protocol, 1e-4)
    rows, cost = timing.profile_rows(recipe, 2, "bf16", settings, take, lambda _: None)
    assert len(rows) == 22 and cost is not None and cost.encode_ms > 0
    assert all(0 < row.warm_p20_us <= row.warm_us <= row.warm_p80_us for row in rows)
    assert {row.block for row in rows if row.compiled_us is not None} == {1}
