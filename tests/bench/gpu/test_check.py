"""The GPU check: its dry run from command to file, what it refuses, and what becomes of steps that fail."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console

from tempme_export.bench.core.decisions import changed_share
from tempme_export.bench.gpu import check, processes, worker
from tempme_export.bench.gpu.determinism import DeterminismRow, repeat
from tempme_export.bench.gpu.processes import Context, Finished, Outcome, Step
from tempme_export.bench.reporting.read import read_results
from tempme_export.encoder.backbone import open_clip_backbone
from tempme_export.encoder.complexity import complexity
from tempme_export.encoder.profile import load_profile
from tempme_export.errors import BackendError, UsageError

ROOT = Path(__file__).resolve().parents[3]
CPU = torch.device("cpu")


def gpu_check_command(*arguments, cwd):
    command = [sys.executable, "-m", "tempme_export.bench.cli", "gpu-check", *map(str, arguments)]
    variables = {**os.environ, "PYTHONSAFEPATH": "1"}
    return subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, check=False, timeout=300)


def test_a_dry_run_from_command_to_file(tmp_path):
    steps = ("kernels", "tests", "determinism", "sanitizer", "encoder-b16", "kernels-b16")
    done = gpu_check_command(tmp_path, "--dry-run", "--minutes", 10, "--steps", ",".join(steps), cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith(check.DRY_RUN) and "…" not in done.stderr
    assert max(len(line) for line in done.stderr.splitlines() if not line.startswith(("wrote ", "next "))) <= 100
    document = json.loads((tmp_path / "gpu-check.json").read_text())
    assert document["warning"] == "dry run: CPU, not a measurement" and document["dry_run"]
    assert document["versions"]["torch"] == torch.__version__.split("+")[0]
    assert document["machine"]["cpu"]
    outcomes = {one["step"]: one for one in document["steps"]}
    assert tuple(outcomes) == steps
    assert {name: one["status"] for name, one in outcomes.items() if name != "sanitizer"} == dict.fromkeys(
        ("kernels", "tests", "determinism", "encoder-b16", "kernels-b16"), "passed"
    )
    assert outcomes["sanitizer"]["status"] == "skipped" and "installed" in outcomes["sanitizer"]["error"]
    for name in ("kernels", "determinism", "encoder-b16", "kernels-b16"):
        assert check.DRY_RUN in outcomes[name]["result"]["notes"]
    for name in ("kernels", "kernels-b16"):
        assert len(outcomes[name]["result"]["rows"]["kernels"]) == 22
    assert outcomes["tests"]["result"]["rows"]["tests"][0]["passed"] > 0
    assert all(row["equal"] for row in outcomes["determinism"]["result"]["rows"]["determinism"])
    rows = read_results(tmp_path / "gpu-check.json").rows
    assert [(row.candidate, row.batch) for row in rows] == [(name, n) for n in (1, 2) for name in worker.AS_WRITTEN]


@pytest.fixture(scope="module")
def rows(one_thread, tmp_path_factory):
    """What the encoder's step finds of the small model, with a candidate among its names that cannot be built."""
    record = worker.Record(tmp_path_factory.mktemp("step") / "r.json")
    run = worker.Run(record, dry_run=True, seconds=5.0, say=lambda _: None)
    worker._encoder(run, worker.B_32, (*worker.AS_WRITTEN[:4], "tensorrt"))
    assert json.loads(record.path.read_text())["rows"]["encoder"] == record.rows["encoder"]
    return record


def test_candidates_are_timed_beside_their_accuracy(rows):
    assert len(rows.failures) == 1 and rows.failures[0].startswith("tensorrt: BackendError: it runs on cuda only")
    original, autocast, fused, half = [row for row in rows.rows["encoder"] if row["batch"] == 2]
    assert original["candidate"] == "original" and original["one_minus_cosine"] < 1e-12
    assert original["changed_decisions"] == 0 and original["parity"]
    assert 1e-8 < half["one_minus_cosine"] < fused["one_minus_cosine"] < 1e-2
    assert autocast["one_minus_cosine"] < 1e-2 and half["changed_decisions"] is not None


