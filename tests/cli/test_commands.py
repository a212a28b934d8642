"""All commands alike: help, version, refusals of the parser, choices, words that moved, examples of the help."""

import importlib
import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

ROOT = Path(__file__).resolve().parents[2]
MODULES = {
    "tempme-export": "tempme_export.cli.export",
    "tempme-eval": "tempme_export.cli.evaluate",
    "tempme-train": "tempme_export.cli.train",
    "tempme-doctor": "tempme_export.cli.doctor",
    "tempme-bench": "tempme_export.bench.cli",
}
SUBCOMMANDS = {
    "tempme-export": ("verify", "rebuild", "triton-repo"),
    "tempme-bench": ("compare", "report", "complexity", "kernels", "visualize", "gpu-check"),
}
CALLED = [(name,) for name in MODULES] + [(name, one) for name, all_ in SUBCOMMANDS.items() for one in all_]
CHOICES = {
    "tempme-export": [
        ("--precision", "tempme_export.parity.tolerance", "PRECISIONS"),
        ("--ranges", "tempme_export.quantization.ranges", "METHODS"),
        ("--activation", "tempme_export.encoder.backbone", "ACTIVATIONS"),
    ],
    "tempme-train": [
        ("--tune", "tempme_export.training.config", "TUNINGS"),
        ("--decay", "tempme_export.training.config", "DECAYS"),
        ("--augment", "tempme_export.training.config", "AUGMENTS"),
        ("--precision", "tempme_export.training.config", "PRECISIONS"),
        ("--store", "tempme_export.training.config", "STORES"),
    ],
}


