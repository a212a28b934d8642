"""Which TensorRT installations are taken, and what is said about the others."""

import re

import pytest

from tempme_export.runtime.tensorrt_package import (
    check_version,
    install_command,
    offers_tactics,
    parse_version,
)

IMPORT = """
    from tempme_export.errors import BackendError
    from tempme_export.runtime.tensorrt_package import import_tensorrt
    try:
        print("taken:", import_tensorrt().__version__)
    except BackendError as error:
        print(error.exit_code, error)
"""


@pytest.fixture
def importing(run_python):
    """What `import_tensorrt` makes of a package of this source, by default one of a version with all that is used."""

    def run(version=None, source=None):
        if source is None:
            source = f"Builder = OnnxParser = Runtime = object\n__version__ = {version!r}\n"
        return run_python(IMPORT, {"tensorrt": source}, bare=True)

    return run


@pytest.mark.parametrize("version", ["10.15.1.29", "10.16.1.11", "11.0.0.114", "11.4.0.106", "12.0.0"])
def test_versions_that_are_taken(importing, version):
    assert importing(version) == f"taken: {version}\n"


@pytest.mark.parametrize(
    "version", ["8.6.1", "10.9.0.34", "9.3.0.post12.dev1", "10.0.0b6", "10.13.3.9.post1", "10.14.1.48", "unknown"]
)
def test_too_old(importing, version):
    said = importing(version)
    assert re.match(rf"4 TensorRT {version} .* breaks them, expected >=10\.15, better >=11\.1\. Run: pip install", said)


def test_a_minor_version_of_more_digits_is_newer():
    check_version("10.150.0")


@pytest.mark.parametrize(
    ("version", "several"),
    [("10.15.1.29", False), ("10.16.1.11", False), ("11.0.0.114", False), ("11.1.0.1", True), ("12.0", True)],
)
def test_several_tactics(version, several):
    assert offers_tactics(version) == several


def test_not_installed(run_python):
    said = run_python(IMPORT, bare=True)
    assert re.match(r"4 TensorRT is not installed \(no module tensorrt\)\. Run: pip install 'tensorrt>=10\.15", said)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("ImportError", "libnvinfer.so.11: cannot open shared object file: No such file or directory"),
        ("OSError", "libnvinfer.so.10: invalid ELF header"),
        ("RuntimeError", "nested pip failed"),
    ],
)
def test_bindings_without_libraries(importing, kind, text):
    said = importing(source=f"raise {kind}({text!r})\n")
    assert f"bindings are installed and its libraries do not load: {text}" in said


def test_what_an_uninstall_leaves(importing):
    assert "has no Builder, OnnxParser, __version__" in importing(source="Runtime = object\n")


def test_versions_as_numbers():
    assert parse_version("10.13.3.9.post1") == (10, 13, 3, 9)
    assert parse_version("580.65.06") > parse_version("580.65")
    assert parse_version("") == ()


def test_the_warning_of_tensorrts_plugins_is_no_data(run_python):
    """NVIDIA's own is written by C++, past sys.stdout."""
    plugin = "import os\nos.write(1, b'experimental\\n')\nready = 'yes'\n"
    code = "from tempme_export.runtime.tensorrt_package import import_plugins\nprint(import_plugins().ready)\n"
    modules = {"tensorrt": "", "tensorrt/plugin": plugin}
    assert run_python(code, modules, bare=True) == "yes\n"


def test_install_commands():
    assert install_command() == "pip install 'tensorrt>=10.15'"
    assert "tensorrt-cu12>=" in install_command(12) and "tensorrt-cu12>=" in install_command(11)
    assert "tensorrt-cu13>=" in install_command(13) and "tensorrt-cu13>=" in install_command(14)


@pytest.mark.parametrize(
    ("names", "cuda"),
    [
        (["torch", "tensorrt"], None),
        (["tensorrt_cu12_libs", "tensorrt-cu12-bindings"], 12),
        (["tensorrt-cu13-libs", "numpy"], 13),
        ([None, "tensorrt_cu13_bindings"], 13),
        (["tensorrt-cu12", "tensorrt_rtx_cu13_bindings"], None),
    ],
)
def test_made_for(run_python, names, cuda):
    code = "from tempme_export.runtime.tensorrt_package import made_for_cuda\nprint(made_for_cuda())\n"
    assert run_python(code, distributions=names, bare=True) == f"{cuda}\n"
