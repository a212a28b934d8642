import pytest

from tempme_export.bench.reporting.section_frames import FRAMES, METHODS, costs


def by_method():
    return {key: {one["frames"]: one[key] for one in costs()} for key in METHODS}


def test_the_papers_frames_get_the_papers_factors():
    factors = {one["frames"]: one["factors"] for one in costs()}
    assert [factors[frames] for frames in (8, 12, 64)] == [(2, 2, 2), (2, 2, 3), (4, 4, 4)]


def test_twelve_frames_cost_what_table_1_prints():
    counted = by_method()
    assert {key: round(own[12], 1) for key, own in counted.items()} == {"none": 53.0, "tome": 40.2, "tempme": 34.8}
    assert {key: round(own[64], 1) for key, own in counted.items()} == {"none": 282.8, "tome": 214.5, "tempme": 186.3}


def test_cost_grows_with_frames_and_merging_saves_at_all_of_them():
    none, tome, tempme = ([own[frames] for frames in FRAMES] for own in by_method().values())
    for one in (none, tome, tempme):
        assert one == sorted(set(one))
    assert all(a > b > c for a, b, c in zip(none, tome, tempme, strict=True))
    assert [gmacs / none[0] for gmacs in none] == pytest.approx([frames / 8 for frames in FRAMES])
