import numpy as np
import pytest

from tempme_export.bench.reporting.groups import groups, origins, rate_interval, without_method
from tempme_export.bench.reporting.read import Results, read_results


def grouped(*every):
    return groups(every, origins(every))


def test_groups_follow_the_comparisons_and_their_order(folders):
    results = read_results(folders[0])
    found = grouped(results)
    assert [(group.profile, group.batch) for group in found] == [
        ("vit-b-32-8f", 1), ("vit-b-32-12f", 1), ("vit-b-32-12f", 4),
    ]  # fmt: skip
    assert all([side.candidate for side in group.sides] == ["original", "torch", "ort", "openvino"] for group in found)
    assert sum(len(group.sides) for group in found) == len(results.rows)


def test_methods_stand_in_one_group_though_their_profiles_differ(folders):
    """Two comparisons of one frame count: each keeps its own rows."""
    found = grouped(read_results(folders[1]))
    assert [group.name for group in found] == ["vit-b-16-12f", "vit-b-32-12f"]
    assert [group.family for group in found] == ["vit-b-16", "vit-b-32"]
    for group in found:
        assert group.by_method
        assert [side.profile for side in group.sides] == [f"{group.name}-{side.candidate}" for side in group.sides]


def test_the_profile_decides_between_rows_that_are_alike_otherwise(bench, candidates):
    one = bench("c")
    one.compare("vit-b-32-12f", candidates())
    one.compare("vit-b-16-12f", candidates())
    one.document["comparisons"].reverse()
    found = grouped(Results.of(one.document))
    assert [group.profile for group in found] == ["vit-b-16-12f", "vit-b-32-12f"]
    assert all(side.profile == group.profile for group in found for side in group.sides)


def test_rows_that_no_comparison_names_are_kept(bench, candidates):
    one = bench("c")
    one.compare("vit-b-32-12f", candidates())
    one.document["comparisons"] = []
    (group,) = grouped(Results.of(one.document))
    assert [side.candidate for side in group.sides] == ["original", "torch", "ort", "openvino"]


def test_an_origin_is_a_command_on_a_machine(bench, candidates):
    one, two = bench("first"), bench("second")
    one.compare("vit-b-32-12f", candidates())
    one.document["rows"][3]["threads"] = 8
    two.compare("vit-b-32-12f", candidates())
    found = origins([Results.of(one.document), Results.of(two.document)])
    assert [(origin.number, origin.fact("command"), origin.fact("threads")) for origin in found] == [
        (1, "first", "2"), (2, "first", "8"), (3, "second", "2"),
    ]  # fmt: skip
    assert [len(origin.rows) for origin in found] == [3, 1, 4]


def test_a_gpu_names_the_machine_it_ran_on(bench, candidates):
    one = bench("c")
    one.compare("vit-b-32-12f", candidates())
    for row in one.document["rows"]:
        row |= {"device": "cuda", "gpu": "Example GPU"}
    (origin,) = origins([Results.of(one.document)])
    assert origin.machine == "Example GPU (Example CPU 8-Core, 2 threads)"


@pytest.mark.parametrize(
    ("changes", "doubts"),
    [
        ({}, []),
        ({"converged": False}, ["NOT CONVERGED"]),
        ({"converged": None}, ["not said whether it converged"]),
        ({"parity": False}, ["FAILED PARITY"]),
        ({"parity": None}, ["parity not judged"]),
        ({"slowdown_percent": 10.0}, ["slowed down on purpose by 10 %"]),
        ({"parity": False, "converged": False}, ["FAILED PARITY", "NOT CONVERGED"]),
    ],
)
def test_whatever_speaks_against_a_figure_is_a_doubt(bench, candidates, changes, doubts):
    one = bench("c")
    one.compare("vit-b-32-12f", candidates(), ort=changes)
    (group,) = grouped(Results.of(one.document))
    assert {side.candidate: side.doubts for side in group.sides if side.doubts} == ({"ort": doubts} if doubts else {})


def test_the_interval_of_a_speed_holds_the_speed_and_narrows_with_samples():
    generator = np.random.default_rng(0)
    few, many = (0.2 * generator.lognormal(0, 0.1, n) for n in (40, 4000))
    widths = []
    for seconds in (few, many):
        low, high = rate_interval(tuple(seconds), batch=4)
        assert low < 4 / np.median(seconds) < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 3
    assert widths[1] < 0.02 * 20


def test_too_few_samples_have_no_interval():
    assert rate_interval((0.1, 0.2, 0.3, 0.4), batch=1) is None
    assert rate_interval((), batch=1) is None
    assert rate_interval((0.1, 0.2, 0.3, 0.4, 0.5), batch=1) is not None


def test_samples_that_were_not_kept_leave_a_speed_without_interval(folders):
    with_samples = grouped(read_results(folders[0]))
    without = grouped(Results.of(read_results(folders[0]).document))
    assert all(side.low < side.videos_per_s < side.high for group in with_samples for side in group.sides)
    assert all(side.low is None and side.high is None for group in without for side in group.sides)


def test_a_method_is_taken_off_the_end_alone():
    assert without_method("vit-b-32-12f-tome", "tome") == "vit-b-32-12f"
    assert without_method("tome-12f", "tome") == "tome-12f"
    assert without_method("vit-b-32-12f", None) == "vit-b-32-12f"
