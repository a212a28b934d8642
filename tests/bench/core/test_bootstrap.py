"""Intervals hold what they promise where samples depend on each other: simulated, with the truth known."""

import math

import numpy as np
import pytest

from tempme_export.bench.core.bootstrap import RUN_TO_RUN, Estimate, block_length, bootstrap_ratio, estimate, student_t


def autoregressive(generator, shape, persistence, deviation):
    """AR(1) along the last axis: each value remembers `persistence` of the one before; stationary."""
    noise = generator.normal(0, deviation, shape)
    series = np.empty(shape)
    series[..., 0] = noise[..., 0]
    for i in range(1, shape[-1]):
        series[..., i] = persistence * series[..., i - 1] + math.sqrt(1 - persistence**2) * noise[..., i]
    return series


def runs(generator, count, rounds, persistence, truth=2.0):
    """`count` runs of two candidates, [rounds] seconds each: slow moments of the machine, and own noise."""
    machine = autoregressive(generator, (count, rounds), 0.98, 0.1)
    own = autoregressive(generator, (2, count, rounds), persistence, 0.03)
    return list(zip(truth * np.exp(machine + own[0]), np.exp(machine + own[1]), strict=True))


def interval_of_single_rounds(base, other, resamples, generator):
    """The plain bootstrap, which takes rounds as independent."""
    drawn = generator.integers(len(base), size=(resamples, len(base)))
    return np.percentile(np.median((base / other)[drawn], axis=1), (2.5, 97.5))


@pytest.mark.parametrize(("rounds", "persistence"), [(50, 0.5), (150, 0.7)])
def test_coverage_is_nominal_where_single_rounds_fall_short(rounds, persistence):
    generator = np.random.default_rng(11)
    truth, count, blocks, single = 2.0, 200, 0, 0
    for seed, (base, other) in enumerate(runs(generator, count, rounds, persistence, truth)):
        ratio = estimate(base / other, resamples=150, seed=seed).ratio()
        blocks += ratio.low <= truth <= ratio.high
        low, high = interval_of_single_rounds(base, other, 150, generator)
        single += low <= truth <= high
    assert 0.91 <= blocks / count <= 0.99
    assert single / count < 0.88
    assert blocks > single


def test_two_runs_agree_within_their_own_intervals():
    """Though each process has its own place in memory, which no sample of it shows."""
    generator = np.random.default_rng(12)
    drawn = [(b * np.exp(generator.normal(0, RUN_TO_RUN)), o) for b, o in runs(generator, 200, 400, 0.3)]
    ratios = [bootstrap_ratio(*run, resamples=100, seed=0) for run in drawn]
    agree = [a.low <= b.high and b.low <= a.high for a, b in zip(ratios[::2], ratios[1::2], strict=True)]
    assert np.mean(agree) >= 0.97
    assert np.mean([ratio.low <= 2.0 <= ratio.high for ratio in ratios]) >= 0.92


@pytest.mark.parametrize("persistence", [0.0, 0.5])
def test_five_rounds_are_enough_for_an_honest_interval(persistence):
    drawn = runs(np.random.default_rng(13), 300, 5, persistence)
    found = [estimate(base / other, resamples=200, seed=0).ratio() for base, other in drawn]
    assert np.mean([ratio.low <= 2.0 <= ratio.high for ratio in found]) >= 0.92
    assert np.median([ratio.high / ratio.low for ratio in found]) < 1.5


def test_the_interval_is_no_wider_than_it_has_to_be():
    """Independent rounds: within 1.5 of what the theory of medians says, sqrt(pi / 2 / n) of the ratio's deviation."""
    generator = np.random.default_rng(14)
    own = np.exp(generator.normal(0, 0.03, (100, 2, 400)))
    widths = [np.log(r.high / r.low) for r in (estimate(b / o, resamples=300, seed=0).ratio() for b, o in own)]
    expected = 2 * 1.96 * 0.03 * math.sqrt(2) * math.sqrt(math.pi / 2 / 400)
    assert expected < np.mean(widths) < 1.5 * expected


