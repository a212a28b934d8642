"""The kernel benchmark: its calls, bytes, sums and rows, and what it refuses; on a GPU, a small run of it."""

import dataclasses
import json
import math
from types import SimpleNamespace

import pytest
import torch

from tempme_export.bench.core.bootstrap import Ratio
from tempme_export.bench.core.clocks import DeviceCall, Work, timer
from tempme_export.bench.core.protocol import FEWEST, Protocol
from tempme_export.bench.core.timing import Timing
from tempme_export.bench.kernels import timing
from tempme_export.bench.kernels.calls import fused_calls, merging_calls, moved_bytes
from tempme_export.bench.kernels.timing import Encoder
from tempme_export.bench.tables.gpu import kernel_tables
from tempme_export.encoder.model import VideoEncoder
from tempme_export.encoder.profile import Expect, load_profile
from tempme_export.encoder.random_weights import draw_checkpoint
from tempme_export.encoder.recipe import prepare
from tempme_export.encoder.schedule import MergePolicy

CPU = torch.device("cpu")
BATCH = 3  # not a power of two, and not the number of frames or clips
NAMES = ("warm", "cold", "plain", "plain cold")


@pytest.fixture(scope="module")
def recipe(one_thread):
    """Four blocks of width 64; the second joins 8 clips by twos, the third all of them."""
    profile = load_profile("mini-8f")
    return prepare(draw_checkpoint(profile, 0), profile)


def calls_of(recipe, dtype=torch.bfloat16):
    size = recipe.backbone.image_size
    frames = torch.randn(BATCH, recipe.profile.frames, 3, size, size, generator=torch.Generator().manual_seed(0))
    return list(merging_calls(fused_calls(VideoEncoder(recipe, dtype), frames)))


@pytest.fixture(scope="module")
def calls(recipe):
    """Every call of the tiny encoder in bfloat16."""
    return calls_of(recipe)


def test_bytes_by_hand(calls):
    """At width 64 in two bytes, of the first block: 24 clips of 17 tokens, of which two merge."""
    tokens, left = BATCH * 8 * 17, BATCH * 8 * 15
    moved = {call.name: moved_bytes(call.inputs, call.run(*call.inputs)) for call in calls[:4]}
    assert moved["attention"] == 4 * tokens * 64 * 2
    assert moved["attention_match"] == 4 * tokens * 64 * 2 + 4 * tokens
    assert moved["add_norm"] == 4 * tokens * 64 * 2 + 2 * 64 * 4
    read = 2 * tokens * 64 * 2 + 4 * tokens + 2 * 64 * 4
    assert moved["merge_norm"] == read + 2 * left * 64 * 2 + 2 * left * 4


def test_the_calls_are_the_encoders(recipe, calls):
    across = ["match_clips", "merge_norm", "add_norm"]
    within = ["attention_match", "attention", "merge_norm", "add_norm"]
    expected = []
    for block in recipe.schedule.blocks:
        expected += [(block.index, name) for name in (across if block.r_cross else []) + within]
    assert [(call.block, call.name) for call in calls] == expected
    assert {call.name for call in calls if call.sign < 0} == {"add_norm", "attention"}
    assert calls[0].inputs[1] is None, "the first attention has no sizes"
    first_merge = calls[2].inputs
    assert first_merge[1] is not None and first_merge[2] is None
    assert calls[0].shape == f"{BATCH * 8} x 17 x 192"


def test_nothing_merges_without_merging(recipe):
    none = MergePolicy(0, (), (), 0, 0)
    profile = dataclasses.replace(recipe.profile, merge=none, expect=Expect())
    schedule = profile.schedule(recipe.backbone)
    assert calls_of(dataclasses.replace(recipe, profile=profile, schedule=schedule)) == []


def fake(seconds):
    """A timer that knows the answer: {name: seconds per call}, from 20 % below to 20 % above."""

    def of(name):
        samples = tuple(seconds[name] * (1 + part) for part in (-0.2, -0.1, 0, 0, 0.1, 0.2))
        return Timing(name, (9.0,) * 6, True, Ratio(1.0, 1.0, 1.0), device_samples=samples)

    return lambda works: {name: of(name) for name in works}


def test_a_row_holds_what_the_timer_said(recipe, calls):
    encoder = Encoder(recipe, 3, "bf16", CPU)
    times = {"warm": 1e-6, "cold": 2e-6, "plain": 30e-6, "plain cold": 50e-6}
    row = timing.kernel_row(encoder, calls[0], 4_000_000, fake(times)(times), copy_gb_s=4000.0)
    name = recipe.profile.name
    assert (row.profile, row.batch, row.dtype, row.block, row.kernel) == (name, 3, "bf16", 0, "attention_match")
    assert (row.sign, row.mbytes) == (1, 4.0)
    found = (row.warm_us, row.cold_us, row.cold_p20_us, row.cold_p80_us, row.warm_gb_s, row.cold_gb_s)
    assert found == pytest.approx((1, 2, 1.8, 2.2, 4000, 2000))
    assert (row.share_of_copy, row.plain_cold_us) == pytest.approx((0.5, 50))
    assert row.compiled_us is None and row.compiled_cold_us is None
    times |= {"compiled": 5e-6, "compiled cold": 6e-6}
    row = timing.kernel_row(encoder, calls[0], 4_000_000, fake(times)(times), copy_gb_s=4000.0)
    assert (row.compiled_us, row.compiled_cold_us) == pytest.approx((5, 6))


