import json
from pathlib import Path

import polars as pl
import pytest

from tempme_export.bench.reporting.read import Results, read_results
from tempme_export.errors import InputError


@pytest.fixture
def document(bench, candidates):
    one = bench("tempme-bench --out here")
    one.compare("vit-b-32-12f", candidates())
    return one.document


@pytest.fixture
def write(tmp_path):
    def call(document):
        path = tmp_path / "bench.json"
        path.write_text(document if isinstance(document, str) else json.dumps(document))
        return path

    return call


def test_a_folder_and_its_file_read_alike(folders):
    folder, file = read_results(folders[0]), read_results(folders[0] / "bench.json")
    assert folder == file
    assert [row.candidate for row in folder.rows[:4]] == ["original", "torch", "ort", "openvino"]
    assert folder.missing.keys() == {"tensorrt"} and folder.failed.keys() == {"pt2"}
    assert len(folder.samples["vit-b-32-12f", 4, "ort"]) == 60


def test_samples_come_in_the_order_of_their_rounds(folders, tmp_path):
    (tmp_path / "bench.json").write_bytes((folders[0] / "bench.json").read_bytes())
    samples = pl.read_parquet(folders[0] / "samples.parquet")
    samples.sample(fraction=1, shuffle=True, seed=3).write_parquet(tmp_path / "samples.parquet")
    assert read_results(tmp_path).samples == read_results(folders[0]).samples


def test_what_may_be_missing_is_empty(write):
    results = read_results(write({"schema": 3, "rows": []}))
    assert not results.rows and not results.missing and not results.notes and not results.samples
    assert all(not results.entries(name) for name in ("comparisons", "tokens", "stages", "fits", "saturations"))


def test_what_could_not_be_watched_has_no_tokens(write, document):
    unwatched = {"method": "tempme", "frames": 12, "clips": None, "attention": None, "mlp": None, "reason": "compiled"}
    document["tokens"].append(unwatched)
    assert len(read_results(write(document)).entries("tokens")) == 4
    document["tokens"].append({**unwatched, "reason": ""})
    with pytest.raises(InputError, match="entry of `tokens` without `clips`"):
        read_results(write(document))


def test_a_document_at_hand_needs_no_file(document):
    results = Results.of(document)
    assert (results.source, len(results.rows), results.samples) == ("this run", 4, {})


@pytest.mark.parametrize("name", ["nothing", "bench.json"])
def test_a_missing_file_is_said_with_the_command_that_writes_one(tmp_path, name):
    with pytest.raises(InputError, match=r"found no .*expected a folder with bench\.json.*tempme-bench --out"):
        read_results(tmp_path / name)


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "no results of tempme-bench"),
        ('{"schema": 3}', "no results of tempme-bench"),
        ({"rows": []}, "schema None .*expected 3 or 2"),
        ({"schema": 1, "rows": []}, "schema 1 .*expected 3 or 2.*version that measured"),
        ({"schema": 3, "rows": {}}, "`rows` that is not a list of objects"),
        ({"schema": 3, "rows": [1]}, "`rows` that is not a list of objects"),
        ({"schema": 3, "rows": [], "missing": []}, "`missing` that does not give a reason"),
        ({"schema": 3, "rows": [], "failed": {"ort": 1}}, "`failed` that does not give a reason"),
        ({"schema": 3, "rows": [], "stages": [{"batch": 1}]}, "entry of `stages` without `candidate`"),
        ({"schema": 3, "rows": [], "tokens": "many"}, "`tokens` that is not a list of objects"),
        ({"schema": 3, "rows": [{"candidate": "ort"}]}, "a row without `frames`"),
    ],
)
def test_a_foreign_document_is_refused(write, document, said):
    with pytest.raises(InputError, match=said):
        read_results(write(document))


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("p50_ms", "<b>", "not a finite number"),
        ("videos_per_s", float("nan"), "not a finite number"),
        ("ratio", True, "not a finite number"),
        ("command", 5, "not a text"),
        ("parity", "yes", "neither true nor false"),
    ],
)
def test_a_column_of_the_wrong_kind_is_refused(write, document, column, value, said):
    document["rows"][1][column] = value
    with pytest.raises(InputError, match=f"`{column}` .*{said}"):
        read_results(write(document))


def test_none_stands_in_any_column_that_need_not_apply(write, document):
    needed = ("candidate", "frames", "batch", "videos_per_s")
    document["rows"] = [{key: row[key] if key in needed else None for key in row} for row in document["rows"]]
    assert len(read_results(write(document)).rows) == 4


@pytest.mark.parametrize("content", [b"no parquet", None])
def test_foreign_samples_are_refused(write, document, tmp_path, content):
    path = write(document)
    if content is None:
        pl.DataFrame({"backend": ["ort"], "seconds": [1.0]}).write_parquet(tmp_path / "samples.parquet")
    else:
        (tmp_path / "samples.parquet").write_bytes(content)
    with pytest.raises(InputError, match=r"found .*samples.*Remove samples\.parquet"):
        read_results(path)


def test_results_of_the_earlier_schema_are_read():
    results = read_results(Path(__file__).with_name("earlier"))
    assert [(row.candidate, row.batch) for row in results.rows] == [
        ("original", 1), ("torch", 1), ("original", 2), ("torch", 2),
    ]  # fmt: skip
    assert len(results.samples["mini-8f", 1, "torch"]) == results.rows[1].samples == 56
    first, torch_row = results.rows[:2]
    assert (first.converged, first.steady) == (True, False)
    assert torch_row.converged is False and torch_row.half_width == pytest.approx(
        (1.18727 - 0.47018) / 2 / 0.74715, rel=1e-4
    )
    assert all(one["candidate"] for one in results.entries("saturations"))
