"""A fresh process that encodes a text imports what that takes: a cold start pays for nothing else."""

import json
import subprocess
import sys

import pytest

PROGRAM = """
import json, sys
before = set(sys.modules)
import tempme_export
model = tempme_export.load(sys.argv[1])
for text in sys.argv[2:]:
    assert model.encode_text([text]).shape == (1, 128)
print(json.dumps(sorted(set(sys.modules) - before)))
"""
MENDING = {"ftfy", "wcwidth"}
VIDEOS = {"PIL", "av"}
TABLES_AND_SCREENS = {"polars", "rich", "typer"}
MAKING = {"torch", "onnx", "onnxscript", "open_clip", "safetensors", "triton"}
OURS = {"media.video", "data", "cli", "evaluation", "exporters", "kernels", "pipeline", "serving", "training"}


@pytest.fixture(scope="module")
def imported(mini_bundle):
    """Modules that a process imports to encode texts, one after another: imported(text, ...) -> their names."""

    def run(*texts):
        command = [sys.executable, "-c", PROGRAM, str(mini_bundle), *texts]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return set(json.loads(done.stdout))

    return run


def test_a_plain_text_takes_numbers_a_runtime_and_a_tokenizer(imported):
    modules = imported("a dog runs on the beach")
    assert {"numpy", "onnxruntime", "tokenizers", "tempme_export.retrieval"} <= modules
    assert modules & (MENDING | VIDEOS | TABLES_AND_SCREENS | MAKING) == set()
    assert modules & {f"tempme_export.{name}" for name in OURS} == set()


@pytest.mark.parametrize("text", ["a caf\u00e9", "cats &amp; dogs", "a\x07dog"])
def test_a_text_that_may_need_mending_is_mended(imported, text):
    modules = imported("a dog", text)
    assert "ftfy" in modules and modules & (VIDEOS | TABLES_AND_SCREENS | MAKING) == set()
