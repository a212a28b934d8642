"""The timing protocol under a clock that only the measured calls move: every number is known in advance."""

import itertools

import numpy as np
import pytest

from tempme_export.bench.bootstrap import Ratio, bootstrap_ratio
from tempme_export.bench.timing import FEWEST, Protocol, Timing, agree, compare
from tempme_export.errors import UnstableError, UsageError


class Bench:
    """Calls that take scripted durations, in seconds, and a record of who was called when.

    interrupted  the call at which Ctrl-C comes, counted from 0 over all contenders
    device       contender -> what its calls return
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
        return compare(self.calls, Protocol(**{"resamples": 50, **protocol}), clock=self.clock)


def steady(seconds):
    return itertools.repeat(seconds)


def test_rounds_are_interleaved_in_a_fixed_order():
    bench = Bench(original=steady(0.02), ort=steady(0.01))
    comparison = bench.compare(seconds=0.1, samples=20)
    assert comparison.order == ("original", "ort")
    assert bench.called == ["original", "ort"] * (len(bench.called) // 2)


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
    comparison = Bench(original=falling).compare(seconds=60, samples=200)
    assert len(comparison.warmup_windows) == 5
    assert comparison.timings["original"].stable


def test_long_samples_shorten_windows_and_measurement_and_it_is_said():
    comparison = Bench(original=steady(2.0), ort=steady(0.5)).compare(seconds=10, samples=200)
    assert comparison.warmup_windows == (3, 3, 3)
    assert len(comparison.timings["original"].samples) == 15  # the limit is three times the seconds asked for
    windows, samples, short = comparison.notes
    assert "windows of 3 samples, fewer than 25" in windows
    assert "15 samples, fewer than 200: one of original takes 2 s and the limit is 30 s" in samples
    assert short.startswith("ort was measured for 7.5 s, less than 10 s")


def test_a_fast_backend_beside_a_slow_one_is_measured_for_less_and_it_is_said():
    comparison = Bench(original=steady(1.0), ort=steady(0.01)).compare(seconds=10, samples=50)
    assert len(comparison.timings["ort"].samples) == 30
    assert any(note.startswith("ort was measured for 0.3 s, less than 10 s") for note in comparison.notes)


def test_even_a_sample_beyond_the_limit_is_taken_a_few_times():
    comparison = Bench(original=steady(1000.0)).compare(seconds=1, samples=200)
    assert len(comparison.timings["original"].samples) == FEWEST


def test_statistics():
    samples = (0.1, 0.2, 0.3, 0.4, 0.5)
    timing = Timing("original", samples, settled=True, steady=True, ratio=Ratio(1.0, 1.0, 1.0))
    assert timing.p50 == pytest.approx(0.3)
    assert timing.p90 == pytest.approx(0.46)
    assert timing.p99 == pytest.approx(0.496)
    assert timing.mean == pytest.approx(0.3)
    assert timing.cov == pytest.approx(np.std(samples, ddof=1) / 0.3)


def test_never_settled_is_unstable():
    rising = itertools.count(0.01, 0.001)
    comparison = Bench(original=rising, ort=steady(0.01)).compare(seconds=1, samples=20)
    assert not comparison.timings["original"].settled
    assert comparison.timings["ort"].stable
    with pytest.raises(UnstableError, match="measurement of original did not settle") as caught:
        comparison.require_stable()
    assert caught.value.exit_code == 7


def test_drift_after_the_warm_up_is_unstable():
    drifting = itertools.chain([0.01] * 75, [0.01] * 40, [0.02] * 1000)
    timing = Bench(original=drifting).compare(seconds=1, samples=60, window=25).timings["original"]
    assert timing.settled and not timing.steady and not timing.stable


def test_one_spike_does_not_make_it_unstable():
    spiked = itertools.chain([0.01] * 75, [0.01] * 40, [1.0], steady(0.01))
    comparison = Bench(original=spiked).compare(seconds=3, samples=100, window=25)
    comparison.require_stable()
    assert comparison.timings["original"].stable


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
    comparison = Bench(**durations).compare(seconds=20, samples=40, seed=4)
    base, other = (np.array(comparison.timings[name].samples) for name in durations)
    assert comparison.timings["ort"].ratio == bootstrap_ratio(base, other, resamples=50, seed=4)


WARMUP = 2 * 9  # calls of two contenders in three windows of three rounds each


@pytest.mark.parametrize("cut", [0, 1], ids=["between rounds", "within a round"])
def test_ctrl_c_keeps_the_rounds_that_were_measured(cut):
    durations = itertools.chain([0.02] * 9, [0.04, 0.02, 0.02, 0.02, 0.02, 0.02, 0.04, 9.0])
    bench = Bench(interrupted=WARMUP + 2 * 7 + cut, original=durations, ort=steady(0.01))
    comparison = bench.compare(seconds=0.1, samples=20)
    assert comparison.interrupted
    assert comparison.notes[-1] == "interrupted after 7 rounds"
    assert not any("fewer than 20" in note for note in comparison.notes)
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


@pytest.mark.parametrize("wrong", [{"seconds": 0}, {"samples": FEWEST - 1}, {"seed": -1}], ids=str)
def test_protocols_that_cannot_be_are_refused(wrong):
    with pytest.raises(UsageError) as caught:
        Protocol(**wrong)
    assert caught.value.exit_code == 2


def test_progress_is_told():
    told = []
    bench = Bench(original=steady(0.1))
    compare(bench.calls, Protocol(seconds=1, samples=20, resamples=5), clock=bench.clock, progress=told.append)
    assert told[0].startswith("warm-up: ") and told[-1].startswith("measuring: 20 rounds")
