"""The published figures of a GPU, transcribed as they were printed, and beside them as rows."""

import json
from pathlib import Path

import pytest

from tempme_export.bench.reporting.groups import groups, origins
from tempme_export.bench.reporting.page import write_report
from tempme_export.bench.reporting.read import read_results

FILE = Path(__file__).resolve().parents[3] / "bench" / "results" / "h200-torch-2.11.json"


@pytest.fixture(scope="module")
def results():
    return read_results(FILE)


def test_every_figure_is_there(results):
    published = json.loads(FILE.read_text())["encoder"]
    assert len(results.rows) == len(published)
    assert sorted(row.videos_per_s for row in results.rows) == sorted(one["videos_per_s"] for one in published)
    fastest = max(results.rows, key=lambda row: row.videos_per_s)
    assert (fastest.candidate, fastest.profile, fastest.batch, fastest.frames) == (
        "graph-bf16-compile", "vit-b-32-12f", 64, 12,
    )  # fmt: skip
    assert fastest.gpu == "NVIDIA H200" and fastest.clock == "device" and fastest.videos_per_s == 6299.8
    assert fastest.tflop_s / fastest.peak_tflop_s == pytest.approx(0.6, abs=0.01)


def test_what_was_timed_side_by_side_stays_so(results):
    found = groups([results], origins([results]))
    assert [(group.profile, group.batch, len(group.sides)) for group in found] == [
        ("vit-b-32-12f", 1, 6), ("vit-b-32-12f", 64, 6), ("vit-b-32-12f", 64, 2),
        ("vit-b-16-12f", 1, 6), ("vit-b-16-12f", 64, 6),
    ]  # fmt: skip
    assert all("not said whether it converged" in side.doubts for group in found for side in group.sides)


def test_a_page_is_written_of_them(results, tmp_path):
    write_report([results], tmp_path)
    assert "NVIDIA H200" in (tmp_path / "report.html").read_text()
