"""Two runs: the same programs are not called different, a slow-down is found, the machine's own speed is neither."""

import json
import math

import numpy as np
import polars as pl
import pytest

from tempme_export.bench.comparing import Change, compare_results
from tempme_export.bench.core.bootstrap import RUN_TO_RUN, Ratio
from tempme_export.bench.core.row import Row
from tempme_export.errors import InputError

BASE = "original"
TIMES = {BASE: 0.030, "torch": 0.025, "compile": 0.018, "ort": 0.015, "openvino": 0.012, "tensorrt": 0.008}


def autoregressive(generator, shape, persistence, deviation):
    """AR(1) along the last axis, stationary."""
    noise = generator.normal(0, deviation, shape)
    series = np.empty(shape)
    series[..., 0] = noise[..., 0]
    for i in range(1, shape[-1]):
        series[..., i] = persistence * series[..., i - 1] + math.sqrt(1 - persistence**2) * noise[..., i]
    return series


def measure(generator, rounds, *, machine=1.0, slowed=None, run_to_run=RUN_TO_RUN, times=TIMES):
    """Seconds of one run: drift that all share, own noise (ratios of rounds spread by 0.035, as measured on a shared
    virtual machine), and what differs between processes."""
    drift = autoregressive(generator, (1, rounds), 0.98, 0.08)
    own = autoregressive(generator, (len(times), rounds), 0.5, 0.025)
    process = generator.normal(0, run_to_run / math.sqrt(2), (len(times), 1))
    middle = np.array([seconds * machine * (slowed or {}).get(name, 1.0) for name, seconds in times.items()])
    return dict(zip(times, middle[:, None] * np.exp(drift + own + process), strict=True))


def write(folder, *comparisons, **facts):
    """A results folder of comparisons {candidate: seconds}, or (keys of its rows, {candidate: seconds})."""
    folder.mkdir(exist_ok=True)
    rows, listed, samples = [], [], []
    for one in comparisons:
        keys, seconds = one if isinstance(one, tuple) else ({}, one)
        shared = {"profile": "tiny", "batch": 1, "frames": 4, **keys}
        listed.append({**{key: shared[key] for key in ("profile", "batch", "frames")}, "order": list(seconds)})
        for position, (name, taken) in enumerate(seconds.items()):
            rows.append(
                {
                    **{"candidate": name, "backend": name, "method": "tempme", "precision": "fp32", "device": "cpu"},
                    **{"videos_per_s": 1.0, "converged": True, "cpu": "A", "slowdown_percent": 0.0, "weights": "w"},
                    **shared,
                    **{key: value for key, value in facts.items() if key != "of"},
                    **facts.get("of", {}).get(name, {}),
                }
            )
            where = (shared["profile"], shared["batch"], position, name)
            samples += [(*where, i, float(one)) for i, one in enumerate(taken)]
    document = {"schema": 3, "rows": rows, "comparisons": listed}
    (folder / "bench.json").write_text(json.dumps(document))
    columns = ["profile", "batch", "position", "candidate", "round", "seconds"]
    pl.DataFrame(samples, schema=columns, orient="row").write_parquet(folder / "samples.parquet")
    return folder


def by_name(report):
    return {change.row.candidate: change for change in report.changes}


def different(report):
    return [change for change in report.changes if change.verdict in ("faster", "slower")]


@pytest.fixture
def pair(tmp_path):
    """Write two runs and compare them."""

    def compare(a, b, resamples=200, **facts):
        return compare_results(write(tmp_path / "a", a, **facts), write(tmp_path / "b", b), resamples=resamples)

    return compare


@pytest.mark.parametrize("rounds", [50, 200])
def test_two_runs_of_the_same_are_not_called_different(pair, rounds):
    """Another drift, and a machine 5 % slower: in 95 % of comparisons none of all rows is called different."""
    generator = np.random.default_rng(21)
    reports = [
        pair(measure(generator, rounds), measure(generator, rounds, machine=1.05))
        for _ in range(200 if rounds == 50 else 40)
    ]
    assert np.mean([bool(different(report)) for report in reports]) <= 0.08
    assert np.mean([change.verdict == "no change" for report in reports for change in report.changes[1:]]) >= 0.98


@pytest.mark.parametrize("rounds", [50, 100])
def test_a_tenth_slower_is_found(pair, rounds):
    generator = np.random.default_rng(22)
    found = []
    for _ in range(60):
        slow = measure(generator, rounds, machine=1.05, slowed={"ort": 1.1})
        found.append(by_name(pair(measure(generator, rounds), slow))["ort"].verdict)
    assert np.mean([verdict == "slower" for verdict in found]) >= (0.9 if rounds == 50 else 0.98)


