import dataclasses
import inspect
import json
import shutil
import subprocess
import sys

import polars as pl
import pytest
import torch

from tempme_export.bench import cli, paper, report
from tempme_export.export import to_onnx
from tempme_export.hashing import file_sha256


@pytest.mark.parametrize("arguments", [["--help"], ["--complexity"]], ids=" ".join)
def test_what_measures_nothing_imports_nothing_heavy(arguments):
    program = f"""
import sys
sys.argv = ["tempme-bench", *{arguments!r}]
from tempme_export.bench import cli
try:
    cli.main()
except SystemExit as exit:
    heavy = {{"torch", "numpy", "polars", "onnx", "onnxruntime", "open_clip"}} & sys.modules.keys()
    sys.exit(f"imported {{heavy}}" if heavy else exit.code)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_help_names_every_option(tempme_bench):
    code, out, _ = tempme_bench("--help")
    assert code == 0
    for parameter in inspect.signature(cli.bench).parameters:
        assert parameter in ("context", "source") or f"--{parameter} " in out


def test_complexity_is_complete_when_piped(tempme_bench):
    code, out, err = tempme_bench("--complexity")
    assert (code, err) == (0, "")
    assert "…" not in out
    lines = [" ".join(line.split()) for line in out.splitlines()]
    policy = "r 2, 12-9->6-10->3-11->1, R_C 70 %, R_I 90 %"
    assert f"TempMe B/32 Table 1 {policy} 12 1 x 97 1 x 97 34.78 34.8 -0.02 yes" in lines
    assert "EViT B/32 Table 2 12 1.39 12.37 0.32 23.10 0.00 0.08 37.26 74.45" in lines
    assert any(line.startswith("TempMe B/32 Table 16 8 the settings give 23.2") for line in lines)


def test_complexity_folds_but_never_cuts_on_a_terminal(tempme_bench, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = tempme_bench("--complexity")
    assert code == 0
    assert "\x1b[" in out and "…" not in out


def test_complexity_as_json_is_all_of_stdout(tempme_bench):
    code, out, err = tempme_bench("--complexity", "--json", "-")
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert document["tolerance"] == 0.1
    assert len(document["rows"]) == len(paper.CLAIMS)
    first = document["rows"][0]
    assert first["paper_gflops"] == 53.0
    assert first["gmacs"] == pytest.approx(53.02, abs=0.005)
    assert first["difference"] == pytest.approx(first["gmacs"] - 53.0)
    assert sum(first["parts"].values()) == pytest.approx(first["gmacs"])


def test_complexity_writes_json_beside_the_table(tempme_bench, tmp_path):
    code, out, _ = tempme_bench("--complexity", "--json", tmp_path / "counts.json")
    assert code == 0
    assert "ToMe B/16" in out
    assert len(json.loads((tmp_path / "counts.json").read_text())["rows"]) == len(paper.CLAIMS)


@pytest.mark.parametrize(
    ("arguments", "name", "final"),
    [(["--profile", "vit-l-14-12f"], "vit-l-14-12f", 170), (["--frames", 8], "vit-b-32-8f", 65)],
    ids=["profile", "frames"],
)
def test_complexity_counts_a_profile_besides(tempme_bench, arguments, name, final):
    code, out, _ = tempme_bench("--complexity", "--json", "-", *arguments)
    assert code == 0
    last = json.loads(out)["rows"][-1]
    assert (last["label"], last["clips"], last["tokens_per_clip"]) == (name, 1, final)
    assert last["paper_gflops"] is None and last["reproduces"] is None


def test_a_row_that_stops_reproducing_exits_5_with_the_table_shown(tempme_bench, monkeypatch):
    tampered = dataclasses.replace(paper.CLAIMS[0], printed=53.2)
    monkeypatch.setattr(paper, "CLAIMS", (tampered, *paper.CLAIMS[1:]))
    code, out, err = tempme_bench("--complexity")
    assert code == 5
    assert "53.2" in out
    assert err.startswith("error: 1 row(s)") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--frames", 10], 3, "no shipped profile has 10 frames"),
        (["--frames", 0], 3, "no shipped profile has 0 frames"),
        (["--profile", "vit-b-32-12"], 3, "no profile is called 'vit-b-32-12'"),
        (["--profile", "nowhere.toml"], 3, "nowhere.toml is not a file"),
        (["--profile", "vit-b-32-12f", "--frames", 8], 2, "has 12 frames, --frames says 8"),
        (["--complexity", "--batch", "2", "--strict"], 2, "cannot heed batch, strict"),
        (["--complexity", "somewhere"], 2, "cannot heed source"),
        (["--complexity", "--json", "/nowhere/counts.json"], 2, "/nowhere/counts.json cannot be written"),
        (["--batch", "1,,4"], 2, "--batch '1,,4' must list"),
        (["--batch", "1,1"], 2, "--batch '1,1' must list"),
        (["--batch", "1,x"], 2, "--batch: 'x' is not a whole number"),
        (["--batch", "0"], 2, "--batch: '0' is not a whole number"),
        (["--backends", "ort,"], 2, "--backends 'ort,' must list"),
        (["--samples", 1], 2, "1 samples are too few"),
        (["--seconds", 0], 2, "must be above 0"),
        (["--seed", -1], 2, "must be 0 or above"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else None,
)
def test_refusals(tempme_bench, arguments, code, message):
    found, out, err = tempme_bench(*arguments)
    assert found == code
    assert message in err
    assert err.startswith("error: ") and err.count("\n") == 1
    assert out == ""


def test_an_unknown_option_is_a_usage_error(tempme_bench):
    code, _, err = tempme_bench("--gflops")
    assert code == 2
    assert "--gflops" in err


def test_a_checkpoint_from_command_to_files(tempme_bench, tiny, tiny_bundle, tmp_path, monkeypatch):
    def export(recipe, path, precision):
        shutil.copy(tiny_bundle / "video.onnx", path)

    monkeypatch.setattr(to_onnx, "export_video", export)
    checkpoint, profile = tiny
    quick = ["--seconds", 0.05, "--samples", 5, "--batch", "1,2"]
    code, out, err = tempme_bench(checkpoint, "--profile", profile, *quick, "--out", tmp_path)
    assert code == 0
    assert err.startswith(f"tiny: 4 frames, {checkpoint}\nloading original\n")
    lines = [line.split() for line in out.splitlines()]
    assert [line[:3] for line in lines if "pass" in line] == [
        [backend, "fp32", batch] for batch in "12" for backend in ("original", "torch", "ort")
    ]
    rows = pl.read_parquet(tmp_path / report.ROWS)
    assert rows["backend"].to_list() == ["original", "torch", "ort"] * 2
    assert rows["parity"].all()
    ort = rows.filter(pl.col("backend") == "ort")
    assert set(ort["artifact_sha256"]) == {file_sha256(tiny_bundle / "video.onnx")}
    assert ort["build_s"].min() > 0
    assert json.loads((tmp_path / report.DOCUMENT).read_text())["missing"].keys() == {"pt2"}
    assert tempme_bench(checkpoint, "--profile", profile, *quick, "--out", tmp_path)[0] == 2


def test_a_bundle_is_measured_as_it_is(tempme_bench, tiny, tiny_bundle):
    quick = ["--seconds", 0.05, "--samples", 5, "--backends", "ort", "--json", "-"]
    code, out, err = tempme_bench(tiny_bundle, *quick)
    assert code == 0, err
    original, ort = json.loads(out)["rows"]
    assert original["weights"] == ort["weights"] == str(tiny[0])
    assert ort["artifact_sha256"] == file_sha256(tiny_bundle / "video.onnx")
    assert ort["build_s"] is None


def test_a_bundle_without_its_checkpoint_names_the_command(tempme_bench, tiny, tiny_bundle, monkeypatch):
    checkpoint, _ = tiny
    hidden = checkpoint.rename(checkpoint.with_suffix(".away"))
    code, out, err = tempme_bench(tiny_bundle)
    hidden.rename(checkpoint)
    assert (code, out) == (3, "")
    assert f"{checkpoint} does not exist" in err and "tempme-bench CKPT --profile tiny.toml" in err


def test_a_bundle_whose_checkpoint_changed_is_refused(tempme_bench, tiny, tiny_bundle):
    checkpoint, _ = tiny
    before = checkpoint.read_bytes()
    tensors = torch.load(checkpoint)
    tensors["clip.logit_scale"] += 1
    torch.save(tensors, checkpoint)
    code, out, err = tempme_bench(tiny_bundle)
    checkpoint.write_bytes(before)
    assert (code, out) == (3, "")
    assert "was made from one with" in err


def test_a_bundle_has_its_profile(tempme_bench, tiny_bundle):
    code, _, err = tempme_bench(tiny_bundle, "--profile", "vit-b-32-12f")
    assert code == 2
    assert "has its profile inside" in err


def test_json_is_all_of_stdout(tempme_bench, tiny):
    checkpoint, profile = tiny
    quick = ["--seconds", 0.05, "--samples", 5, "--backends", "torch", "--json", "-"]
    code, out, _ = tempme_bench(checkpoint, "--profile", profile, *quick)
    assert code == 0
    assert [row["backend"] for row in json.loads(out)["rows"]] == ["original", "torch"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--frames", 12], 2, "takes 4 frames (profile tiny), --frames says 12"),
        (["--batch", 8], 2, "--batch 8: profile tiny is made for 1 to 4 videos"),
        (["--backends", "tensorflow"], 2, "unknown backends: tensorflow"),
        (["--device", "tpu"], 4, "device 'tpu'"),
        (["--device", "meta"], 4, "device 'meta' is not supported"),
        (["--device", "cuda:99"], 4, "device cuda:99 was asked for"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else None,
)
def test_refusals_with_a_checkpoint(tempme_bench, tiny, arguments, code, message):
    checkpoint, profile = tiny
    found, out, err = tempme_bench(checkpoint, "--profile", profile, *arguments)
    assert (found, out) == (code, "")
    assert message in err.splitlines()[-1]


def test_a_path_that_does_not_exist_is_not_a_usage_error(tempme_bench):
    code, _, err = tempme_bench("nowhere.pt")
    assert code == 3
    assert "nowhere.pt does not exist" in err
