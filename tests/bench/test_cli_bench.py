import dataclasses
import inspect
import json
import re
import shlex
import shutil
import subprocess
import sys

import polars as pl
import pytest
import torch

from tempme_export.bench import cli, commands, paper, report
from tempme_export.bench.adapters import ADAPTER_CLAIMS
from tempme_export.encoder.complexity import complexity
from tempme_export.errors import ParityError
from tempme_export.exporters.trt.requirements import missing_for_engine
from tempme_export.files import file_sha256
from tempme_export.pipeline import export as pipeline

QUICK = ["--seconds", 0.05, "--samples", 5, "--budget", 0.2]


@pytest.mark.parametrize("arguments", [["--help"], ["complexity"]], ids=" ".join)
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
    assert all(line.startswith("next ") for line in done.stderr.splitlines())


def test_help_names_every_option(tempme_bench):
    code, out, _ = tempme_bench("--help")
    assert code == 0
    named = {"as_json": "json"}
    for parameter in inspect.signature(cli.bench).parameters.keys() - {"source"}:
        assert f"--{named.get(parameter, parameter).replace('_', '-')} " in out


def test_complexity_is_complete_when_piped(tempme_bench):
    code, out, err = tempme_bench("complexity")
    assert (code, err) == (0, "next       tempme-bench\n")
    assert "…" not in out
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert max(map(len, out.splitlines())) <= 100
    assert "TempMe B/32 Table 1 12 1 x 97 1 x 97 34.78 34.8 -0.02 yes" in lines
    assert any(line.startswith("TempMe B/32 Table 1 12 r 2, 12-9->6-10->3-11->1, R_C") for line in lines)
    assert "EViT B/32 12 1.39 12.37 0.32 23.10 0.00 0.08 37.26 74.45" in lines
    assert any(line.startswith("TempMe B/32 Table 16 8 the settings give 23.2") for line in lines)