def test_the_error_is_that_of_blocks_drawn_one_by_one():
    series = np.exp(autoregressive(np.random.default_rng(15), (37,), 0.5, 0.1))
    found = estimate(series, resamples=40, seed=3)
    block = block_length(np.array([sum(other < one for other in series) for one in series], dtype=float))
    count = -(-37 // block)
    logs = []
    for starts in np.random.default_rng(3).integers(37, size=(40, count, 1))[:, :, 0]:
        drawn = [series[(start + step) % 37] for start in starts for step in range(block)][:37]
        logs.append(math.log(sorted(drawn)[18]))
    assert found.error == pytest.approx(np.std(logs, ddof=1) / math.sqrt(1 - block / 37))
    assert found.freedom == count - 1
    assert found.log == pytest.approx(math.log(sorted(series)[18]))


def test_memory_is_bounded_and_nothing_else_changes():
    series = np.random.default_rng(16).uniform(1, 2, 50)
    whole = estimate(series, resamples=200, seed=0)
    assert estimate(series, resamples=200, seed=0, at_once=170) == whole


def test_slow_moments_of_the_machine_cancel_within_a_round():
    """Not in the ratio of medians: each falls into another moment."""
    generator = np.random.default_rng(17)
    base, other = zip(*runs(generator, 100, 100, 0.3), strict=True)
    of_rounds = [bootstrap_ratio(*run, resamples=2, seed=0).value for run in zip(base, other, strict=True)]
    of_medians = np.median(base, axis=1) / np.median(other, axis=1)
    assert np.std(of_rounds) < 0.8 * np.std(of_medians)


def test_a_seed_gives_the_same_interval():
    base, other = np.random.default_rng(1).uniform(1, 2, (2, 40))
    first = bootstrap_ratio(base, other, resamples=200, seed=0)
    assert first == bootstrap_ratio(base, other, resamples=200, seed=0)
    assert first != bootstrap_ratio(base, other, resamples=200, seed=1)
    assert first.low < first.value < first.high


def test_rounds_are_drawn_for_both():
    """What slows a whole round slows both: paired, the ratio is certain within a run, though the times are not."""
    generator = np.random.default_rng(2)
    base = generator.uniform(1, 3, 41)
    paired = bootstrap_ratio(base, base / 2, resamples=200, seed=0)
    assert (paired.low, paired.high) == pytest.approx((2.0 * math.exp(-1.96 * 0.01), 2.0 * math.exp(1.96 * 0.01)), 1e-4)
    shuffled = bootstrap_ratio(base, generator.permutation(base) / 2, resamples=200, seed=0)
    assert shuffled.high - shuffled.low > 0.1


def test_interval_narrows_with_rounds():
    generator = np.random.default_rng(3)
    widths = []
    for n in (30, 300):
        ratio = estimate(generator.normal(2, 0.1, n) / generator.normal(1, 0.05, n), resamples=400, seed=0).ratio()
        assert ratio.low < 2.0 < ratio.high
        widths.append(ratio.high - ratio.low)
    assert widths[1] < widths[0] / 2


@pytest.mark.parametrize("persistence", [0.5, 0.7, 0.8])
def test_block_length_follows_the_optimum_for_a_known_autocorrelation(persistence):
    """AR(1): G / g(0) = 2 p / (1 - p^2), so the optimum is (1.5 (2 p / (1 - p^2))^2 n)^(1/3); twice that is taken."""
    n = 4000
    optimum = (1.5 * (2 * persistence / (1 - persistence**2)) ** 2 * n) ** (1 / 3)
    found = [block_length(one) for one in autoregressive(np.random.default_rng(4), (20, n), persistence, 1.0)]
    assert np.median(found) == pytest.approx(2 * optimum, rel=0.25)


@pytest.mark.parametrize("n", [2, 3, 5, 8, 27, 200])
def test_block_length_has_a_least_and_a_most(n):
    shortest = math.ceil(n ** (1 / 3))
    assert block_length(np.zeros(n)) == min(2 * shortest, max(shortest, n // 3))
    walk = np.random.default_rng(5).normal(size=n).cumsum()
    assert shortest <= block_length(walk) <= max(shortest, n // 3)


def test_a_coarse_clock_is_no_drift():
    """Two values in random order: independent, though nearly all are equal to others."""
    coarse = np.random.default_rng(7).choice([1.0, 1.1], 200)
    least = 2 * 6
    assert estimate(coarse, resamples=20, seed=0).freedom == math.ceil(200 / least) - 1
    assert estimate(np.ones(200), resamples=20, seed=0) == Estimate(0.0, 0.0, math.ceil(200 / least) - 1)


def test_a_spike_hides_no_autocorrelation():
    """A spike would drown what the other rounds share; ranks do not know how high it is."""
    generator = np.random.default_rng(6)
    base = np.exp(autoregressive(generator, (200,), 0.9, 0.03))
    spiked = base.copy()
    spiked[77] = 100.0
    other = np.exp(generator.normal(0, 0.001, 200))
    calm, disturbed = (bootstrap_ratio(one, other, resamples=300, seed=0) for one in (base, spiked))
    assert disturbed.high / disturbed.low == pytest.approx(calm.high / calm.low, rel=0.15)


@pytest.mark.parametrize(
    ("level", "freedom", "printed"),
    [
        *((0.95, freedom, t) for freedom, t in ((1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (9, 2.262))),
        *((0.99, freedom, t) for freedom, t in ((1, 63.657), (5, 4.032), (10, 3.169), (30, 2.750))),
        (0.95, 1000, 1.962),
    ],
)
def test_students_t_is_that_of_printed_tables(level, freedom, printed):
    assert student_t(level, freedom) == pytest.approx(printed, abs=6e-4)


def test_difference_of_estimates():
    """Errors add as squares; Welch and Satterthwaite: equal errors add their degrees of freedom."""
    difference = Estimate(0.5, 0.3, 7).minus(Estimate(0.2, 0.4, 9))
    assert (difference.log, difference.error) == pytest.approx((0.3, 0.5))
    assert difference.freedom == int(0.25**2 / (0.09**2 / 7 + 0.16**2 / 9))
    assert Estimate(0, 0.1, 5).minus(Estimate(0, 0.1, 5)).freedom == 10
    assert Estimate(1, 0.0, 5).minus(Estimate(0, 0.0, 8)) == Estimate(1, 0.0, 5)


def test_across_runs_the_error_is_larger_by_what_differs_between_them():
    across = Estimate(0.3, 0.0, 4).across_runs()
    assert (across.log, across.error) == pytest.approx((0.3, RUN_TO_RUN))
    assert Estimate(0.3, 0.02, 4).across_runs().error == pytest.approx(math.hypot(0.02, RUN_TO_RUN))
    assert Estimate(0.3, 1.0, 4).across_runs().freedom == 4
    assert Estimate(0.3, 0.0, 4, spread=0.039).across_runs().error == pytest.approx(RUN_TO_RUN)
    assert Estimate(0.3, 0.0, 4, spread=0.2).across_runs().error == pytest.approx(0.05)


def test_the_spread_of_rounds_is_not_that_of_spikes():
    series = np.exp(np.random.default_rng(8).normal(0, 0.04, 1000))
    series[::50] *= 30
    assert estimate(series, resamples=2, seed=0).spread == pytest.approx(0.04, rel=0.1)


def test_a_higher_level_is_wider():
    one = Estimate(math.log(2), 0.1, 6)
    usual, wide = one.ratio(), one.ratio(0.995)
    assert wide.low < usual.low < usual.value == pytest.approx(2.0)
    assert usual.value < usual.high < wide.high
    assert math.log(usual.high / usual.value) == pytest.approx(2.447 * 0.1, rel=1e-3)