def test_a_row_counts_the_products_of_the_schedule(rows):
    profile = load_profile(worker.SMALL)
    backbone = open_clip_backbone(profile.backbone)
    products = complexity(profile.schedule(backbone), backbone).products
    for row in rows.rows["encoder"]:
        assert row["tflop_s"] == pytest.approx(2 * products * row["batch"] / (row["p50_ms"] / 1e3) / 1e12)
        assert row["peak_tflop_s"] > 0 and row["clock"] == "wall"
        assert row["videos_per_s"] == pytest.approx(row["batch"] / row["p50_ms"] * 1e3)


def test_changed_decisions_are_a_share_of_tokens():
    expected = (torch.tensor([[0, 1, 2, 2]]), torch.tensor([[0, 1]]))
    found = (torch.tensor([[0, 1, 1, 2]]), torch.tensor([[0, 0]]))
    assert changed_share(expected, found) == pytest.approx(2 / 6)
    assert changed_share(expected, None) is None
    with pytest.raises(ValueError):
        changed_share(expected, found[:1])


def test_runs_that_differ_and_nans_are_found():
    same = repeat("x", "fp32", "", CPU, lambda: torch.ones(3))
    assert same.passed and same.runs == 3
    ticks = iter(range(9))
    moving = repeat("x", "fp32", "", CPU, lambda: (torch.ones(3), torch.tensor([next(ticks)])))
    assert not moving.equal and not moving.passed
    holes = repeat("x", "fp32", "", CPU, lambda: torch.tensor([torch.nan, 1.0]))
    assert holes.equal and holes.nans == 1 and not holes.passed


@pytest.fixture
def context(tmp_path):
    return Context(tmp_path, ROOT, dry_run=True)


def python(program):
    return [sys.executable, "-c", program]


def test_a_process_is_ended_at_its_limit_with_those_it_started(tmp_path):
    late = tmp_path / "late"
    grandchild = f"import time; time.sleep(3); open({str(late)!r}, 'w')"
    child = "import subprocess, sys, time\nprint('started', flush=True)\n"
    child += f"subprocess.Popen([sys.executable, '-c', {grandchild!r}])\n"
    done = processes.run_process(python(child + "time.sleep(60)"), tmp_path / "log", 1.0)
    assert done.code is None and done.lines == ("started",) and done.seconds < 20
    time.sleep(3)
    assert not late.exists()


def run_with(steps, context, seconds=100.0):
    console = Console(stderr=True, markup=False)
    document = {}
    outcomes = check.run_steps(steps, context, document, console, seconds)
    return outcomes, json.loads((context.folder / check.DOCUMENT).read_text())


def test_a_step_that_fails_leaves_the_others(context):
    def bad(step, context, limit_s):
        log = context.folder / "bad.log"
        return processes._outcome(step, limit_s, processes.run_process(python("1 / 0"), log, 60))

    def good(step, context, limit_s):
        return Outcome(step, "passed", 1.0, limit_s, result={"rows": {"tests": [{"file": "a", "passed": 1}]}})

    outcomes, document = run_with([Step("bad", 1, bad), Step("good", 3, good)], context)
    assert [one.status for one in outcomes] == ["failed", "passed"]
    assert check.failed(outcomes) == ["bad"]
    assert document["steps"][0]["error"].startswith("ZeroDivisionError")
    assert document["steps"][1]["result"]["rows"]["tests"] == [{"file": "a", "passed": 1}]
    assert outcomes[0].limit_s == pytest.approx(25, abs=1)


def test_the_time_goes_to_what_comes_first(context):
    def step(name, context, limit_s):
        return Outcome(name, "passed", 1.0, limit_s)

    outcomes, _ = run_with([Step("first", 9, step), Step("late", 1, step)], context, seconds=20.0)
    assert [(one.step, one.status, one.error) for one in outcomes] == [
        ("first", "passed", None), ("late", "passed", None),
    ]  # fmt: skip
    outcomes, document = run_with([Step("first", 9, step), Step("late", 1, step)], context, seconds=4.0)
    assert {one.status for one in outcomes} == {"skipped"} and document["steps"][0]["error"] == "no time was left"


def test_a_step_out_of_time_keeps_what_it_wrote(context):
    program = (
        "import json, sys, time\nfrom pathlib import Path\n"
        "Path(sys.argv[1]).write_text(json.dumps({'rows': {'tests': [{'file': 'a'}]}}))\ntime.sleep(60)"
    )

    def run(command, log, limit_s, **others):
        return processes.run_process([*python(program), command[4]], log, 2.0, **others)

    outcome = processes.worker("kernels", dataclasses.replace(context, run=run), 2.0)
    assert outcome.status == "timed out" and outcome.result == {"rows": {"tests": [{"file": "a"}]}}


