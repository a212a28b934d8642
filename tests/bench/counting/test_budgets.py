"""Counts that no processor moves: the graphs of the example checkpoint are those of the table, each with its reason."""

import dataclasses
from pathlib import Path

import pytest

from tempme_export.bench.counting.budgets import (
    Budget,
    check_budgets,
    count_arena,
    count_file,
    count_kernels,
    count_products,
    read_table,
)
from tempme_export.encoder.checkpoint import load_checkpoint
from tempme_export.encoder.recipe import prepare
from tempme_export.errors import ParityError
from tempme_export.exporters.onnx import export_text, export_video
from tempme_export.exporters.plugin_onnx import export_plugin_video

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "mini.pth"


@pytest.fixture(scope="module")
def recipe():
    return prepare(load_checkpoint(str(EXAMPLE)))


@pytest.fixture(scope="module")
def files(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("graphs")
    export_video(recipe, folder / "video.onnx")
    export_plugin_video(recipe, folder / "plugin.onnx", "fp16")
    export_text(recipe, folder / "text.onnx")
    return {name: folder / f"{name}.onnx" for name in ("video", "plugin", "text")}


@pytest.fixture(scope="module")
def found(recipe, files):
    counts = [count_file(name, path) for name, path in files.items()]
    counts += [count_kernels(recipe), count_products("video", files["video"], recipe)]
    counts += [count_arena(name, files[name]) for name in ("video", "text")]
    return {name: count for one in counts for name, count in one.items()}


def test_the_graphs_are_those_of_the_table(found):
    check_budgets(found, read_table())


@pytest.mark.parametrize("name", ["video", "text"])
def test_threads_do_not_move_what_the_arena_holds(found, files, name):
    assert count_arena(name, files[name], threads=2)[f"{name}.arena_bytes"] == found[f"{name}.arena_bytes"]


def test_every_budget_says_why():
    assert all(len(budget.reason.split()) >= 4 for budget in read_table().values())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"video.casts": 1}, r"video\.casts: found .*, expected .*change budgets\.toml and say why"),
        ({"video.new": 3}, r"video\.new: found 3, expected none"),
    ],
)
def test_a_count_that_moved_is_named(found, changes, said):
    with pytest.raises(ParityError, match=said):
        check_budgets({**found, **{name: found.get(name, 0) + more for name, more in changes.items()}}, read_table())


def test_a_budget_that_nothing_meets_is_named(found):
    table = read_table() | {"video.gone": Budget(1, "because of a test")}
    with pytest.raises(ParityError, match=r"video\.gone: found none, expected 1"):
        check_budgets(found, table)
    budget = dataclasses.replace(table["video.nodes"], count=0)
    with pytest.raises(ParityError, match=r"video\.nodes"):
        check_budgets(found, read_table() | {"video.nodes": budget})
