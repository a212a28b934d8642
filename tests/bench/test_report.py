import dataclasses
import json

import polars as pl
import pytest
from rich.console import Console

from tempme_export.bench import report
from tempme_export.bench.core.bootstrap import Ratio
from tempme_export.bench.core.row import Row
from tempme_export.bench.core.timing import Timing, TimingComparison
from tempme_export.bench.machine import machine
from tempme_export.bench.report import Measured, Report, frame, prepare_folder
from tempme_export.bench.tables.rows import bench_tables
from tempme_export.bench.tables.terminal import show
from tempme_export.errors import ParityError, UnstableError, UsageError


def row(**changes):
    values = {
        "candidate": "original",
        "backend": "original",
        "method": "tempme",
        "profile": "tiny",
        "weights": "drawn at random, seed 0",
        "frames": 4,
        "batch": 2,
        "precision": "fp32",
        "device": "cpu",
        "videos_per_s": 20.0,
        "frames_per_s": 80.0,
        "ratio": 1.0,
        "ratio_low": 1.0,
        "ratio_high": 1.0,
        "p50_ms": 100.0,
        "p90_ms": 110.0,
        "p99_ms": 111.0,
        "mean_ms": 101.5,
        "cov": 0.02,
        "samples": 6,
        "warmup": 9,
        "converged": True,
        "half_width": 0.0,
        "steady": True,
        "resident_ms": None,
        "device_ms": None,
        "gmacs": 0.5,
        "gflops": 0.98,
        "final_clips": 1,
        "final_tokens": 7,
        "load_mb": 12.25,
        "encode_mb": 512.25,
        "device_mb": None,
        "build_s": None,
        "load_s": 0.125,
        "one_minus_cosine": 0.0,
        "centred_loss": 0.0,
        "parity": True,
        "artifact_mb": None,
        "artifact_sha256": None,
        "slowdown_percent": 0.0,
        "time": "2026-01-02T03:04:05+00:00",
        "command": "tempme-bench --frames 4",
        **dataclasses.asdict(machine()),
    }
    return Row(**{**values, **changes})


ROWS = (
    row(),
    row(
        candidate="ort",
        backend="ort",
        ratio=1.25,
        ratio_low=1.2,
        ratio_high=1.3,
        build_s=3.5,
        artifact_mb=14.5,
        artifact_sha256="ab" * 32,
    ),
)


def comparison(converged=True):
    timings = {
        name: Timing(name, samples, True, Ratio(1.0, 1.0, 1.0), 0.0 if converged else 0.081, converged)
        for name, samples in (("original", (0.1, 0.2, 0.3)), ("ort", (0.01, 0.02, 0.03)))
    }
    return TimingComparison(
        ("original", "ort"), timings, warmup_windows=(3, 3, 3), notes=("3 samples, fewer than 200",)
    )


def measured(**changes):
    return Measured("tiny", 4, 2, comparison(**changes))


def a_report(**changes):
    return dataclasses.replace(Report(ROWS, (measured(),)), **changes)


def test_columns_are_the_fields_in_order():
    assert frame(ROWS).columns == [field.name for field in dataclasses.fields(Row)]


def test_a_column_of_none_keeps_its_type():
    assert frame([row()]).schema["build_s"] == pl.Float64
    assert frame([row()]).schema["artifact_sha256"] == pl.String
    assert frame([]).schema == frame(ROWS).schema


def test_rows_return_from_parquet(tmp_path):
    a_report().write(tmp_path)
    back = pl.read_parquet(tmp_path / report.ROWS)
    assert tuple(Row(**values) for values in back.iter_rows(named=True)) == ROWS


def test_rows_return_from_json(tmp_path):
    a_report(missing={"torch": "why"}).write(tmp_path)
    back = json.loads((tmp_path / report.DOCUMENT).read_text())
    assert tuple(Row(**values) for values in back["rows"]) == ROWS
    assert back["missing"] == {"torch": "why"}
    assert back["comparisons"] == [
        {
            "profile": "tiny",
            "frames": 4,
            "batch": 2,
            "order": ["original", "ort"],
            "warmup_windows": [3, 3, 3],
            "notes": ["3 samples, fewer than 200"],
        }
    ]


def test_every_sample_is_kept_in_the_order_taken(tmp_path):
    a_report().write(tmp_path)
    samples = pl.read_parquet(tmp_path / report.SAMPLES)
    assert samples.columns == ["profile", "batch", "round", "position", "candidate", "seconds"]
    assert samples["candidate"].to_list() == ["original", "ort"] * 3
    assert samples["round"].to_list() == [0, 0, 1, 1, 2, 2]
    assert samples["seconds"].to_list() == [0.1, 0.01, 0.2, 0.02, 0.3, 0.03]


