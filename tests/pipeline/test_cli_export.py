"""`tempme-export`: exit codes, one message for each refusal, data on stdout and words on stderr."""

import json
import os
import pickle
import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from tempme_export.artifacts.bundle import MANIFEST, open_bundle, verify_files
from tempme_export.artifacts.registry import PACKAGE, TEXT_ONNX, VIDEO_ONNX
from tempme_export.cli import console
from tempme_export.encoder.profile import load_profile
from tempme_export.encoder.random_weights import draw_state_dict
from tempme_export.errors import ExportError, PrecisionError
from tempme_export.parity.checks import Check, ParityReport
from tempme_export.pipeline.spec import ExportSpec

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def export(tempme_export, small_checkpoint, small_profile, quick_export, tmp_path):
    """Run `tempme-export` on the small model with graphs that were built before."""

    def run(*arguments):
        return tempme_export(small_checkpoint, "--profile", small_profile, "--out", tmp_path / "out", *arguments)

    return run


def refusal(result, code, *words):
    """One line of error on stderr with these words, nothing on stdout, no traceback."""
    found, out, err = result
    assert found == code, err
    assert out == "" and "Traceback" not in err
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    for word in words:
        assert word in lines[0]


class TestUsage:
    def test_neither_and_both(self, tempme_export, small_checkpoint, small_bundle):
        refusal(tempme_export(), 2, "tempme-export: found no CKPT, expected one", "tempme-export --help")
        for other in ("verify", "rebuild"):
            refusal(tempme_export(small_checkpoint, other, small_bundle), 2, "unexpected extra argument")
            refusal(tempme_export(other), 2, f"tempme-export {other}: found no BUNDLE, expected one")
        refusal(tempme_export("rebuild", small_bundle, "verify", small_bundle), 2, "unexpected extra argument")

    def test_what_a_verification_has_no_use_for(self, tempme_export, small_bundle):
        for option in (["--precision", "fp16"], ["--trt"]):
            result = tempme_export("verify", small_bundle, *option, "--json")
            refusal(result, 2, f"tempme-export verify: found {option[0]}, expected one of its options")

    @pytest.mark.parametrize(
        "batch", ["8", "1:8", "1:8:64:65", "a:b:c", "1:-8:64", "1.5:2:3", "", "::", "0:1:2", "3:2:8"]
    )
    def test_batch(self, export, batch, tmp_path):
        refusal(export("--batch-range", batch), 2, f"--batch-range: found {batch!r}", "MIN")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("dry", [[], ["--dry-run"]])
    def test_precision(self, export, tmp_path, dry):
        refusal(
            export("--precision", "int4", *dry), 2, "--precision: found 'int4', expected one of fp32, fp16, bf16, int8"
        )
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("arguments", [["--presicion", "fp16"], ["a", "b"], ["--opset", "new"], ["--out"]])
    def test_what_the_parser_refuses(self, tempme_export, arguments):
        refusal(tempme_export("ckpt.pt", *arguments), 2, "tempme-export: ", "See tempme-export --help.")

    def test_help(self, tempme_export):
        code, out, _ = tempme_export("--help")
        assert code == 0
        for word in (
            "CKPT",
            "--profile",
            "--precision",
            "--frame-mask",
            "verify",
            "triton-repo",
            "--dry-run",
            "--json",
            "Exit codes",
        ):
            assert word in out


class Code:
    def __reduce__(self):
        return (print, ("loaded",))


