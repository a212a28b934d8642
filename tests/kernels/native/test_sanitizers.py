"""The operators under the compiler's own checks: addresses, undefined behaviour and races."""

import subprocess
from pathlib import Path

import pytest

from tempme_export.kernels.native.build import FOLDER, build

DRIVER = Path(__file__).with_name("operators.cpp")
FLAGS = ("-g1", "-O1", "-fno-sanitize-recover=all")
NOT_HERE = "unexpected memory mapping"  # what the thread sanitizer says on kernels whose addresses it does not know


def made(compiler, *arguments):
    return subprocess.run([compiler, *map(str, arguments)], capture_output=True, text=True)


@pytest.fixture(params=["address,undefined", "thread"])
def sanitizer(request, compiler, tmp_path):
    """The flag of a sanitizer; skips where programs with it are not built or do not start."""
    flag = f"-fsanitize={request.param}"
    source, program = tmp_path / "empty.cpp", tmp_path / "empty"
    source.write_text("int main() { return 0; }\n")
    if made(compiler, flag, source, "-o", program).returncode or subprocess.run([program]).returncode:
        pytest.skip(f"{compiler} builds nothing that runs with {flag} here")
    return flag


def test_operators(sanitizer, compiler, tmp_path):
    """At every level, on one thread and on four: the same bits, and nothing for the sanitizer to say."""
    flags = (*FLAGS, sanitizer)
    build(compiler, tmp_path / "library.so", tmp_path, flags)
    objects = [path for path in sorted(tmp_path.glob("*.o")) if path.name != "ort.o"]
    assert len(objects) >= 2
    program = tmp_path / "operators"
    linked = made(compiler, "-std=c++17", *flags, "-I", FOLDER, DRIVER, *objects, "-pthread", "-o", program)
    assert linked.returncode == 0, linked.stderr
    done = subprocess.run([program], capture_output=True, text=True, timeout=120)
    if NOT_HERE in done.stderr:
        pytest.skip(f"{sanitizer}: {NOT_HERE}")
    assert done.returncode == 0, done.stdout + done.stderr
    compared, _, different, _ = done.stdout.split()
    assert int(compared) >= 48 and different == "0", "24 shapes and precisions, on one thread and on four"
