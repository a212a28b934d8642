"""The tests that compare numbers, as other processors compute them.

PROCESSORS=all runs every one of them on every imitation (`make test-processors`); otherwise those that once hung on a
processor's order of addition, on the imitations furthest from each other.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Each library has its own switch: torch's kernels, MKL, oneDNN (of torch and OpenVINO), OpenBLAS (of NumPy).
# ONNX Runtime has none.
OLD = {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "SSE41"}
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
AVX512 = {"ATEN_CPU_CAPABILITY": "avx512", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}
PROCESSORS = {
    "old": OLD | {"OPENBLAS_CORETYPE": "Nehalem"},
    "avx2": AVX2 | {"OPENBLAS_CORETYPE": "Haswell"},
    "avx512": AVX512 | {"OPENBLAS_CORETYPE": "SkylakeX"},
    "two threads": {"OMP_NUM_THREADS": "2"},
    **{f"another order {seed}": {"ANOTHER_ORDER": str(seed)} for seed in range(1, 5)},
}
# OpenVINO writes its TopK with instructions that a processor without AVX lacks, and so refuses to compile a graph that
# has one. The oldest processor here that it serves is the next one.
WITHOUT_OPENVINO = ("old",)
FURTHEST = ("old", "another order 2", "another order 3")
NUMBERS = (
    "tests/encoder/test_model.py",
    "tests/encoder/test_reference.py",
    "tests/encoder/test_ops.py",
    "tests/encoder/checkpoint/test_hugging_face.py",
    "tests/kernels/test_dense.py",
    "tests/kernels/test_dense_block.py",
    "tests/kernels/test_reference_kernels.py",
    "tests/quantization",
    "tests/training/test_encoder.py",
    "tests/training/test_loss.py",
    "tests/training/test_original.py",
    "tests/training/test_distributed.py",
    "tests/evaluation/test_encoders.py",
    "tests/evaluation/test_evaluate.py",
    "tests/exporters/test_onnx.py",
    "tests/exporters/test_onnx_merges.py",
    "tests/exporters/test_external_data.py",
    "tests/exporters/test_plugin_functions.py",
    "tests/exporters/test_plugin_onnx.py",
    "tests/exporters/test_pt2.py",
    "tests/exporters/test_ort_ops.py",
    "tests/pipeline/test_ort_ops.py",
    "tests/pipeline/test_selftest.py",
    "tests/pipeline/test_retrieval.py",
    "tests/pipeline/test_package.py",
    "tests/pipeline/test_expose_merges.py",
    "tests/artifacts/test_earlier_bundle.py",
    "tests/acceptance/test_activation.py",
    "tests/acceptance/test_backends.py",
    "tests/acceptance/test_external_data.py",
    "tests/acceptance/test_threads.py",
    "tests/runtime",
    "tests/bench/methods/test_encoders.py",
    "tests/bench/methods/test_recipes.py",
)
ONCE_HUNG = ("tests/encoder/test_model.py", "tests/encoder/test_reference.py", "tests/quantization/test_products.py")
ALL = os.environ.get("PROCESSORS") == "all"


def run(command, settings, folder):
    """With a cache of compiled graphs of its own: Inductor's key lacks the vector instructions, so that loops written
    for AVX-512 would be compiled as AVX2 and return what nobody wrote."""
    own = {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_CACHE_DIR": str(folder)}
    environment = os.environ | own | settings
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("processor", PROCESSORS if ALL else FURTHEST)
def test_numbers_hold_on(processor, tmp_path):
    settings = PROCESSORS[processor]
    chosen = NUMBERS if ALL else ONCE_HUNG
    names = [] if ALL else ["(half_precision or ties_are_decided or all_rows_of_all_calls)"]
    if processor in WITHOUT_OPENVINO:
        names.append("not openvino")
    emulated = ["-p", "another_order", "--deselect=tests/encoder/test_ops.py"] if "ANOTHER_ORDER" in settings else []
    paths = os.pathsep.join(filter(None, (str(Path(__file__).parent), os.environ.get("PYTHONPATH"))))
    selected = ["-k", " and ".join(names)] if names else []
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *emulated, *chosen, *selected]
    done = run(command, settings | {"PYTHONPATH": paths}, tmp_path)
    assert done.returncode == 0, done.stdout[-5000:]


TOP_OF_A_ROW = """
import numpy, openvino
from openvino import opset13
row = opset13.parameter([1, 8], numpy.float32)
openvino.Core().compile_model(openvino.Model(opset13.topk(row, 3, -1, "max", "value").outputs(), [row]), "CPU")
"""


@pytest.mark.parametrize("processor", ["old", "avx2"])
def test_openvino_is_left_out_where_it_compiles_no_merge(processor, tmp_path):
    """Once it does, its cases belong there."""
    pytest.importorskip("openvino")
    done = run([sys.executable, "-c", TOP_OF_A_ROW], PROCESSORS[processor], tmp_path)
    assert ("bad combination" in done.stderr) == (done.returncode != 0) == (processor in WITHOUT_OPENVINO), done.stderr
