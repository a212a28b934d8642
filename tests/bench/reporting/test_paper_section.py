import re

import pytest

from tempme_export.bench.paper import CLAIMS, count
from tempme_export.bench.reporting.groups import groups, origins
from tempme_export.bench.reporting.read import Results, read_results
from tempme_export.bench.reporting.section_paper import TABLE_1, TABLE_4, lines, measured, paper
from tempme_export.bench.tables.rows import DISTANCE


@pytest.fixture(scope="module")
def counted():
    return [count(claim) for claim in CLAIMS]


def grouped(*every):
    return groups(every, origins(every))


def test_the_settings_are_the_papers():
    settings = [(one.backbone.removesuffix("-quickgelu"), one.frames) for one in TABLE_1]
    assert settings == [("ViT-B-32", 12), ("ViT-B-32", 64), ("ViT-B-16", 12)]
    assert TABLE_4 is TABLE_1[2]


def test_lines_hold_print_and_count(counted):
    """Table 4 of the paper, typed in again."""
    shown = {line.method.key: line for line in lines(TABLE_4, counted)}
    assert list(shown) == ["none", "diffrate", "tome", "tempme"]
    printed = {
        key: (
            one.figures.videos_per_s,
            one.figures.gflops,
            one.figures.tokens[0] * one.figures.tokens[1],
            *one.figures.recalls,
        )
        for key, one in shown.items()
    }
    assert printed == {
        "none": (30.6, 211.3, 2364, 47.3, 201.4),
        "diffrate": (40.6, 138.5, 588, 47.3, 202.4),
        "tome": (40.8, 144.4, 924, 46.2, 200.6),
        "tempme": (45.1, 121.4, 127, 49.0, 206.7),
    }
    assert shown["diffrate"].ours is None
    for key in ("none", "tome", "tempme"):
        assert shown[key].ours.holds


def test_a_method_finds_its_own_rows_and_no_other(counted, folders):
    found = grouped(read_results(folders[1]))
    for setting, title in ((TABLE_4, "vit-b-16-12f"), (TABLE_1[0], "vit-b-32-12f")):
        for line in lines(setting, counted):
            shown = [(group.name, side.candidate) for group, side in measured(line, found)]
            assert shown == ([] if line.method.key == "diffrate" else [(title, line.method.key)])


def test_of_backends_the_first_and_the_fastest_reliable_stand_beside_the_paper(counted, bench, candidates):
    one = bench("c")
    one.compare("vit-b-32-12f", candidates(), openvino={"converged": False})
    (tempme,) = [line for line in lines(TABLE_1[0], counted) if line.method.key == "tempme"]
    assert [side.candidate for _, side in measured(tempme, grouped(Results.of(one.document)))] == ["original", "ort"]


def test_the_same_operations_by_another_method_do_not_match(counted, bench, candidates):
    one = bench("c")
    one.compare("vit-b-32-12f", candidates(), **{name: {"method": "random"} for name in candidates()})
    (tempme,) = [line for line in lines(TABLE_1[0], counted) if line.method.key == "tempme"]
    assert list(measured(tempme, grouped(Results.of(one.document)))) == []


def test_table_4_says_whose_figures_are_whose(counted, folders):
    html = paper(counted, grouped(read_results(folders[1]))).body
    table = html[html.index("Table 4: speed") :]
    assert table.count("the paper, one A100") == 4
    assert "other machines" in table and "Example CPU 8-Core" in table
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", table)]
    gains = [(row[0], row[5]) for row in rows if row[1] == "the paper, one A100"]
    assert gains[0][1] == "1.00" and gains[-1] == ("TempMe", "1.47")
    ours = [row for row in rows if "run 1" in row[1]]
    assert len(ours) == 3 and all(DISTANCE.head in row[8] and row[9] == "pass" for row in ours)


def test_without_measurements_the_command_that_makes_them_is_named(counted):
    html = paper(counted, []).body
    assert html.count("No speed of this setting in these results") == 3
    for setting in TABLE_1:
        assert f"tempme-bench --profile {setting.profile} --methods all" in html


def test_what_does_not_reproduce_is_said_with_its_reason(counted):
    html = paper(counted, []).body
    assert "charges the patch convolution for 12 frames only" in html
    assert "DiffRate learns how many tokens" in html