def test_remarks_name_what_a_table_cannot():
    missing = {"ort": "onnxruntime is not installed", "a": "no GPU is here.", "b": "no GPU is here."}
    remarks = a_report(missing=missing, failed={"torch": "batch 2: off"}).remarks()
    assert remarks == [
        "ort is missing: onnxruntime is not installed",
        "a, b are missing, for one reason: no GPU is here.",
        "torch FAILED parity and is not timed: batch 2: off",
        "tiny, batch 2: 3 samples, fewer than 200",
    ]


def test_a_missing_backend_is_no_failure():
    a_report(missing={"ort": "onnxruntime is not installed"}).check(strict=True)


def test_a_failed_backend_is():
    with pytest.raises(ParityError, match="torch, batch 2: off") as caught:
        a_report(failed={"torch": "batch 2: off"}).check(strict=False)
    assert caught.value.exit_code == 5


def test_converging_matters_only_when_strict():
    unstable = a_report(measured=(measured(converged=False),))
    unstable.check(strict=False)
    with pytest.raises(UnstableError) as caught:
        unstable.check(strict=True)
    assert caught.value.exit_code == 7


def test_a_folder_is_made(tmp_path):
    prepare_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()


def test_a_folder_with_results_is_not_overwritten(tmp_path):
    a_report().write(tmp_path)
    with pytest.raises(UsageError, match="already holds"):
        prepare_folder(tmp_path)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be a folder"):
        prepare_folder(tmp_path / "file")


def test_nothing_measured_is_still_a_document(tmp_path):
    Report(notes=("nothing",)).write(tmp_path)
    assert json.loads((tmp_path / report.DOCUMENT).read_text())["rows"] == []
    assert pl.read_parquet(tmp_path / report.SAMPLES).schema == report.Report().samples().schema


def test_two_parts_of_a_run_are_one():
    joined = a_report(missing={"ort": "gone"}) + a_report(notes=("cut",), interrupted=True) + Report()
    assert len(joined.rows) == 4 and len(joined.measured) == 2
    assert joined.missing == {"ort": "gone"} and joined.notes == ("cut",) and joined.interrupted
    assert len(joined.samples()) == 12


def rendered(rows):
    console = Console(width=200)
    with console.capture() as capture:
        for table in bench_tables(rows):
            show(console, table)
    return capture.get()


def test_the_file_stands_with_what_getting_ready_took():
    lines = rendered(ROWS).splitlines()
    (head,) = [line for line in lines if "file MB" in line]
    costs = lines[lines.index(head) + 2 :]
    assert " 14.5 " in costs[1] and "14.5" not in costs[0], "the original runs from weights"


def test_a_gpu_has_a_table_of_its_own_and_none_is_wider_than_100():
    gpu = row(device="cuda", gpu="NVIDIA H200", device_mb=812.5, resident_ms=0.742, device_ms=0.7215)
    text = rendered([gpu])
    assert "NVIDIA H200" in text and "0.742" in text and "812" in text
    assert max(map(len, text.splitlines())) <= 100
    assert "resident" not in rendered(ROWS)


def test_an_injected_slowdown_and_what_did_not_converge_show_in_the_table():
    text = rendered(
        [row(), row(candidate="ort", backend="ort", slowdown_percent=10.0, half_width=0.081, converged=False)]
    )
    assert "ort (slowed 10 %)" in text and " NO " in text


def test_a_wild_ratio_keeps_the_table_narrow():
    wild = {"ratio": 12.3, "ratio_low": 0.06, "ratio_high": 2468.0, "half_width": 102.5, "converged": False}
    text = rendered([row(), row(candidate="openvino", backend="openvino", videos_per_s=1234.5, **wild)])
    assert "12.3 (0.06-2468)" in text and ">99 NO" in text
    (line,) = [line for line in text.splitlines() if "2468" in line]
    assert len(line) <= 100


def test_every_profile_has_its_tables_and_methods_share_one():
    several = [row(), row(profile="other"), *(row(candidate=key, profile=f"tiny-{key}") for key in ("none", "tome"))]
    assert rendered(several).count("times as fast as") == 3
    assert rendered([]) == ""


def test_machine_facts():
    facts = machine()
    assert facts.cpu and facts.threads >= 1 and facts.python.count(".") == 2 and facts.torch
    assert facts.load_average >= 0 and facts.gpu is None and facts.driver is None