class TestInput:
    """Exit 3: checkpoint, profile or bundle."""

    def test_a_checkpoint_that_is_none(self, tempme_export, small_checkpoint, tmp_path, capsys):
        whole = small_checkpoint.read_bytes()
        paths = {name: tmp_path / f"{name}.pt" for name in ("empty", "truncated", "code", "text", "foreign")}
        paths["empty"].write_bytes(b"")
        paths["truncated"].write_bytes(whole[: len(whole) // 2])
        paths["code"].write_bytes(pickle.dumps({"clip.proj": Code()}))
        paths["text"].write_text("no checkpoint")
        torch.save({"layer.weight": torch.zeros(3)}, paths["foreign"])
        before = sorted(tmp_path.iterdir())
        for path, words in (
            (tmp_path / "missing.pt", "does not exist"),
            (tmp_path, "is a folder"),
            (paths["empty"], "is empty"),
            (paths["truncated"], "truncated"),
            (paths["code"], "holds code or objects"),
            (paths["text"], "not a PyTorch or safetensors file"),
            (paths["foreign"], "not a CLIP"),
        ):
            for more in ([], ["--dry-run"]):
                refusal(tempme_export(path, *more), 3, str(path), words)
        assert sorted(tmp_path.iterdir()) == before

    def test_code_in_a_zip_is_not_run(self, tempme_export, tmp_path):
        path = tmp_path / "code.pt"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("code/data.pkl", pickle.dumps({"clip.proj": Code()}, protocol=2))
            archive.writestr("code/version", "3\n")
        refusal(tempme_export(path), 3, "holds code or objects")

    def test_wrong_backbone(self, tempme_export, small_checkpoint):
        result = tempme_export(small_checkpoint, "--profile", "vit-b-32-12f")
        refusal(result, 3, "contradict each other", "width is 128 in the checkpoint and 768", "--profile")

    def test_contradictory_profile(self, tempme_export, small_checkpoint, small_profile, tmp_path):
        text = small_profile.read_text()
        for old, new, words in (
            ("frames = 4", "frames = 8", "clip positions"),
            ("clip_layers = [1, 2]", "clip_layers = [0, 2]", "clip positions"),
            ("clip_factors = [2, 2]", "clip_factors = [2, 3]", "cannot be joined by 3"),
            ("image_r = 1", "image_r = 40", "image_r = 40"),
            ("image_r = 1", "image_s = 1", "unknown key 'image_s'"),
            ("[merge]", "[merge", "cannot be read as TOML"),
            ("text_length = 8", "text_length = 78", "77 positions"),
        ):
            assert old in text
            (tmp_path / "wrong.toml").write_text(text.replace(old, new))
            refusal(tempme_export(small_checkpoint, "--profile", tmp_path / "wrong.toml"), 3, words)

    def test_no_such_profile(self, tempme_export, small_checkpoint, tmp_path):
        refusal(tempme_export(small_checkpoint, "--profile", "vit-b-33"), 3, "'vit-b-33'", "vit-b-32-12f")
        refusal(tempme_export(small_checkpoint, "--profile", tmp_path / "no.toml"), 3, "no.toml is not a file")

    def test_no_profile_fits(self, tempme_export, small_checkpoint):
        refusal(tempme_export(small_checkpoint), 3, "fits no shipped profile", "Write one", "vit-b-32-12f")

    def test_several_profiles_fit(self, tempme_export, tmp_path):
        state = draw_state_dict(load_profile("mini-8f-none"), seed=1)
        plain = {name: tensor for name, tensor in state.items() if "LoRA" not in name and "TVPt" not in name}
        torch.save(plain, tmp_path / "plain.pt")
        refusal(
            tempme_export(tmp_path / "plain.pt"),
            3,
            "profiles: mini-8f, mini-8f-none",
            "Choose one with --profile",
        )

    def test_output_in_the_way(self, export, tmp_path):
        (tmp_path / "out").write_text("a thesis")
        refusal(export("--force"), 3, "is no bundle; it is left alone")

    def test_no_bundle_to_verify(self, tempme_export, tmp_path):
        refusal(tempme_export("verify", tmp_path / "missing"), 3, "does not exist")
        refusal(tempme_export("verify", tmp_path), 3, "has no manifest.json")


class TestBackend:
    """Exit 4: what this machine or version lacks."""

    @pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
    @pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
    @pytest.mark.parametrize("device", ["cuda", "cuda:3", "tpu"])
    def test_device(self, export, tmp_path, device, precision):
        refusal(export("--device", device, "--precision", precision), 4, device.split(":")[0])
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
    def test_verify_on_a_device(self, tempme_export, small_bundle):
        refusal(tempme_export("verify", small_bundle, "--device", "cuda"), 4, "CUDA")


@pytest.fixture
def wrong_text_tower(quick_export, builds):
    """What comes out as text.onnx has its projection negated."""
    builds.negated(TEXT_ONNX)


class TestParityAndBuild:
    def test_parity_failure(self, export, wrong_text_tower, tmp_path):
        code, out, err = export("--json")
        assert (code, out) == (5, "")
        assert "FAIL" in err and "PASS" in err
        assert "error: parity failed. text.onnx: text, batch 8: 1 - cosine is 2, limit 1e-06" in err
        assert f"kept as {tmp_path / 'out.failed'}" in err
        assert [path.name for path in tmp_path.iterdir()] == ["out.failed"]

    def test_build_failure(self, export, builds, tmp_path):
        builds.failing(VIDEO_ONNX, ExportError("the graph holds ai.onnx.Loop, which other runtimes refuse."))
        refusal(export(), 6, "ai.onnx.Loop")
        assert list(tmp_path.iterdir()) == []

    def test_unwritable_output(self, tempme_export, small_checkpoint, small_profile, tmp_path):
        out = tmp_path / "missing" / "out"
        refusal(tempme_export(small_checkpoint, "--profile", small_profile, "--out", out), 6, "is not a folder")

    def test_untested_opset(self, tempme_export, small_checkpoint, small_profile, tmp_path):
        out = tmp_path / "out"
        result = tempme_export(small_checkpoint, "--profile", small_profile, "--out", out, "--opset", "19")
        refusal(result, 2, "opset: found 19, expected one of 18, 20, 23")
        assert list(tmp_path.iterdir()) == []

    def test_a_bug_keeps_its_traceback(self, small_checkpoint, small_profile, tmp_path):
        script = (
            "import sys\n"
            "from dataclasses import replace\n"
            "from tempme_export.artifacts.registry import VIDEO_ONNX, registered\n"
            "from tempme_export.cli.export import main\n"
            "class Buggy:\n"
            "    def check(self, spec): raise RuntimeError('a bug')\n"
            "sys.argv = ['tempme-export', *sys.argv[1:]]\n"
            "with registered(replace(VIDEO_ONNX, builder=Buggy())):\n"
            "    main()\n"
        )
        arguments = [small_checkpoint, "--profile", small_profile, "--out", tmp_path / "out"]
        done = run_python("-c", script, *arguments)
        assert done.returncode == 1 and done.stdout == ""
        assert "Traceback (most recent call last)" in done.stderr and "RuntimeError: a bug" in done.stderr
        assert list(tmp_path.iterdir()) == []


class TestDone:
    def test_words_go_to_stderr(self, export, tmp_path):
        code, out, err = export()
        assert (code, out) == (0, "")
        for word in ("checkpoint", "small (as asked)", "1 (joins 2)", "self-test", "6 clips and 8 texts", "PASS"):
            assert word in err
        assert "40 -> 16 tokens" in err, "four frames of ten tokens"
        assert f"done       {tmp_path / 'out'} in " in err
        assert "FAIL" not in err and "NOT RUN" not in err
        assert [line.split()[:2] for line in err.splitlines()[-4:]] == [
            ["next", one] for one in ("python", "tempme-export", "tempme-bench", "tempme-eval")
        ]
        verify_files(open_bundle(tmp_path / "out"))

    def test_json_is_one_document(self, export, tmp_path):
        code, out, err = export("--json", "--batch-range", "1:2:4")
        assert code == 0 and "done" in err
        document = json.loads(out)
        assert document == {
            "bundle": str(tmp_path / "out"),
            "manifest": json.loads((tmp_path / "out" / MANIFEST).read_text()),
        }
        assert document["manifest"]["profile"]["shapes"]["batch"] == [1, 2, 4]

    def test_options_reach_the_exporters(self, tempme_export, builds):
        specs = builds.seeing(PACKAGE)
        result = tempme_export(
            *("ckpt.pt", "--profile", "p.toml", "--out", "o", "--precision", "bf16", "--batch-range", "2:3:4"),
            *("--frame-mask", "--pt2", "--device", "cuda:1", "--opset", "23", "--force"),
        )
        refusal(result, 2, "seen")
        assert specs == [
            ExportSpec(
                "ckpt.pt",
                "p.toml",
                Path("o"),
                precision="bf16",
                batch=(2, 3, 4),
                frame_mask=True,
                options=frozenset({"pt2"}),
                device="cuda:1",
                opset=23,
                force=True,
            )
        ]

    def test_default_output(self, tempme_export, small_checkpoint, small_profile, quick_export, tmp_path):
        checkpoint = tmp_path / "ckpt.pth"
        checkpoint.symlink_to(small_checkpoint)
        assert tempme_export(checkpoint, "--profile", small_profile)[0] == 0
        verify_files(open_bundle(tmp_path / "ckpt.tempme"))

    def test_not_run_is_said(self, export, runs):
        """A precision this runtime has no kernels for: built, and plainly not proven."""

        def refuse(opened):
            raise PrecisionError("cannot run video.onnx: [ONNXRuntimeError] : 9 : [/usr/lib] no kernel [red]")

        runs("ort", before=refuse)
        code, _, err = export("--precision", "bf16")
        assert code == 0
        assert "NOT RUN" in err and "[ONNXRuntimeError] : 9 : [/usr/lib] no kernel [red]" in " ".join(err.split())
        assert re.search(r" done .* nothing is proven", " ".join(err.split()))

    def test_parity_table_shows_what_it_is_given(self, capsys):
        """Brackets are text, not style."""
        check = Check("decisions [1]", 0.5, 0.1, detail="at [/block/1] [bold]x")
        console.show_parity([ParityReport("video.onnx", "ort", (check,))])
        err = capsys.readouterr().err
        assert "decisions [1]" in err and "at [/block/1] [bold]x" in err and "FAIL" in err


class TestDryRun:
    def test_writes_nothing(self, tempme_export, builds, small_checkpoint, small_profile, tmp_path):
        builds.failing(VIDEO_ONNX, AssertionError("worked"))
        out = tmp_path / "out"
        code, data, err = tempme_export(small_checkpoint, "--profile", small_profile, "--out", out, "--dry-run")
        assert (code, data) == (0, "")
        assert "dry run: nothing written" in err and str(out) in err and "40 -> 16 tokens" in err
        again = ["next", "tempme-export", str(small_checkpoint), "--profile", str(small_profile), "--out", str(out)]
        assert shlex.split(err.splitlines()[-1]) == again
        assert list(tmp_path.iterdir()) == []
        assert sorted(path.name for path in small_checkpoint.parent.iterdir()) == ["small.pth", "small.toml"]

    def test_json_says_what_would_be_built(self, export, small_recipe, tmp_path):
        code, out, err = export("--dry-run", "--json", "--batch-range", "2:3:4")
        assert code == 0 and "dry run" in err
        document = json.loads(out)
        assert document["out"] == str(tmp_path / "out")
        assert [block["tokens_mlp"] for block in document["schedule"]["blocks"]] == [9, 12, 16]
        expected = small_recipe.profile.to_dict()
        expected["shapes"] = {"batch": [2, 3, 4]}
        assert document["profile"] == expected

    def test_refuses_what_a_run_would_refuse(self, export, tmp_path):
        (tmp_path / "out").write_text("a thesis")
        refusal(export("--dry-run"), 3, "is no bundle")


class TestVerify:
    def test_unchanged(self, tempme_export, small_bundle):
        code, out, err = tempme_export("verify", small_bundle)
        assert (code, out) == (0, "")
        assert "3 files, every byte as the manifest says" in err
        assert "FAIL" not in err and f"{small_bundle} verified" in err
        assert err.splitlines()[-2] == f"next       tempme-bench {small_bundle}"

    def test_json(self, tempme_export, small_bundle):
        code, out, _ = tempme_export("verify", small_bundle, "--json")
        document = json.loads(out)
        assert code == 0 and document["bundle"] == str(small_bundle)
        assert [(report["artifact"], report["status"]) for report in document["parity"]] == [
            (VIDEO_ONNX.file, "passed"),
            (TEXT_ONNX.file, "passed"),
        ]
        assert all(np.isfinite(check["value"]) for report in document["parity"] for check in report["checks"])

    def test_changed(self, tempme_export, bundle_copy):
        with (bundle_copy / VIDEO_ONNX.file).open("ab") as stream:
            stream.write(b"\0")
        refusal(tempme_export("verify", bundle_copy, "--json"), 3, "video.onnx was changed")

    def test_failed_bundle(self, tempme_export, export, wrong_text_tower, tmp_path):
        assert export()[0] == 5
        code, out, err = tempme_export("verify", tmp_path / "out.failed", "--json")
        assert (code, out) == (5, "")
        assert "does not compute here what it did where it was built" in err


def run_python(*arguments):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "120"}
    return subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, timeout=300, env=environment
    )