def test_the_intervals_hold_what_the_change_is(pair):
    generator = np.random.default_rng(23)
    inside = []
    for _ in range(60):
        report = pair(measure(generator, 60), measure(generator, 60, slowed={"ort": 1.25}))
        ratio = by_name(report)["ort"].relative
        inside.append(ratio.low <= 1 / 1.25 <= ratio.high)
        assert ratio.high / ratio.low < 1.35
    assert np.mean(inside) >= 0.95


def test_without_noise_every_number_is_known(pair):
    a, b = {BASE: [0.04] * 9, "ort": [0.02] * 9}, {BASE: [0.08] * 9, "ort": [0.05] * 9}
    report = pair(a, b)
    base, ort = report.changes
    assert (base.row.candidate, base.is_base, base.relative, base.ratio_before) == (BASE, True, None, None)
    assert (base.p50_before_ms, base.p50_after_ms) == pytest.approx((40, 80))
    assert base.speed.value == pytest.approx(0.5)
    assert base.verdict == "machine drift" and base.significant
    assert (ort.ratio_before, ort.ratio_after, ort.relative.value) == pytest.approx((2.0, 1.6, 0.8))
    assert (ort.verdict, ort.speed.value) == ("slower", pytest.approx(0.4))
    assert different(report) == [ort]
    assert report.level == pytest.approx(0.975)
    # Of the noise only what differs between runs is left; 2 rows.
    assert math.log(ort.relative.high / ort.relative.value) == pytest.approx(2.2448 * math.sqrt(2) * 0.01, rel=1e-3)


def test_a_candidate_that_converged_early_is_compared_over_its_own_rounds(pair):
    """The base goes on beside others, and its later rounds say nothing of this one."""
    a = {BASE: [0.04] * 9 + [9.0] * 30, "ort": [0.02] * 9}
    ort = by_name(pair(a, {BASE: [0.04] * 9, "ort": [0.02] * 9}))["ort"]
    assert (ort.ratio_before, ort.ratio_after, ort.verdict) == (2.0, 2.0, "no change")


def test_a_gain_is_found_too(pair):
    a, b = {BASE: [0.04] * 9, "ort": [0.02] * 9}, {BASE: [0.04] * 9, "ort": [0.01] * 9}
    assert [change.verdict for change in pair(a, b).changes] == ["no change", "faster"]


def test_a_slower_machine_is_drift_and_no_regression(pair):
    a = measure(np.random.default_rng(24), 100)
    b = {name: 1.6 * seconds for name, seconds in measure(np.random.default_rng(25), 100).items()}
    report = pair(a, b)
    assert report.changes[0].verdict == "machine drift"
    assert different(report) == []
    assert all(change.speed.value == pytest.approx(1 / 1.6, rel=0.15) for change in report.changes)


def test_many_rows_widen_every_interval(pair):
    generator = np.random.default_rng(26)
    a, b = measure(generator, 60), measure(generator, 60)
    two = {name: a[name] for name in (BASE, "ort")}, {name: b[name] for name in (BASE, "ort")}
    few, many = by_name(pair(*two))["ort"].relative, by_name(pair(a, b))["ort"].relative
    assert few.value == many.value
    assert many.low < few.low and few.high < many.high


def test_a_loaded_machine_is_not_called_a_change(pair):
    """Rounds that spread by a fifth come with runs that differ by far more than a percent."""
    generator = np.random.default_rng(29)
    calm = {BASE: 0.03 * np.ones(400), "ort": 0.015 * np.exp(generator.normal(0, 0.01, 400))}
    loaded = {BASE: 0.03 * np.ones(400), "ort": 0.015 * np.exp(generator.normal(0, 0.2, 400))}
    moved = {name: {**run, "ort": 1.07 * run["ort"]} for name, run in (("calm", calm), ("loaded", loaded))}
    assert pair(calm, moved["calm"]).changes[1].verdict == "slower"
    assert pair(loaded, moved["loaded"]).changes[1].verdict == "no change"


def test_the_same_folders_give_the_same_report_and_a_seed_another(tmp_path):
    generator = np.random.default_rng(27)
    a, b = write(tmp_path / "a", measure(generator, 30)), write(tmp_path / "b", measure(generator, 30))
    first = compare_results(a, b, resamples=50)
    assert compare_results(a, b, resamples=50) == first
    assert compare_results(a, b, resamples=50, seed=9) != first