def test_a_failure_that_a_step_reports_fails_it(context):
    def run(command, log, limit_s, **others):
        Path(command[4]).write_text(json.dumps({"failures": ["batch 1, fused: wrong"]}))
        return Finished(0, 1.0, ())

    outcome = processes.worker("kernels", dataclasses.replace(context, run=run), 9.0)
    assert (outcome.status, outcome.error) == ("failed", "batch 1, fused: wrong")


@pytest.mark.parametrize(
    ("code", "line", "status", "said"),
    [
        (0, "3 passed, 2 deselected in 1s", "passed", None),
        (1, "1 failed, 3 passed in 1s", "failed", "test_match.py failed"),
        (2, "1 error in 1s", "failed", "test_match.py failed"),
        (0, "3 skipped in 1s", "failed", "no test passed"),
        (5, "no tests ran in 0s", "failed", "no test passed"),
        (None, "...", "failed", "test_match.py timed out"),
    ],
)
def test_what_pytest_says_decides(context, code, line, status, said):
    one_file = dataclasses.replace(context, run=lambda *args, **named: Finished(code, 1.0, (line,)))
    outcome = processes.kernel_tests("tests", one_file, 9.0)
    assert outcome.status == status
    assert said is None or said in outcome.error


def test_tests_need_the_checkout(context):
    away = dataclasses.replace(context, checkout=None)
    outcome = processes.kernel_tests("tests", away, 9.0)
    assert outcome.status == "skipped" and "root of the checkout" in outcome.error


def test_tests_that_lack_a_package_are_named():
    files, notes = processes.gpu_tests(ROOT, ["onnx"])
    assert any(file.startswith("tests/kernels/triton/") for file in files)
    assert not any("test_pt2" in file for file in files)
    assert len(notes) == 1 and "want of onnx" in notes[0] and "tests/exporters/test_pt2.py" in notes[0]
    everything, notes = processes.gpu_tests(ROOT, [])
    assert "tests/exporters/test_pt2.py" in everything and notes == []


@pytest.mark.parametrize(("code", "status"), [(0, "passed"), (9, "failed"), (None, "failed")])
def test_the_sanitizer_runs_both_tools(context, monkeypatch, tmp_path, code, status):
    ran = []

    def run(command, log, limit_s, **others):
        ran.append((command[0], command[2]))
        return Finished(code, 1.0, ("========= ERROR SUMMARY: 0 errors",))

    program = tmp_path / "compute-sanitizer"
    program.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    outcome = processes.sanitizer("sanitizer", dataclasses.replace(context, dry_run=False, run=run), 60.0)
    assert ran == [(str(program), "memcheck"), (str(program), "racecheck")] and outcome.status == status


def test_the_record_is_whole_at_every_moment(tmp_path):
    record = worker.Record(tmp_path / "r.json")
    record.add("determinism", DeterminismRow("x", "fp32", "1", 3, True, 0))
    assert json.loads(record.path.read_text())["rows"]["determinism"][0]["what"] == "x"
    assert [one.name for one in tmp_path.iterdir()] == ["r.json"]


def test_refusals(tmp_path):
    options = {"dry_run": False, "minutes": 1.0}
    if not torch.cuda.is_available():
        with pytest.raises(BackendError, match="Rehearse with --dry-run"):
            check.check(tmp_path, None, **options)
    with pytest.raises(UsageError, match=r"--steps: found nonsense, expected some of encoder-b32"):
        check.check(tmp_path, "kernels,nonsense", **options)
    with pytest.raises(UsageError, match="--minutes 0: found no time"):
        check.check(tmp_path, None, dry_run=True, minutes=0.0)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be a folder"):
        check.check(tmp_path / "file", None, **{**options, "dry_run": True})


def test_without_a_gpu_the_command_exits_4(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = gpu_check_command(tmp_path, cwd=tmp_path)
    assert done.returncode == 4 and done.stderr.startswith("error: there is no GPU")


def test_every_kernel_runs_in_the_smoke_test():
    done = subprocess.run(
        [sys.executable, "-c", "from tempme_export.bench.gpu import smoke as s; import torch\n"
         "s.run_smoke((torch.bfloat16,), torch.device('cpu'))"],
        env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
