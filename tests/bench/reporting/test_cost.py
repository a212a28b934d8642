import pytest

from tempme_export.bench.reporting.cost import FRAMES, costs, factors
from tempme_export.errors import InputError


def test_the_papers_frames_get_the_papers_factors():
    assert [factors(frames) for frames in (8, 12, 64)] == [(2, 2, 2), (2, 2, 3), (4, 4, 4)]


def test_twelve_frames_cost_what_table_1_prints():
    counted = {one.label: dict(zip(one.frames, one.gmacs, strict=True)) for one in costs()}
    printed = {"no merging": 53.0, "ToMe": 40.2, "TempMe": 34.8}
    assert {label: round(figures[12], 1) for label, figures in counted.items()} == printed
    assert {label: round(figures[64], 1) for label, figures in counted.items()} == {
        "no merging": 282.8, "ToMe": 214.5, "TempMe": 186.3,
    }  # fmt: skip


def test_cost_grows_with_frames_and_merging_saves_at_all_of_them():
    none, tome, tempme = costs()
    for one in (none, tome, tempme):
        assert one.frames == FRAMES and list(one.gmacs) == sorted(set(one.gmacs))
    assert all(a > b > c for a, b, c in zip(none.gmacs, tome.gmacs, tempme.gmacs, strict=True))
    assert [gmacs / none.gmacs[0] for gmacs in none.gmacs] == pytest.approx([frames / 8 for frames in FRAMES])


@pytest.mark.parametrize("frames", [1, 7, 10])
def test_frames_that_three_stages_cannot_join_are_refused(frames):
    with pytest.raises(InputError, match=f"found {frames} frames.*Choose of: 8, 12"):
        factors(frames)