def test_a_folder_beside_itself_has_not_changed(tmp_path):
    a = write(tmp_path / "a", measure(np.random.default_rng(28), 40))
    report = compare_results(a, a, resamples=50)
    assert {change.verdict for change in report.changes} == {"no change"}
    assert {change.judged.value for change in report.changes} == {1.0}
    assert report.remarks == () == report.only_a == report.only_b


def test_rows_are_matched_by_all_that_names_them(tmp_path):
    steady = [0.01] * 6
    a = write(tmp_path / "a", ({"batch": 1}, {BASE: steady}), ({"batch": 2}, {BASE: steady, "ort": steady}))
    b = write(tmp_path / "b", ({"batch": 2}, {BASE: steady, "pt2": steady}), ({"batch": 4}, {BASE: steady}))
    report = compare_results(a, b, resamples=20)
    assert [(change.row.candidate, change.row.batch) for change in report.changes] == [(BASE, 2)]
    assert report.only_a == (
        "tiny, original, fp32, batch 1, cpu, 4 frames",
        "tiny, ort, fp32, batch 2, cpu, 4 frames",
    )
    assert report.only_b == (
        "tiny, pt2, fp32, batch 2, cpu, 4 frames",
        "tiny, original, fp32, batch 4, cpu, 4 frames",
    )


@pytest.mark.parametrize("key", ["profile", "method", "backend", "precision", "device", "frames"])
def test_rows_that_differ_in_one_key_are_different_rows(tmp_path, key):
    steady = {BASE: [0.01] * 6}
    value = 8 if key == "frames" else "another"
    a, b = write(tmp_path / "a", steady), write(tmp_path / "b", ({key: value}, steady))
    report = compare_results(a, b, resamples=20)
    assert (report.changes, len(report.only_a), len(report.only_b)) == ((), 1, 1)


def test_frame_counts_and_batches_have_their_own_samples(tmp_path):
    """Each comparison twice as slow as the one before: a mix-up would show as a change."""
    folder = write(
        tmp_path / "a",
        *(
            ({"profile": f"tiny-{frames}f", "frames": frames, "batch": batch}, {BASE: [frames * batch * 1e-3] * 6})
            for frames in (4, 8)
            for batch in (1, 16)
        ),
    )
    found = {
        (c.row.frames, c.row.batch): c.p50_before_ms for c in compare_results(folder, folder, resamples=20).changes
    }
    assert found == {(f, b): pytest.approx(f * b) for f in (4, 8) for b in (1, 16)}


def test_methods_side_by_side_have_profiles_of_their_own(tmp_path):
    """The comparison and its samples carry the profile of the first method."""
    times = {"none": [0.04] * 6, "tempme": [0.02] * 6}
    own = {name: {"profile": f"tiny-{name}", "method": name, "backend": "torch"} for name in times}
    folder = write(tmp_path / "a", ({"profile": "tiny-none"}, times), of=own)
    report = compare_results(folder, folder, resamples=20)
    assert [(c.row.profile, c.row.method, c.ratio_before) for c in report.changes] == [
        ("tiny-none", "none", None),
        ("tiny-tempme", "tempme", 2.0),
    ]


def test_what_else_was_timed_in_a_comparison_is_no_row(tmp_path):
    folder = write(tmp_path / "a", {BASE: [0.04] * 6, f"{BASE} (on the device)": [0.02] * 6})
    document = json.loads((folder / "bench.json").read_text())
    document["rows"].pop()
    (folder / "bench.json").write_text(json.dumps(document))
    assert len(compare_results(folder, folder, resamples=20).changes) == 1


def test_another_base_is_judged_on_times_and_it_is_said(pair):
    a, b = {BASE: [0.04] * 9, "ort": [0.02] * 9}, {"torch": [0.04] * 9, "ort": [0.03] * 9}
    report = pair(a, b)
    (ort,) = report.changes
    assert (ort.relative, ort.is_base, ort.verdict) == (None, False, "slower")
    assert ort.to_dict()["judged_on"] == "time"
    assert report.remarks[0].startswith("tiny, ort, fp32, batch 1, cpu, 4 frames: beside original in A and torch in B")


