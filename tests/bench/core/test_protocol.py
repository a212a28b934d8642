"""The timing protocol under a clock that only the measured calls move: every number is known in advance."""

import itertools
import math

import numpy as np
import pytest

from tempme_export.bench.core.bootstrap import Ratio, bootstrap_ratio
from tempme_export.bench.core.protocol import FEWEST, Protocol, agree, compare
from tempme_export.bench.core.timing import Timing
from tempme_export.errors import UnstableError, UsageError


class Bench:
    """Calls that take scripted durations, in seconds, and a record of who was called when.

    interrupted  the call at which Ctrl-C comes, counted from 0 over all candidates
    device       candidate -> what its calls return
    """

    def __init__(self, *, interrupted=None, device=None, **durations):
        self.now = 0.0
        self.called = []
        self.interrupted = interrupted
        self.device = device or {}
        self.calls = {name: self._call(name, iter(series)) for name, series in durations.items()}

    def _call(self, name, series):
        returned = iter(self.device.get(name, itertools.repeat(None)))

        def call():
            if len(self.called) == self.interrupted:
                raise KeyboardInterrupt
            self.called.append(name)
            self.now += next(series)
            return next(returned)

        return call

    def clock(self):
        return self.now

    def compare(self, **protocol):
        return compare(self.calls, Protocol(**{"resamples": 50, "lead": 0.0, **protocol}), clock=self.clock)


def steady(seconds):
    return itertools.repeat(seconds)


