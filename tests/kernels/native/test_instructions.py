"""Instructions that the operators take, counted by callgrind: the same on every machine with one compiler."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tempme_export.kernels.native.build import FOLDER

DRIVER = Path(__file__).with_name("cost.cpp")

# Millions at level 1, the highest that valgrind knows, and half as many again, since compilers differ: g++ 12.2 makes
# 1.42 of the match and 2.03 of the merge. A loop that is no longer vectorised takes several times as many.
BUDGETS = {"tempme_match_keys": 2.1, "tempme_merge_norm": 3.0}


@pytest.fixture(scope="module")
def program(compiler, objects, tmp_path_factory):
    path = tmp_path_factory.mktemp("cost") / "cost"
    command = [compiler, "-std=c++17", "-I", FOLDER, DRIVER, *objects, "-o", path]
    subprocess.run([str(word) for word in command], check=True)
    return path


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed")
@pytest.mark.parametrize("name", BUDGETS)
def test_operator_keeps_its_budget(program, name):
    options = ("--tool=callgrind", "--callgrind-out-file=/dev/null", f"--toggle-collect={name}")
    done = subprocess.run(["valgrind", *options, program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    if done.stdout != "level 1\n":
        pytest.skip(f"{done.stdout.strip()}: counted for AVX2 alone")
    counted = int(re.search(r"Collected : (\d+)", done.stderr)[1]) / 1e6
    assert 0.2 * BUDGETS[name] < counted <= BUDGETS[name]
