"""`tempme-eval`: what it prints and writes, exit codes, and one message for each refusal."""

import dataclasses
import json
import shutil
import subprocess
import sys
import warnings
from functools import partial

import polars as pl
import pytest
import torch

from tempme_export.cli import evaluate as cli
from tempme_export.cli import evaluate_console
from tempme_export.data.annotations import open_data
from tempme_export.data.frames import FrameFiles
from tempme_export.encoder.profile import load_profile
from tempme_export.evaluation.encoders import open_encoder
from tempme_export.evaluation.evaluate import COLUMNS, evaluate


@pytest.fixture
def tempme_eval(run_command):
    """Run the command; returns exit code, stdout and stderr."""
    return partial(run_command, cli.main)


@pytest.fixture
def on_checkpoint(tempme_eval, mini_checkpoint, mini_profile, world):
    """Evaluate the mini checkpoint on the fast encoder, frames decoded in this process."""

    def run(*arguments, data=None):
        fixed = ("--profile", mini_profile, "--backend", "torch", "--workers", 0)
        return tempme_eval(mini_checkpoint, "--data", data or world / "data.csv", *fixed, *arguments)

    return run


@pytest.fixture
def expected(world, mini_checkpoint, mini_profile):
    data, encoder = open_data(world / "data.csv", "test"), open_encoder(mini_checkpoint, mini_profile, "torch")
    source = FrameFiles(data.clips, encoder.frames, encoder.preprocess)
    return evaluate(encoder, data, source, backend="torch")


def refusal(result, code, *words):
    """One line of error on stderr with these words, nothing on stdout, no traceback."""
    found, out, err = result
    assert found == code, err
    assert out == "" and "Traceback" not in err
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    for word in words:
        assert word in lines[0]


