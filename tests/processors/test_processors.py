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
FURTHEST = ("old", "another order 2", "another order 3")
NUMBERS = (
    "tests/encoder/test_model.py",
    "tests/encoder/test_reference.py",
    "tests/encoder/test_ops.py",
    "tests/kernels/test_dense.py",
    "tests/kernels/test_dense_block.py",
    "tests/kernels/test_reference_kernels.py",
    "tests/quantization",
    "tests/training/test_encoder.py",
    "tests/training/test_loss.py",
    "tests/evaluation/test_encoders.py",
    "tests/exporters/test_onnx.py",
    "tests/runtime",
    "tests/bench/methods/test_encoders.py",
)
ONCE_HUNG = ("tests/encoder/test_model.py", "tests/encoder/test_reference.py", "tests/quantization/test_products.py")
ALL = os.environ.get("PROCESSORS") == "all"


@pytest.mark.parametrize("processor", PROCESSORS if ALL else FURTHEST)
def test_numbers_hold_on(processor):
    settings = PROCESSORS[processor]
    chosen = [*NUMBERS] if ALL else [*ONCE_HUNG, "-k", "half_precision or ties_are_decided or all_rows_of_all_calls"]
    emulated = ["-p", "another_order", "--deselect=tests/encoder/test_ops.py"] if "ANOTHER_ORDER" in settings else []
    paths = os.pathsep.join(filter(None, (str(Path(__file__).parent), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *emulated, *chosen]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths} | settings
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:]