@pytest.mark.parametrize(
    ("fact", "remark"),
    [
        ({"cpu": "B"}, "not the same machine: cpu B in A, A in B"),
        ({"gpu": "H100"}, "not the same machine: gpu H100 in A, None in B"),
        ({"torch": "2.11"}, "not the same versions: torch 2.11 in A, None in B"),
        ({"commit": "abc"}, "not the same commit: commit abc in A, None in B"),
        ({"weights": "x"}, "not the same weights: weights x in A, w in B"),
        (
            {"of": {"ort": {"slowdown_percent": 10.0}}},
            "not the same slowdown: slowdown_percent 10.0 in A, 0.0 in B (ort)",
        ),
        ({"of": {"ort": {"converged": False}}}, "A: tiny, ort, fp32, batch 1, cpu, 4 frames did not converge"),
    ],
    ids=str,
)
def test_what_else_differs_is_said_once(pair, fact, remark):
    steady = {BASE: [0.04] * 6, "ort": [0.02] * 6}
    assert pair(steady, steady, resamples=20, **fact).remarks == (remark,)


def test_plain_values(pair):
    report = pair({BASE: [0.04] * 9, "ort": [0.02] * 9}, {BASE: [0.08] * 9, "ort": [0.05] * 9})
    document = json.loads(json.dumps(report.to_dict()))
    base, ort = document["changes"]
    assert ort["change_percent"] == pytest.approx(-60)
    assert ort["change_low_percent"] < -60 < ort["change_high_percent"]
    assert ort["ratio_change_percent"] == pytest.approx(-20)
    assert (ort["judged_on"], ort["significant"], ort["verdict"]) == ("ratio", True, "slower")
    assert (base["judged_on"], base["ratio_change_percent"], base["verdict"]) == ("time", None, "machine drift")
    assert document["level"] == pytest.approx(0.975)


@pytest.mark.parametrize(
    ("low", "high", "significant"), [(0.8, 0.99, True), (1.01, 1.2, True), (0.9, 1.1, False), (1.0, 1.2, False)]
)
def test_significant_is_an_interval_without_1(low, high, significant):
    row = Row("ort", frames=4, batch=1, videos_per_s=1.0)
    change = Change(
        row,
        is_base=False,
        p50_before_ms=1.0,
        p50_after_ms=1.0,
        speed=Ratio(3.0, 2.0, 4.0),
        ratio_before=1.0,
        ratio_after=1.0,
        relative=Ratio(math.sqrt(low * high), low, high),
    )
    assert change.significant is significant


def spoilt(folder, **document):
    whole = json.loads((folder / "bench.json").read_text())
    (folder / "bench.json").write_text(json.dumps({**whole, **document}))


def resampled(folder, change):
    samples = pl.read_parquet(folder / "samples.parquet")
    change(samples).write_parquet(folder / "samples.parquet")


FIRST = pl.int_range(pl.len()) == 0


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "bench.json").unlink(), "found no .*bench.json"),
        (lambda f: (f / "bench.json").write_text("{"), "cannot be read as JSON"),
        (lambda f: spoilt(f, schema=1), "found schema 1"),
        (lambda f: spoilt(f, rows=[]), "found no rows in .*an end-to-end run has stages alone"),
        (lambda f: (f / "samples.parquet").unlink(), "found no samples.parquet"),
        (lambda f: (f / "samples.parquet").write_bytes(b"PAR1"), "cannot be read as Parquet"),
        (lambda f: resampled(f, lambda s: s.drop("round")), "found samples with the columns"),
        (lambda f: resampled(f, lambda s: s.filter(pl.col("candidate") != "ort")), "found 0 samples of ort"),
        (lambda f: resampled(f, lambda s: s.filter(pl.col("round") < 4)), "found 4 samples of original"),
        (
            lambda f: resampled(f, lambda s: s.filter((pl.col("candidate") != BASE) | (pl.col("round") > 0))),
            "found 6 samples of ort and 5 of original",
        ),
        (
            lambda f: resampled(f, lambda s: s.with_columns(seconds=pl.when(FIRST).then(-1.0).otherwise("seconds"))),
            "no durations",
        ),
        (
            lambda f: resampled(
                f, lambda s: s.with_columns(seconds=pl.when(FIRST).then(math.nan).otherwise("seconds"))
            ),
            "no durations",
        ),
        (lambda f: spoilt(f, comparisons=[]), "found 0 comparisons of original"),
        (
            lambda f: spoilt(f, rows=2 * json.loads((f / "bench.json").read_text())["rows"]),
            "found two rows of tiny, original",
        ),
    ],
)
@pytest.mark.parametrize("which", [0, 1], ids=["A", "B"])
def test_folders_that_are_no_results_are_refused(tmp_path, spoil, message, which):
    steady = {BASE: [0.04] * 6, "ort": [0.02] * 6}
    folders = [write(tmp_path / name, steady) for name in "ab"]
    spoil(folders[which])
    with pytest.raises(InputError, match=message) as caught:
        compare_results(*folders, resamples=20)
    assert caught.value.exit_code == 3