def test_merging_costs_what_is_there_less_what_would_be_there(recipe, calls):
    encoder = Encoder(recipe, 3, "bf16", CPU)
    times = {"warm": 1e-6, "cold": 2e-6, "plain": 1.0, "plain cold": 1.0}
    some = [call for call in calls if call.block in (0, 2)]
    rows = [timing.kernel_row(encoder, call, 1, fake(times)(times), 1.0) for call in some]
    rows = [dataclasses.replace(row, warm_us=5.0) if row.kernel == "match_clips" else row for row in rows]
    cost = timing.marginal_row(rows, encode_s=1e-3)
    # Block 0: two calls less two. Block 2: four less three, one of them the match that takes 5 us when warm.
    assert cost.warm_us_by_block == pytest.approx({0: 0, 2: 5})
    assert cost.cold_us_by_block == pytest.approx({0: 0, 2: 2})
    assert (cost.warm_ms, cost.cold_ms, cost.encode_ms) == pytest.approx((0.005, 0.002, 1.0))
    assert (cost.warm_share, cost.cold_share) == pytest.approx((0.005, 0.002))


def test_cold_inputs_push_one_another_out(calls):
    inputs = calls[0].inputs
    sets = timing.input_sets(inputs, 200_000, l2=300_000)
    assert len(sets) == math.ceil(4 * 300_000 / 200_000) + 1
    assert len({one[0].data_ptr() for one in sets}) == len(sets)
    for one in sets[1:]:
        torch.testing.assert_close(one[0], sets[0][0], rtol=0, atol=0)


def test_blocks_that_are_compiled_too(calls):
    assert timing.one_of_each_kind(calls) == (1,)
    assert timing.one_of_each_kind([]) == ()
    assert timing.one_of_each_kind([SimpleNamespace(block=4, name="match_clips")]) == (4,)


def test_a_run_from_encoders_to_rows_and_tables(recipe):
    encoders = [Encoder(recipe, batch, dtype, CPU, compiled=()) for batch in (1, 2) for dtype in ("bf16", "fp32")]
    take = fake({**dict.fromkeys(NAMES, 1e-6), "copy": 1e-3, "encode": 2e-3})
    found = json.loads(json.dumps(timing.time_encoders(encoders, take, lambda _: None)))
    settings = [(one["batch"], one["dtype"]) for one in found["marginals"]]
    assert settings == [(1, "bf16"), (1, "fp32"), (2, "bf16"), (2, "fp32")]
    assert all(one["encode_ms"] == pytest.approx(2) for one in found["marginals"])
    assert len(found["kernels"]) == 4 * 22 and found["kernels"][0]["kernel"] == "attention_match"
    tables = list(kernel_tables(found["kernels"], found["marginals"]))
    assert [len(table.rows) for table in tables] == [22] * 8 + [4]
    assert sum("merge_norm" in row for row in tables[0].rows) == 6
    assert tables[0].caption.startswith(f"{recipe.profile.name}, batch 1, bf16: ")


def test_encoders_are_drawn_once_for_each_profile():
    said = []
    found = list(timing.drawn_encoders([load_profile("mini-8f")], (1, 4), ("fp32",), CPU, said.append))
    assert said == ["mini-8f: drawing weights"] and [str(one) for one in found] == [
        "mini-8f, batch 1, fp32", "mini-8f, batch 4, fp32",
    ]  # fmt: skip
    assert found[0].recipe is found[1].recipe


def test_samples_are_taken_in_turns():
    order = []
    works = {name: Work((lambda name=name: order.append(name),)) for name in "ab"}
    timings = timer(CPU, Protocol(seconds=1e-9, samples=6, budget=1e-9, window=3, lead=0.0, resamples=5), 0.0)(works)
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
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_refusals(tempme_bench, arguments, code, message):
    found, out, err = tempme_bench(*arguments)
    assert (found, out) == (code, "")
    assert err.startswith("error: ") and message in err and err.count("\n") == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu(recipe):
    device = timing.require_gpu()
    protocol = Protocol(seconds=1e-4, samples=5, budget=2.0, window=3)
    take = timer(device, protocol, 1e-4)
    rows, cost = timing.time_encoder(Encoder(recipe, 2, "bf16", device, compiled=(1,)), take, lambda _: None)
    assert len(rows) == 22 and cost is not None and cost.encode_ms > 0
    assert all(0 < row.warm_p20_us <= row.warm_us <= row.warm_p80_us for row in rows)
    assert {row.block for row in rows if row.compiled_us is not None} == {1}