class TestProcess:
    def test_help_does_not_import_the_heavy_packages(self):
        script = (
            "import sys\n"
            "sys.argv = ['tempme-export', '--help']\n"
            "from tempme_export.cli.export import main\n"
            "try:\n"
            "    main()\n"
            "except SystemExit as end:\n"
            "    heavy = {'torch', 'onnx', 'onnxruntime', 'open_clip', 'onnxscript', 'polars', 'av'}\n"
            "    heavy &= sys.modules.keys()\n"
            "    sys.stderr.write(f'{end.code} {sorted(heavy)}')\n"
        )
        done = run_python("-c", script)
        assert "Usage:" in done.stdout
        assert done.stderr == "0 []"

    def test_without_onnxruntime(self, small_checkpoint, small_profile, tmp_path):
        """In a process that has imported nothing yet, as on a machine where only the core is installed."""
        script = "import sys\nsys.modules['onnxruntime'] = None\nfrom tempme_export.cli.export import main\nmain()\n"
        done = run_python("-c", script, small_checkpoint, "--profile", small_profile, "--out", tmp_path / "out")
        assert done.returncode == 4 and "ONNX Runtime is not installed" in done.stderr, done.stderr
        assert "Traceback" not in done.stderr and list(tmp_path.iterdir()) == []

    def test_module_is_the_command(self):
        done = run_python("-m", "tempme_export", "--help")
        assert done.returncode == 0 and done.stderr == ""
        assert "Usage:" in done.stdout and "verify" in done.stdout

    def test_exit_code_of_a_refusal(self, tmp_path):
        done = run_python("-m", "tempme_export", tmp_path / "missing.pt")
        assert done.returncode == 3 and done.stdout == ""
        step, refusal = done.stderr.splitlines()
        assert step == "started    reading the checkpoint"
        assert refusal.startswith("error: ") and "does not exist" in refusal