def test_rounds_are_interleaved_in_a_fixed_order():
    bench = Bench(original=steady(0.02), ort=steady(0.01))
    comparison = bench.compare(seconds=0.1, samples=20)
    assert comparison.order == ("original", "ort")
    assert bench.called == ["original", "ort"] * (len(bench.called) // 2)


def test_each_candidate_runs_untimed_before_its_samples():
    bench = Bench(original=steady(0.02), ort=steady(0.004))
    comparison = bench.compare(seconds=0.1, samples=20, lead=0.01)
    warmup = 2 * comparison.warmup_rounds
    assert bench.called[warmup:] == (["original"] * 2 + ["ort"] * 4) * (len(bench.called[warmup:]) // 6)
    assert comparison.timings["ort"].samples == pytest.approx([0.004] * len(comparison.timings["ort"].samples))


def test_what_a_neighbour_leaves_behind_is_not_timed():
    bench = Bench()

    def after_a_neighbour():
        while True:
            yield 0.01 if bench.called[-2:] == ["ort", "ort"] else 0.03

    bench.calls = {name: bench._call(name, series) for name, series in
                   {"original": steady(0.02), "ort": after_a_neighbour()}.items()}  # fmt: skip
    assert set(np.round(bench.compare(seconds=0.1, samples=20, lead=0.01).timings["ort"].samples, 6)) == {0.01}
    assert set(np.round(bench.compare(seconds=0.1, samples=20).timings["ort"].samples, 6)) == {0.03}


def test_the_lead_is_part_of_the_budget():
    def rounds(lead):
        bench = Bench(original=steady(0.1), wild=lognormal(3, 1.0, 0.1))
        return len(bench.compare(seconds=0.01, samples=5, budget=12, lead=lead).timings["wild"].samples)

    assert FEWEST < rounds(0.01) < 0.7 * rounds(0.0)


def test_one_alone_has_no_neighbour():
    bench = Bench(original=steady(0.02))
    comparison = bench.compare(seconds=0.1, samples=20, lead=0.01)
    assert len(bench.called) == comparison.warmup_rounds + len(comparison.timings["original"].samples)


def test_no_sample_is_dropped():
    warmup = 9  # three windows, each ended by its time after three rounds
    spiked = [0.01] * warmup + [0.01] * 10 + [5.0] + [0.01] * 100
    comparison = Bench(original=spiked).compare(seconds=0.1, samples=20)
    timing = comparison.timings["original"]
    assert comparison.warmup_rounds == warmup
    assert max(timing.samples) == pytest.approx(5.0)
    assert timing.samples[:10] == pytest.approx([0.01] * 10)


def test_three_windows_of_25_settle_a_short_sample():
    comparison = Bench(original=steady(2**-7)).compare(seconds=10, samples=200)
    assert comparison.warmup_windows == (25, 25, 25)
    assert len(comparison.timings["original"].samples) == 10 * 2**7  # 10 s, though 200 samples would do
    assert comparison.notes == ()


def test_warm_up_goes_on_until_the_last_three_windows_agree():
    falling = itertools.chain([0.4] * 25, [0.2] * 25, steady(0.1))
    comparison = Bench(original=falling).compare(seconds=60, samples=200, budget=600)
    assert len(comparison.warmup_windows) == 5
    assert comparison.timings["original"].steady


def test_the_warm_up_ends_with_a_sixth_of_the_budget():
    rising = itertools.count(0.01, 0.001)
    comparison = Bench(original=rising, ort=steady(0.01)).compare(seconds=1, samples=20, budget=30)
    assert not comparison.timings["original"].steady and comparison.timings["ort"].steady
    assert sum(0.02 + 0.001 * i for i in range(comparison.warmup_rounds)) == pytest.approx(5, rel=0.2)


def test_calm_ratios_end_the_rounds_at_the_first_look():
    comparison = Bench(original=steady(0.5), ort=steady(0.25)).compare(seconds=1, samples=20, budget=600)
    assert [len(timing.samples) for timing in comparison.timings.values()] == [20, 20]
    assert not comparison.unconverged and comparison.notes == (
        "warm-up windows of 3 samples, fewer than 25: a window ends after 0.2 s",
    )


def lognormal(seed, spread, seconds):
    """Independent durations around `seconds`."""
    generator = np.random.default_rng(seed)
    return (seconds * math.exp(generator.normal(0, spread)) for _ in itertools.count())


def shaken(seed, spread, **seconds):
    """Durations that drift and jump together by `spread`, as on a machine that others use; each has 1 % of its own."""
    generator = np.random.default_rng(seed)
    shared = [math.exp(one) for one in generator.normal(0, spread, 4000)]
    return {name: map(lambda a, b: a * b, shared, lognormal(seed + i, 0.01, value)) for i, (name, value) in
            enumerate(seconds.items(), 1)}  # fmt: skip


def test_a_noisy_machine_whose_ratio_is_stable_converges():
    comparison = Bench(**shaken(5, 0.3, original=0.2, ort=0.1)).compare(resamples=200)
    ort = comparison.timings["ort"]
    assert ort.cov > 0.2 and not ort.steady
    assert ort.converged and ort.half_width < 0.02 and len(ort.samples) == 20
    assert ort.ratio.low < 2 < ort.ratio.high
    comparison.require_converged()


def test_an_injected_slow_down_of_a_tenth_is_found_and_a_run_beside_itself_is_not():
    found = []
    for seed in range(12):
        times = {"original": 0.2, "same": 0.2, "slowed": 0.22}
        comparison = Bench(**shaken(100 * seed, 0.2, **times)).compare(resamples=200)
        same, slowed = comparison.timings["same"].ratio, comparison.timings["slowed"].ratio
        found.append((same.low <= 1 <= same.high, slowed.high < 1))
    assert all(slower for _, slower in found)
    assert sum(alike for alike, _ in found) >= 11


def test_rounds_are_added_where_the_ratio_is_open():
    durations = {"original": steady(0.1), "calm": steady(0.1), "wild": lognormal(3, 0.25, 0.1)}
    comparison = Bench(**durations).compare(resamples=200)
    base, calm, wild = (comparison.timings[name] for name in durations)
    assert len(calm.samples) == 20 and len(base.samples) == len(wild.samples) > 30
    assert calm.converged and wild.converged and wild.half_width <= 0.05


def test_the_end_of_the_budget_is_said_with_what_is_left():
    durations = {"original": steady(0.1), "wild": lognormal(3, 0.8, 0.1)}
    comparison = Bench(**durations).compare(budget=12, resamples=200)
    wild = comparison.timings["wild"]
    assert sum(wild.samples) + 0.1 * len(wild.samples) == pytest.approx(12, abs=1)
    assert [timing.name for timing in comparison.unconverged] == ["wild"] and wild.half_width > 0.05
    rounds = len(wild.samples) * ((wild.half_width / 0.05) ** 2 - 1)
    assert wild.needs == pytest.approx(rounds * (0.1 + np.median(wild.samples)))
    *_, ended, open_ratio = comparison.notes
    assert ended == f"the budget of 12 s ended after {len(wild.samples)} rounds"
    assert open_ratio.startswith("the ratio of wild has not converged: it is known within ") and " s more" in open_ratio
    with pytest.raises(UnstableError, match=r"ratio of wild .* Measure longer with --budget") as caught:
        comparison.require_converged()
    assert caught.value.exit_code == 7


def test_what_is_not_judged_need_not_converge():
    durations = {"original": steady(0.1), "resident": lognormal(3, 0.8, 0.1)}
    bench = Bench(**durations)
    comparison = compare(bench.calls, Protocol(resamples=50), judged=["original"], clock=bench.clock)
    assert not comparison.unconverged and len(comparison.timings["resident"].samples) == 20


def test_even_a_sample_beyond_the_budget_is_taken_a_few_times():
    comparison = Bench(original=steady(1000.0)).compare(seconds=1, samples=200)
    assert len(comparison.timings["original"].samples) == FEWEST


def test_statistics():
    samples = (0.1, 0.2, 0.3, 0.4, 0.5)
    timing = Timing("original", samples, steady=True, ratio=Ratio(1.0, 1.0, 1.0))
    assert timing.p50 == pytest.approx(0.3)
    assert timing.p90 == pytest.approx(0.46)
    assert timing.p99 == pytest.approx(0.496)
    assert timing.mean == pytest.approx(0.3)
    assert timing.cov == pytest.approx(np.std(samples, ddof=1) / 0.3)


def test_drift_after_the_warm_up_is_not_steady():
    drifting = itertools.chain([0.01] * 75, [0.01] * 40, [0.02] * 1000)
    timing = Bench(original=drifting).compare(seconds=1, samples=60, window=25).timings["original"]
    assert not timing.steady and timing.converged


def test_one_spike_leaves_it_steady():
    spiked = itertools.chain([0.01] * 75, [0.01] * 40, [1.0], steady(0.01))
    assert Bench(original=spiked).compare(seconds=3, samples=100, window=25).timings["original"].steady


@pytest.mark.parametrize(
    ("medians", "expected"), [((1.0, 1.04, 1.02), True), ((1.0, 1.06, 1.0), False)], ids=["within", "beyond"]
)
def test_agreement_is_relative_to_the_smallest(medians, expected):
    assert agree([np.full(5, m) for m in medians], 0.05) is expected


def test_ratio_of_the_first_to_itself_is_one():
    first = Bench(original=itertools.cycle([0.01, 0.02, 0.03])).compare(seconds=1, samples=30).timings["original"]
    assert (first.ratio.value, first.ratio.low, first.ratio.high) == (1.0, 1.0, 1.0)


def test_ratio_says_how_many_times_as_fast():
    comparison = Bench(original=steady(0.03), ort=steady(0.01)).compare(seconds=1, samples=30)
    assert comparison.timings["ort"].ratio.value == pytest.approx(3.0)


def test_ratio_has_the_interval_of_the_bootstrap_over_rounds():
    generator = np.random.default_rng(1)
    durations = {name: generator.uniform(1, 2, 200) for name in ("original", "ort")}
    comparison = Bench(**durations).compare(seconds=20, samples=40, seed=4, half_width=1.0)
    base, other = (np.array(comparison.timings[name].samples) for name in durations)
    assert comparison.timings["ort"].ratio == bootstrap_ratio(base, other, resamples=50, seed=4)


WARMUP = 2 * 9  # calls of two candidates in three windows of three rounds each


@pytest.mark.parametrize("cut", [0, 1], ids=["between rounds", "within a round"])
def test_ctrl_c_keeps_the_rounds_that_were_measured(cut):
    durations = itertools.chain([0.02] * 9, [0.04, 0.02, 0.02, 0.02, 0.02, 0.02, 0.04, 9.0])
    bench = Bench(interrupted=WARMUP + 2 * 7 + cut, original=durations, ort=steady(0.01))
    comparison = bench.compare(seconds=0.1, samples=20)
    assert comparison.interrupted
    assert "interrupted after 7 rounds" in comparison.notes
    assert comparison.timings["original"].samples == pytest.approx((0.04, 0.02, 0.02, 0.02, 0.02, 0.02, 0.04))
    assert len(comparison.timings["ort"].samples) == 7
    assert comparison.timings["ort"].ratio.value == pytest.approx(2.0)


def test_ctrl_c_after_the_fewest_rounds_is_just_enough():
    bench = Bench(interrupted=WARMUP + 2 * FEWEST, original=steady(0.02), ort=steady(0.01))
    assert len(bench.compare(seconds=0.1, samples=20).timings["ort"].samples) == FEWEST


@pytest.mark.parametrize("at", [0, WARMUP - 1, WARMUP, WARMUP + 2 * FEWEST - 1])
def test_ctrl_c_passes_before_there_is_anything_to_keep(at):
    bench = Bench(interrupted=at, original=steady(0.02), ort=steady(0.01))
    with pytest.raises(KeyboardInterrupt):
        bench.compare(seconds=0.1, samples=20)


def test_a_run_to_its_end_is_not_interrupted():
    comparison = Bench(original=steady(2**-7)).compare(seconds=10, samples=200)
    assert not comparison.interrupted


def test_device_seconds_are_kept_where_a_call_gives_them():
    bench = Bench(
        device={"pt2": itertools.count(0.0, 0.5), "ort": itertools.repeat(np.ones(3))},
        original=steady(0.02),
        pt2=steady(0.01),
        ort=steady(0.01),
    )
    timings = bench.compare(seconds=0.1, samples=20).timings
    warmup = 9
    assert timings["pt2"].device_samples == tuple(0.5 * (warmup + i) for i in range(len(timings["pt2"].samples)))
    assert timings["original"].device_samples == timings["ort"].device_samples == ()


def test_device_seconds_given_now_and_then_are_none():
    bench = Bench(device={"original": itertools.cycle([0.1, None])}, original=steady(0.02))
    assert bench.compare(seconds=0.1, samples=20).timings["original"].device_samples == ()


@pytest.mark.parametrize(
    "wrong", [{"seconds": 0}, {"budget": 0}, {"samples": FEWEST - 1}, {"seed": -1}, {"lead": -0.1}], ids=str
)
def test_protocols_that_cannot_be_are_refused(wrong):
    with pytest.raises(UsageError) as caught:
        Protocol(**wrong)
    assert caught.value.exit_code == 2


def test_progress_is_told():
    told = []
    bench = Bench(original=steady(0.1))
    compare(bench.calls, Protocol(seconds=1, samples=20, resamples=5), clock=bench.clock, progress=told.append)
    assert told[0].startswith("warm-up: ") and told[-1].startswith("measuring: 20 rounds")