def test_complexity_folds_but_never_cuts_on_a_terminal(tempme_bench, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = tempme_bench("complexity")
    assert code == 0
    assert "\x1b[" in out and "…" not in out


def test_complexity_as_json_is_all_of_stdout(tempme_bench):
    code, out, err = tempme_bench("complexity", "--json")
    assert (code, err) == (0, "next       tempme-bench\n")
    document = json.loads(out)
    assert document["tolerance"] == 0.1
    assert len(document["rows"]) == len(paper.CLAIMS) + len(ADAPTER_CLAIMS)
    assert document["counted"] == []
    first = document["rows"][0]
    assert first["paper_gflops"] == 53.0
    assert first["gmacs"] == pytest.approx(53.02, abs=0.005)
    assert first["difference"] == pytest.approx(first["gmacs"] - 53.0)
    assert sum(first["parts"].values()) == pytest.approx(first["gmacs"])


def test_complexity_counted_on_the_running_encoder(tempme_bench):
    code, out, err = tempme_bench("complexity", "--count", "eager", "--json")
    assert (code, err) == (0, "next       tempme-bench\n")
    counted = json.loads(out)["counted"]
    assert len(counted) == len(paper.CLAIMS) + len(ADAPTER_CLAIMS)
    for claim, row in zip(paper.CLAIMS, counted, strict=False):
        assert claim.label in row["method"]
        if "by formula only" not in row["no_eager"]:
            assert row["eager_gmacs"] == row["formula_gmacs"]
            assert row["no_graph"] and row["graph_gmacs"] is None
    assert sum(row["eager_gmacs"] is None for row in counted[: len(paper.CLAIMS)]) == 1


def one_too_many(plan, backbone):
    counted = complexity(plan, backbone)
    return dataclasses.replace(counted, mlp=counted.mlp + 1)


@pytest.mark.parametrize(
    ("changes", "by", "said"),
    [
        ({"count": one_too_many}, "eager", "multiply-accumulates per video disagree"),
        ({"printed": 35.2}, None, r"1 row\(s\) that claim to reproduce the paper differ"),
    ],
    ids=["two ways to count", "print"],
)
def test_a_row_that_is_wrong_is_refused_with_the_table_shown(capsys, changes, by, said):
    first = next(claim for claim in paper.CLAIMS if claim.label == "TempMe B/32")
    with pytest.raises(ParityError, match=said):
        commands.count(None, None, by, False, (dataclasses.replace(first, **changes),))
    assert "TempMe B/32" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "name", "final"),
    [(["--profile", "vit-l-14-12f"], "vit-l-14-12f", 170), (["--frames", 8], "vit-b-32-8f", 65)],
    ids=["profile", "frames"],
)
def test_complexity_counts_a_profile_besides(tempme_bench, arguments, name, final):
    code, out, err = tempme_bench("complexity", "--json", *arguments)
    assert code == 0 and err.splitlines()[-1] == f"next       tempme-bench --profile {name}"
    last = json.loads(out)["rows"][-1]
    assert (last["label"], last["clips"], last["tokens_per_clip"]) == (name, 1, final)
    assert last["paper_gflops"] is None and last["reproduces"] is None


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--frames", 10], 3, "no shipped profile has 10 frames"),
        (["--frames", 0], 2, "--frames: found '0', expected a whole number"),
        (["--frames", "12,12"], 2, "--frames: found '12,12', expected different items"),
        (["complexity", "--frames", "8,12"], 2, "--frames: found 2 numbers, expected one"),
        (["--mode", "speed"], 2, "--mode: found 'speed', expected one of latency, throughput, end-to-end"),
        (["--mode", "end-to-end", "--methods", "all"], 2, "Leave out --methods"),
        (["--mode", "end-to-end", "--slow-down", "ort:10"], 2, "Leave out --methods and --slow-down"),
        (["--video", "clip.mp4"], 2, "Add --mode end-to-end"),
        (["--allow-damaged"], 2, "Add --video FILE, or leave it out"),
        (["--slow-down", "ort"], 2, "--slow-down: found 'ort', expected NAME:P"),
        (["--slow-down", "ort:-1"], 2, "--slow-down: found 'ort:-1', expected NAME:P"),
        (["--slow-down", "ort:inf"], 2, "--slow-down: found 'ort:inf', expected NAME:P"),
        (["--backends", "tensorflow"], 2, "--backends: found tensorflow, expected of original"),
        (["--backends", "openvin"], 2, "Did you mean openvino?"),
        (["--methods", "vop"], 2, "'vop' for a method"),
        (["--profile", "vit-b-32-12"], 3, "no profile is called 'vit-b-32-12'"),
        (["--profile", "nowhere.toml"], 3, "nowhere.toml is not a file"),
        (["--profile", "vit-b-32-12f", "--frames", 8], 2, "has 12 frames, --frames says 8"),
        (["--batches", "1,,4"], 2, "--batches: found '1,,4', expected different items"),
        (["--batches", "1,1"], 2, "--batches: found '1,1', expected different items"),
        (["--batches", "1,x"], 2, "--batches: found 'x', expected a whole number"),
        (["--batches", "0"], 2, "--batches: found '0', expected a whole number"),
        (["--backends", "ort,"], 2, "--backends: found 'ort,', expected different items"),
        (["--samples", 1], 2, "samples: found 1, expected"),
        (["--seconds", 0], 2, "seconds: found 0"),
        (["--budget", 0], 2, "budget: found 0"),
        (["--seed", -1], 2, "seed: found -1, expected 0 or more"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else None,
)
def test_refusals(tempme_bench, arguments, code, message):
    found, out, err = tempme_bench(*arguments)
    assert found == code
    assert message in err
    assert err.startswith("error: ") and err.count("\n") == 1
    assert out == ""


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["compare", "a", "b"], 3, "a"),
        (["compare", "a"], 2, "tempme-bench compare: found no B, expected one"),
        (
            ["compare", "a", "b", "--batches", 1],
            2,
            "tempme-bench compare: found --batches, expected one of its options",
        ),
        (["report", "--out", "page"], 2, "tempme-bench report: found no DIR, expected one"),
        (["report", "a"], 2, "tempme-bench report: found no --out, expected one"),
        (["complexity", "--count", "twice"], 2, "--count: found 'twice', expected one of eager, graph"),
        (["complexity", "--strict"], 2, "tempme-bench complexity: found --strict, expected one of its options"),
        (["complexity", "somewhere"], 2, "unexpected extra argument"),
        (["visualize", "clip.mp4"], 2, "tempme-bench visualize: found no --out, expected one"),
        (["visualize", "clip.mp4", "--frames", "8,12", "--out", "p"], 2, "--frames: found 2 numbers, expected one"),
        (["visualize", "clip.mp4", "--activation", "gelu", "--out", "p"], 2, "--activation is of a checkpoint"),
        (["visulize", "clip.mp4"], 2, "Did you mean visualize?"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else None,
)
def test_refusals_of_subcommands(tempme_bench, tmp_path, monkeypatch, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    found, out, err = tempme_bench(*arguments)
    assert (found, out) == (code, "")
    assert message in err
    assert err.startswith("error: ") and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_unknown_option_is_a_usage_error(tempme_bench):
    code, _, err = tempme_bench("--gflops")
    assert code == 2
    assert "--gflops" in err


def test_a_checkpoint_from_command_to_files(tempme_bench, tiny, tiny_bundle, tmp_path):
    checkpoint, profile = tiny
    quick = [*QUICK, "--batches", "1,2"]
    names = ["original", "torch", "ort", "openvino"]
    chosen = [*quick, "--backends", ",".join(names[1:]), "--out", tmp_path]
    code, out, err = tempme_bench(checkpoint, "--profile", profile, *chosen)
    assert code == 0
    assert err.startswith(f"tiny: 4 frames, {checkpoint}\nactivation quickgelu (assumed from CLIP's own defaults; ")
    assert "\npixels " in err and "\nloading original\n" in err
    assert err.splitlines()[-1] == f"next       tempme-bench report {tmp_path} --out page"
    lines = [line.split() for line in out.splitlines()]
    assert [line[:3] for line in lines if "fp32" in line] == [[name, "fp32", batch] for batch in "12" for name in names]
    assert max(map(len, out.splitlines())) <= 100
    rows = pl.read_parquet(tmp_path / report.ROWS)
    assert rows["candidate"].to_list() == names * 2
    assert rows["parity"].all()
    ort = rows.filter(pl.col("backend").is_in(["ort", "openvino"]))
    assert set(ort["artifact_sha256"]) == {file_sha256(tiny_bundle / "video.onnx")}
    assert set(ort["artifact_mb"]) == {(tiny_bundle / "video.onnx").stat().st_size / 1e6}
    assert ort["build_s"].min() > 0
    assert tempme_bench(checkpoint, "--profile", profile, *quick, "--out", tmp_path)[0] == 2


def test_int8_is_built_once_for_both_runtimes_when_it_is_named(tempme_bench, tiny, tiny_bundle, tmp_path):
    checkpoint, profile = tiny
    quick = [*QUICK, "--backends", "ort-int8,openvino-int8"]
    code, _, err = tempme_bench(checkpoint, "--profile", profile, *quick, "--out", tmp_path)
    rows = pl.read_parquet(tmp_path / report.ROWS).filter(pl.col("candidate") != "original")
    assert code == 0, err
    assert rows["candidate"].to_list() == ["ort-int8", "openvino-int8"]
    assert set(rows["precision"]) == {"int8"} and rows["artifact_sha256"].n_unique() == 1
    assert rows["one_minus_cosine"].min() > 1e-7
    code, _, err = tempme_bench(tiny_bundle, *quick)
    assert code == 4 and "--precision int8" in err


def test_what_is_missing_is_said_unless_it_was_named(tempme_bench, tiny):
    checkpoint, profile = tiny
    quick = [checkpoint, "--profile", profile, *QUICK]
    code, out, err = tempme_bench(*quick, "--json")
    assert code == 0
    document = json.loads(out)
    assert {"ort-cuda", "pt2", "tensorrt"} <= document["missing"].keys()
    assert {"original", "torch", "ort"} <= {row["candidate"] for row in document["rows"]}
    assert "tensorrt, ort-cuda are missing, for one reason: it runs on cuda only, and this measurement on cpu." in (
        " ".join(err.split())
    )
    assert tempme_bench(*quick, "--backends", "tensorrt")[0] == 4


def test_methods_side_by_side(tempme_bench, tiny):
    checkpoint, profile = tiny
    quick = [*QUICK, "--methods", "all"]
    code, out, _ = tempme_bench(checkpoint, "--profile", profile, *quick, "--json")
    document = json.loads(out)
    assert code == 0
    rows = {row["candidate"]: row for row in document["rows"]}
    assert next(iter(rows)) == "none" and {"tome", "tempme", "evit"} <= rows.keys()
    assert rows["none"]["ratio"] == 1 and rows["none"]["backend"] == "original"
    assert (rows["none"]["final_clips"], rows["none"]["final_tokens"]) == (4, 17)
    assert rows["tempme"]["gmacs"] < rows["none"]["gmacs"]
    methods = {row["key"]: row for row in document["methods"]}
    assert methods["tome"]["videos_per_s"] == rows["tome"]["videos_per_s"]
    assert "the paper prints none of the" in methods["diffrate"]["reason"] and methods["diffrate"]["gmacs"] is None
    code, _, err = tempme_bench(checkpoint, "--profile", profile, "--methods", "none,diffrate")
    assert code == 2 and "Leave diffrate out" in err


def test_the_whole_way_of_a_video(tempme_bench, tiny, tmp_path):
    from tempme_export.media.render import render_clip

    render_clip(tmp_path / "clip.mp4", seconds=1)
    checkpoint, profile = tiny
    quick = [*QUICK, "--mode", "end-to-end", "--backends", "torch"]
    code, out, err = tempme_bench(checkpoint, "--profile", profile, *quick, "--video", tmp_path / "clip.mp4")
    assert code == 0, err
    stages = re.findall(r"batch 1 +(decode|preprocess|encode)\b", out)
    assert stages == ["decode", "preprocess", "encode"] * 2
    code, _, err = tempme_bench(checkpoint, "--profile", profile, *quick, "--video", tmp_path / "none.mp4")
    assert code == 3 and "none.mp4" in err


def test_two_runs_are_compared(tempme_bench, tiny, tmp_path):
    checkpoint, profile = tiny
    quick = [checkpoint, "--profile", profile, "--seconds", 0.3, "--samples", 60, "--budget", 6, "--backends", "torch"]
    assert tempme_bench(*quick, "--out", tmp_path / "a")[0] == 0
    assert tempme_bench(*quick, "--out", tmp_path / "b", "--slow-down", "torch:400")[0] == 0
    code, out, err = tempme_bench("compare", tmp_path / "a", tmp_path / "b", "--json")
    assert code == 0, err
    verdicts = {change["candidate"]: change["verdict"] for change in json.loads(out)["changes"]}
    assert verdicts["torch"] == "slower"
    assert "slowdown" in err
    code, out, err = tempme_bench("compare", tmp_path / "a", tmp_path / "a")
    assert code == 0 and "no change" in out and "slower" not in out
    again = ["next", "tempme-bench", "report", *2 * [str(tmp_path / "a")], "--out", "page"]
    assert shlex.split(err.splitlines()[-1]) == again


def test_a_sweep_over_frames_fits_its_costs(tempme_bench, tmp_path):
    quick = ["--profile", "mini-8f", "--frames", "4,8,16", "--backends", "torch", *QUICK]
    code, out, err = tempme_bench(*quick, "--out", tmp_path)
    assert code == 0, err
    document = json.loads((tmp_path / report.DOCUMENT).read_text())
    assert [row["frames"] for row in document["rows"]] == [4, 4, 8, 8, 16, 16]
    assert [row["final_clips"] for row in document["rows"]] == [1] * 6
    gmacs = {fit["candidate"]: fit for fit in document["fits"] if fit["quantity"] == "gmacs"}
    assert gmacs["torch"]["x"] == [4, 8, 16] and gmacs["torch"]["form"] == "linear"
    assert "x frames" in out
    code, _, err = tempme_bench("--profile", "mini-8f", "--frames", "8,13", "--backends", "torch")
    assert code == 3 and "13 frames cannot be joined into one clip" in err


def test_a_checkpoint_has_one_frame_count(tempme_bench, tiny):
    code, _, err = tempme_bench(tiny[0], "--profile", tiny[1], "--frames", "4,8")
    assert code == 2 and "a checkpoint has one frame count" in err


def test_a_sweep_that_is_interrupted_keeps_the_counts_that_were_finished(tempme_bench, tmp_path, runs):
    def second(opened):
        if len(opened) == 2:
            raise KeyboardInterrupt

    runs("ort", before=second)
    sweep = ["--profile", "mini-8f", "--frames", "4,8", "--backends", "ort"]
    code, _, err = tempme_bench(*sweep, *QUICK, "--out", tmp_path)
    assert code == 130 and "the frame counts that were finished are kept" in err
    assert [row["frames"] for row in json.loads((tmp_path / report.DOCUMENT).read_text())["rows"]] == [4, 4]


def test_a_bundle_that_was_changed_is_refused(tempme_bench, tiny_bundle, tmp_path):
    changed = shutil.copytree(tiny_bundle, tmp_path / "changed.tempme")
    with (changed / "video.onnx").open("ab") as file:
        file.write(b"more")
    code, out, err = tempme_bench(changed)
    assert (code, out) == (3, "")
    assert "video.onnx" in err


def test_a_page_of_results(tempme_bench, tiny, tmp_path):
    checkpoint, profile = tiny
    quick = [*QUICK, "--backends", "torch", "--out", tmp_path / "run"]
    code, _, err = tempme_bench(checkpoint, "--profile", profile, *quick)
    assert code == 0, err
    code, _, err = tempme_bench("report", tmp_path / "run", "--out", tmp_path / "again")
    assert code == 0 and "report.html" in err
    assert "torch" in (tmp_path / "again" / "report.html").read_text()
    assert re.fullmatch(r"next +python -m webbrowser file:///.*/again/report\.html", err.splitlines()[-1])
    code, out, _ = tempme_bench("report", tmp_path / "run", "--out", tmp_path / "again", "--json")
    files = json.loads(out)["files"]
    assert code == 0 and files[0] == str(tmp_path / "again" / "report.html") and len(files) > 1
    assert tempme_bench("report", tmp_path, "--out", tmp_path / "again")[0] == 3


def test_a_merge_picture_of_a_bundle(tempme_bench, tiny_bundle, tmp_path):
    from tempme_export.media.render import render_clip

    render_clip(tmp_path / "clip.mp4", seconds=1)
    code, out, err = tempme_bench("visualize", tmp_path / "clip.mp4", tiny_bundle, "--out", tmp_path / "pictures")
    assert (code, out) == (0, ""), err
    assert err.splitlines()[-1].endswith("/merges.gif")
    assert {"merges.png", "merges.gif", "stage-1.png"} <= {path.name for path in (tmp_path / "pictures").iterdir()}


def test_interrupted_exits_130_with_what_was_measured(tempme_bench, tiny_bundle, tmp_path, runs):
    def two(found):
        if len(found["video_embedding"]) == 2:
            raise KeyboardInterrupt
        return found

    runs("ort", answer=two)
    code, _, _ = tempme_bench(tiny_bundle, *QUICK, "--backends", "ort", "--batches", "1,2", "--out", tmp_path)
    assert code == 130
    rows = json.loads((tmp_path / report.DOCUMENT).read_text())["rows"]
    assert [(row["candidate"], row["batch"]) for row in rows] == [("original", 1), ("ort", 1)]


def test_a_bundle_is_measured_as_it_is(tempme_bench, tiny, tiny_bundle):
    quick = [*QUICK, "--backends", "ort", "--json"]
    code, out, err = tempme_bench(tiny_bundle, *quick)
    assert code == 0, err
    original, ort = json.loads(out)["rows"]
    assert original["weights"] == ort["weights"] == str(tiny[0])
    assert ort["artifact_sha256"] == file_sha256(tiny_bundle / "video.onnx")
    assert ort["build_s"] is None


@pytest.mark.gpu
def test_an_engine_is_measured_beside_torch_and_the_original(tempme_bench, tiny, tmp_path):
    """Built for real. How fast it is, is for whoever reads the rows; here it must compute the same and be timed."""
    missing = missing_for_engine("cuda")
    if missing:
        pytest.skip("; ".join(missing))
    bundle = pipeline.export(*tiny, out=tmp_path / "tiny.tempme", trt=True)
    quick = [*QUICK]
    code, out, err = tempme_bench(
        bundle.path, "--backends", "torch,tensorrt", "--device", "cuda", "--batches", "1,4", *quick, "--json"
    )
    assert code == 0, err
    rows = json.loads(out)["rows"]
    assert [(row["candidate"], row["batch"]) for row in rows] == [
        (name, batch) for batch in (1, 4) for name in ("original", "torch", "tensorrt")
    ]
    assert all(row["parity"] and row["resident_ms"] > 0 and row["device_ms"] > 0 for row in rows)


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
    quick = [*QUICK, "--backends", "torch", "--json"]
    code, out, _ = tempme_bench(checkpoint, "--profile", profile, *quick)
    assert code == 0
    assert [row["backend"] for row in json.loads(out)["rows"]] == ["original", "torch"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--frames", 12], 2, "takes 4 frames (profile tiny), --frames says 12"),
        (["--batches", 8], 2, "--batches 8: profile tiny is made for 1 to 4 videos"),
        (["--backends", "tensorflow"], 2, "--backends: found tensorflow, expected of original"),
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