class TestResults:
    def test_everything_at_once(self, on_checkpoint, expected, tmp_path):
        parquet, csv = tmp_path / "found.parquet", tmp_path / "found.csv"
        code, out, err = on_checkpoint("--json", "--parquet", parquet, "--csv", csv)
        assert code == 0
        document = json.loads(out)
        assert document == json.loads(json.dumps(expected.to_dict()))
        assert document["model"] == "mini.pth" and document["backend"] == "torch"
        frame = expected.to_frame()
        assert pl.read_parquet(parquet).equals(frame)
        assert pl.read_csv(csv, schema=dict(COLUMNS)).equals(frame)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["found.csv", "found.parquet"]
        assert parquet.stat().st_mode & 0o777 == 0o644
        for words in (
            "data.csv   5 videos, 7 captions",
            "mini.pth   torch on cpu   fingerprint",
            "mini (as asked)   8 frames",
            f"wrote      {parquet}",
            f"wrote      {csv}",
        ):
            assert words in err

    def test_table(self, on_checkpoint, expected):
        code, out, err = on_checkpoint()
        assert code == 0 and out == ""
        lines = err.splitlines()
        header = next(i for i, line in enumerate(lines) if line.startswith("direction"))
        columns = " ".join(lines[header].split())
        assert columns == "direction R@1 R@5 R@10 R-Sum MdR MnR queries candidates"
        rows, notes = lines[header + 1 : header + 5], lines[header + 5 : -1]
        assert lines[-1].startswith("next       tempme-export ") and "--profile" in lines[-1]
        assert len(notes) == 2 and "among all captions" in notes[0] and "by best caption" in notes[1]
        for line, (label, one) in zip(rows, expected.directions.items(), strict=True):
            assert line.startswith(label) and len(line) <= 100
            assert line.removeprefix(label).split()[:2] == [f"{one.r1:.1f}", f"{one.r5:.1f}"]
            assert line.split()[-2:] == [str(one.queries), str(one.candidates)]

    def test_a_bundle_with_its_defaults(self, tempme_eval, mini_bundle, world):
        code, out, err = tempme_eval(mini_bundle, "--data", world / "data.csv", "--json", "--batch", 3)
        assert code == 0, err
        document = json.loads(out)
        assert document["model"] == "mini.tempme" and document["backend"] == "ort"
        assert "mini (the bundle's)" in err
        assert document["retrieval"]["text-to-video"]["queries"] == 7

    def test_features_are_kept(self, tempme_eval, mini_bundle, world, runs, tmp_path):
        runtimes = [runs("ort"), runs("text-ort")]
        arguments = (mini_bundle, "--data", world / "data.csv", "--features", tmp_path / "features", "--json")
        first = tempme_eval(*arguments)
        assert first[0] == 0 and all(one.seen for one in runtimes)
        for one in runtimes:
            one.seen.clear()
        assert tempme_eval(*arguments)[:2] == first[:2]
        assert not any(one.seen for one in runtimes), "encoded again"

    def test_frames_are_kept(self, on_checkpoint, world, tmp_path):
        copy = shutil.copytree(world, tmp_path / "world")
        table, cache = copy / "data.csv", tmp_path / "cache"
        first = on_checkpoint("--cache", cache, "--json", data=table)
        assert first[0] == 0 and any(cache.iterdir())
        for clip in copy.glob("*.avi"):
            clip.unlink()
        assert on_checkpoint("--cache", cache, "--json", data=table)[:2] == first[:2]

    def test_a_video_mended_since_the_cache_was_filled(self, on_checkpoint, world, tmp_path):
        copy = shutil.copytree(world, tmp_path / "world")
        table, cache = copy / "data.csv", tmp_path / "cache"
        (copy / "a.avi").rename(copy / "away")
        assert json.loads(on_checkpoint("--cache", cache, "--json", data=table)[1])["skipped"].keys() == {"a"}
        (copy / "away").rename(copy / "a.avi")
        assert json.loads(on_checkpoint("--cache", cache, "--json", data=table)[1])["skipped"] == {}

    def test_other_videos(self, on_checkpoint, world, tmp_path):
        table = shutil.copy(world / "data.csv", tmp_path)
        refusal(on_checkpoint(data=table), 3, "none of 5 videos readable", "--videos")
        code, _, err = on_checkpoint("--videos", world, data=table)
        assert code == 0 and "skipped" not in err

    def test_skipped_videos(self, on_checkpoint, world, tmp_path):
        copy = shutil.copytree(world, tmp_path / "world")
        (copy / "b.avi").write_bytes(b"no video")
        code, out, err = on_checkpoint("--json", data=copy / "data.csv")
        assert code == 0 and list(json.loads(out)["skipped"]) == ["b"]
        assert any(line.startswith(f"skipped    b: {copy / 'b.avi'}: ") for line in err.splitlines())
        assert "1 video could not be read and is left out with its captions" in err

    def test_only_ten_skipped_videos_are_listed(self, capsys):
        evaluate_console.show_skipped({f"v{i}": f"reason {i}" for i in range(13)})
        err = capsys.readouterr().err
        assert "v9: reason 9" in err and "v10" not in err
        assert "13 videos (3 more than listed) could not be read and are left out with their captions" in err

    def test_long_captions_are_told_once(self, on_checkpoint, world, tmp_path):
        copy = shutil.copytree(world, tmp_path / "world")
        rows = pl.read_csv(copy / "data.csv").with_columns(pl.col("caption") + " and on" * 30)
        pl.concat([rows] * 40).write_csv(copy / "data.csv")  # more texts than one call takes
        code, _, err = on_checkpoint(data=copy / "data.csv")
        assert code == 0 and err.count("longer than the model reads") == 1
        assert "TextTruncatedWarning" not in err

    def test_other_warnings_come_through(self, capsys):
        with evaluate_console.warnings_as_lines():
            for text in ("one", "one", "two"):
                warnings.warn(text, UserWarning, stacklevel=1)
        assert capsys.readouterr().err.split() == ["warning", "one", "warning", "two"]

    def test_what_is_no_number_is_told(self, capsys, expected):
        evaluate_console.show_evaluation(dataclasses.replace(expected, not_finite=2))
        assert "2 embeddings are not finite" in capsys.readouterr().err

    def test_no_group_is_left(self, on_checkpoint, world, tmp_path):
        rows = pl.read_csv(world / "data.csv").drop("group")
        rows.write_csv(tmp_path / "data.csv")
        code, _, err = on_checkpoint("--videos", world, data=tmp_path / "data.csv")
        assert code == 0 and "in group" not in err

    def test_a_checkpoint_that_knows_its_profile(self, tempme_eval, mini_checkpoint, mini_profile, world, tmp_path):
        path = tmp_path / "best.pth"
        state, profile = torch.load(mini_checkpoint, weights_only=True), load_profile(mini_profile)
        torch.save({"state_dict": state, "profile": profile.to_dict()}, path)
        code, _, err = tempme_eval(path, "--data", world / "data.csv", "--workers", 0, "--device", "cpu")
        assert code == 0
        assert "original on cpu" in err and "mini (as the checkpoint's file says)" in err