@pytest.fixture
def run(run_command, monkeypatch):
    """Run a command by its words, on a terminal of 200 columns; returns exit code, stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "200")
    return lambda name, *words: run_command(importlib.import_module(MODULES[name]).main, *words)


def refused(result, *words):
    """One line on stderr with these words, nothing on stdout, exit code 2."""
    code, out, err = result
    assert (code, out) == (2, "") and len(err.splitlines()) == 1 and err.startswith("error: ")
    for word in words:
        assert word in err


@pytest.mark.parametrize("called", CALLED, ids=" ".join)
class TestEveryCommand:
    def test_help(self, run, called):
        code, text, err = run(*called, "--help")
        assert (code, err) == (0, "") and run(*called, "-h") == (0, text, "")
        assert f"Usage: {' '.join(called)}" in text and "--version" in text and "Exit codes: 0 done; 2 usage" in text
        assert max(map(len, text.splitlines())) == 100
        assert "<bool>" not in text and "BOOLEAN" not in text  # flags take no value

    def test_help_on_a_narrow_terminal(self, run, called, monkeypatch):
        monkeypatch.setenv("COLUMNS", "80")
        assert max(map(len, run(*called, "--help")[1].splitlines())) == 80

    def test_version(self, run, called):
        assert run(*called, "--version") == (0, f"{called[0]} {importlib.metadata.version('tempme-export')}\n", "")

    def test_an_unknown_option(self, run, called):
        name = " ".join(called)
        refused(run(*called, "--versoin"), f"{name}: found --versoin, expected", "Did you mean --version?")
        refused(run(*called, "--qqq"), f"{name}: found --qqq, expected", f"See {name} --help.")


@pytest.mark.parametrize("name", MODULES)
def test_completion_is_offered(run, name):
    assert "--install-completion" in run(name, "--help")[1]


def test_help_names_the_subcommands(run):
    text = run("tempme-export", "--help")[1]
    assert "tempme-export verify|rebuild|triton-repo ..." in text
    assert "Check every byte of a bundle and run its self-test on this machine." in text


def test_brackets_in_help_are_text(run):
    assert "synthetic[:DIR]" in run("tempme-train", "--help")[1]


class TestWords:
    @pytest.mark.parametrize(
        ("option", "instead"),
        [
            ("--verify", "tempme-export verify BUNDLE"),
            ("--rebuild", "tempme-export rebuild BUNDLE"),
            ("--triton-repo", "tempme-export triton-repo BUNDLE DIR"),
            ("--threads", "tempme-export triton-repo BUNDLE DIR --threads N"),
            ("--trace", "tempme-export CKPT --expose-merges"),
            ("--batch", "tempme-export CKPT --batch-range MIN:OPT:MAX"),
        ],
    )
    @pytest.mark.parametrize("first", [(), ("ckpt.pt",)])
    def test_one_that_moved(self, run, option, instead, first):
        refused(run("tempme-export", *first, option, "x"), f"{option} has moved. Write: {instead}")

    def test_a_subcommand_is_the_first_word(self, run, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        code, _, err = run("tempme-export", "verify", "missing")
        assert code == 3 and "missing does not exist" in err
        code, _, err = run("tempme-export", "./verify")
        assert code == 3 and "verify" in err and "does not exist" in err

    def test_one_that_is_nearly_a_subcommand(self, run, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        refused(run("tempme-export", "verfy", "b"), "Did you mean verify?", "written ./verfy")
        (tmp_path / "verfy").write_text("a file")
        code, _, err = run("tempme-export", "verfy")
        assert code == 3 and "not a PyTorch or safetensors file" in err

    def test_too_many(self, run):
        refused(run("tempme-export", "a.pt", "b.pt"), "unexpected extra argument", "b.pt")

    def test_too_few(self, run):
        refused(run("tempme-eval"), "tempme-eval: found no BUNDLE|CKPT, expected one.")
        refused(run("tempme-eval", "b"), "tempme-eval: found no --data, expected one.")
        refused(run("tempme-export", "triton-repo", "b"), "tempme-export triton-repo: found no DIR, expected one.")

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (("tempme-eval", "b", "--data", "d", "--split", "tset"), "found 'tset', expected one of train, test. Did"),
            (
                ("tempme-export", "c", "--precision", "fp61"),
                "expected one of fp32, fp16, bf16, int8. Did you mean fp16?",
            ),
            (("tempme-export", "c", "--activation", "relu"), "found 'relu', expected one of quickgelu, gelu."),
            (("tempme-export", "c", "--opset", "new"), "tempme-export: --opset: "),
            (("tempme-doctor", "--require", "vidoe"), "Did you mean video?"),
            (("tempme-doctor", "--timeout", "0"), "tempme-doctor: --timeout: "),
        ],
    )
    def test_a_value_that_is_none(self, run, words, said):
        refused(run(*words), said)

    def test_a_profile_that_is_none(self, run):
        code, out, err = run("tempme-export", ROOT / "examples" / "mini.pth", "--profile", "mini-8")
        assert (code, out) == (3, "")
        assert "no profile is called 'mini-8'" in err and "Did you mean mini-8f?" in err

    def test_a_backend_that_is_none(self, run, tmp_path):
        (tmp_path / "v.mp4").write_bytes(b"a video")
        (tmp_path / "d.csv").write_text("video,caption\nv.mp4,a\n")
        data = ("--data", tmp_path / "d.csv")
        code, out, err = run("tempme-eval", ROOT / "examples" / "mini.pth", *data, "--backend", "torhc")
        assert (code, out) == (4, "") and "Did you mean torch?" in err


@pytest.mark.parametrize(("name", "choice"), [(name, one) for name, all_ in CHOICES.items() for one in all_])
def test_choices_are_those_of_the_package(run, name, choice):
    """The commands spell them again, since they load nothing heavy."""
    option, module, constant = choice
    known = getattr(importlib.import_module(module), constant)
    usual = ("ckpt.pt",) if name == "tempme-export" else ("--data", "d", "--init", "i", "--out", "o")
    refused(run(name, *usual, option, "?"), f"{option}: found '?', expected one of {', '.join(known)}.")


@pytest.mark.parametrize("name", ["tempme-export", "tempme-eval", "tempme-train", "tempme-bench"])
def test_examples_of_the_help_are_understood(run, name, tmp_path, monkeypatch):
    """In a folder that has none of their files, they get as far as looking for them."""
    monkeypatch.chdir(tmp_path)
    shown = [line[1:].split("   ")[0] for line in run(name, "--help")[1].splitlines() if line.startswith(" tempme-")]
    assert shown
    for line in shown:
        code, out, err = run(*line.split())
        assert code in (3, 4) and out == "", f"{line}: {err}"


def test_one_word_has_one_type():
    """An option of two commands takes the same kind of value in both; choices may differ."""
    kinds = {}
    for name in ("tempme-export", "tempme-eval", "tempme-train", "tempme-bench"):
        group = typer.main.get_command(importlib.import_module(MODULES[name]).line.app)
        for command in (group, *group.commands.values()):
            for one in (one for one in command.params if one.param_type_name == "option"):
                kinds.setdefault(one.opts[0], set()).add((one.is_flag, one.multiple, one.nargs, one.metavar))
    assert {word: kind for word, kind in kinds.items() if len(kind) > 1} == {}
    assert {"--batch", "--json", "--profile", "--device"} < kinds.keys()


def test_json_is_one_document(run, tmp_path):
    code, out, err = run(
        "tempme-export", ROOT / "examples" / "mini.pth", "--out", tmp_path / "b", "--dry-run", "--json"
    )
    assert code == 0 and "dry run: nothing written" in err
    assert json.loads(out)["out"] == str(tmp_path / "b")


SLIM = """
import importlib, importlib.abc, io, json, sys
from contextlib import redirect_stderr, redirect_stdout

MAKING = {"torch", "torchvision", "triton", "onnx", "onnxscript", "open_clip", "safetensors"}

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in MAKING:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
heavy = {"numpy", "polars", "av", "onnxruntime", "openvino", "tokenizers", "ftfy", "PIL"}
found = {}
for name, module in json.loads(sys.argv[1]).items():
    for words in ("--help", "-h", "--version", "--versoin"):
        sys.argv = [name, words]
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            try:
                importlib.import_module(module).main()
            except SystemExit as end:
                code = end.code or 0
        found[f"{name} {words}"] = [code, sorted(heavy & sys.modules.keys())]
print(json.dumps(found))
"""


def test_help_and_version_load_nothing_that_is_optional_or_heavy():
    """One process for all, in which what making a bundle takes is not installed."""
    done = subprocess.run(
        [sys.executable, "-c", SLIM, json.dumps(MODULES)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        f"{name} {words}": [2 if words == "--versoin" else 0, []]
        for name in MODULES
        for words in ("--help", "-h", "--version", "--versoin")
    }