class TestFiles:
    def test_a_file_is_replaced_whole(self, on_checkpoint, expected, tmp_path):
        path = tmp_path / "found.csv"
        path.write_text("yesterday's")
        assert on_checkpoint("--csv", path)[0] == 0
        assert pl.read_csv(path, schema=dict(COLUMNS)).equals(expected.to_frame())


class TestUsage:
    @pytest.mark.parametrize("option", ["--parquet", "--csv"])
    def test_outputs_are_judged_before_the_work(self, on_checkpoint, tmp_path, option):
        refusal(on_checkpoint(option, tmp_path), 2, option, "is a folder")
        refusal(on_checkpoint(option, tmp_path / "no" / "found"), 2, option, str(tmp_path / "no"))

    def test_one_file_for_both(self, on_checkpoint, tmp_path):
        refusal(on_checkpoint("--csv", tmp_path / "f", "--parquet", tmp_path / "f"), 2, "--parquet and --csv both name")

    @pytest.mark.parametrize("option", ["--features", "--cache"])
    def test_folders(self, on_checkpoint, world, option):
        refusal(on_checkpoint(option, world / "data.csv"), 2, option, "is a file")

    def test_split(self, on_checkpoint):
        refusal(on_checkpoint("--split", "val"), 2, "--split: found 'val'", "train, test")

    def test_the_wrong_backend(self, tempme_eval, mini_bundle, world):
        data = ("--data", world / "data.csv")
        refusal(tempme_eval(mini_bundle, *data, "--backend", "torch"), 2, "runs a checkpoint", "ort, pt2")
        refusal(tempme_eval(mini_bundle, *data, "--backend", "fast"), 4, "'fast', expected one of")

    @pytest.mark.parametrize(
        "arguments", [[], ["x"], ["x", "--data"], ["x", "--data", "y", "--batch", "0"], ["--wrong"]]
    )
    def test_what_the_parser_refuses(self, tempme_eval, arguments):
        code, out, err = tempme_eval(*arguments)
        assert code == 2 and out == ""
        assert err.startswith("error: ") and "See tempme-eval --help." in err and "Traceback" not in err

    def test_help(self, tempme_eval):
        code, out, _ = tempme_eval("--help")
        assert code == 0
        for word in ("BUNDLE|CKPT", "--data", "msrvtt:DIR", "--features", "--parquet", "--json", "Exit codes"):
            assert word in out

    def test_help_is_quick(self):
        """It loads nothing that takes seconds."""
        heavy = "{'torch', 'onnxruntime', 'onnx', 'av', 'open_clip', 'polars'}"
        script = (
            "import sys; sys.argv = ['tempme-eval', '--help']\n"
            "from tempme_export.cli import evaluate\n"
            "try:\n    evaluate.main()\nexcept SystemExit:\n    pass\n"
            f"print('loaded', sorted({heavy} & set(sys.modules)))"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "loaded []"


class TestInput:
    def test_data(self, on_checkpoint, tmp_path):
        for spec, words in (
            ("nonsense", "'nonsense'"),
            (f"msrvtt:{tmp_path / 'no'}", "found no folder"),
            (tmp_path / "no.csv", "no such file"),
        ):
            refusal(on_checkpoint(data=spec), 3, words)

    def test_model(self, tempme_eval, world, tmp_path):
        data = ("--data", world / "data.csv")
        refusal(tempme_eval(tmp_path / "no.pth", *data), 3, "does not exist")
        refusal(tempme_eval(tmp_path, *data), 3, "no manifest.json")

    def test_profile(self, tempme_eval, mini_checkpoint, world):
        result = tempme_eval(mini_checkpoint, "--data", world / "data.csv", "--profile", "vit-b-32-12f")
        refusal(result, 3, "contradict each other")

    def test_a_bug_keeps_its_traceback(self, tempme_eval, mini_bundle, world, runs):
        def broken(found):
            raise ZeroDivisionError("a bug")

        runs("ort", answer=broken)
        with pytest.raises(ZeroDivisionError):
            tempme_eval(mini_bundle, "--data", world / "data.csv", "--workers", 0)
