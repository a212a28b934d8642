"""Which TensorRT installations are taken, and what is said about the others."""

import importlib.metadata
import sys
from types import ModuleType, SimpleNamespace

import pytest

from tempme_export.errors import BackendError
from tempme_export.runtime import tensorrt_package
from tempme_export.runtime.tensorrt_package import (
    check_version,
    import_tensorrt,
    install_command,
    made_for_cuda,
    parse_version,
)


@pytest.fixture
def installed(monkeypatch):
    """Puts a tensorrt of a version in place, or an error that importing it ends in."""

    def put(version=None, error=None, names=("Builder", "OnnxParser", "Runtime")):
        module = ModuleType("tensorrt")
        for name in names:
            setattr(module, name, object)
        if version is not None:
            module.__version__ = version

        def load(name):
            assert name == "tensorrt"
            if error is not None:
                raise error
            return module

        monkeypatch.setattr(
            tensorrt_package, "importlib", SimpleNamespace(import_module=load, metadata=importlib.metadata)
        )
        return module

    return put


@pytest.mark.parametrize(
    "version", ["10.9.0.34", "10.13.3.9.post1", "10.15.1.29", "11.0.0.114", "11.4.0.106", "12.0.0"]
)
def test_versions_that_are_taken(installed, version):
    assert import_tensorrt.__module__ == tensorrt_package.__name__
    module = installed(version)
    assert import_tensorrt() is module


@pytest.mark.parametrize("version", ["8.6.1", "10.8.0.43", "9.3.0.post12.dev1", "10.0.0b6", "unknown"])
def test_too_old(installed, version):
    installed(version)
    with pytest.raises(
        BackendError, match=rf"TensorRT {version} .* no plugins built ahead of time.*pip install"
    ) as caught:
        import_tensorrt()
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("version", ["10.14.1.48", "10.14.1.48.post1"])
def test_the_broken_version(installed, version):
    installed(version)
    with pytest.raises(BackendError, match=r"plugins built ahead of time are broken; expected >=10\.9, not 10\.14"):
        import_tensorrt()
    check_version("10.1400.0")


def test_not_installed(installed):
    installed(error=ModuleNotFoundError("No module named 'tensorrt'", name="tensorrt"))
    with pytest.raises(BackendError, match=r"not installed \(no module tensorrt\)\. Run: pip install 'tensorrt>=10\.9"):
        import_tensorrt()


@pytest.mark.parametrize(
    "error",
    [
        ImportError("libnvinfer.so.11: cannot open shared object file: No such file or directory"),
        OSError("libnvinfer.so.10: invalid ELF header"),
        RuntimeError("nested pip failed"),
    ],
)
def test_bindings_without_libraries(installed, error):
    installed(error=error)
    with pytest.raises(BackendError, match=r"bindings are installed and its libraries do not load: (lib|nested)"):
        import_tensorrt()


def test_what_an_uninstall_leaves(installed):
    installed(names=("Runtime",))
    with pytest.raises(BackendError, match="has no Builder, OnnxParser, __version__"):
        import_tensorrt()


def test_the_import_is_the_real_one(monkeypatch):
    module = ModuleType("tensorrt")
    module.Builder = module.OnnxParser = module.Runtime = object
    module.__version__ = "11.4.0.106"
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    assert import_tensorrt() is module
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(BackendError, match="not installed"):
        import_tensorrt()


def test_versions_as_numbers():
    assert parse_version("10.13.3.9.post1") == (10, 13, 3, 9)
    assert parse_version("580.65.06") > parse_version("580.65")
    assert parse_version("") == ()


def test_install_commands():
    assert install_command() == "pip install 'tensorrt>=10.9,!=10.14.*'"
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
def test_made_for(monkeypatch, names, cuda):
    listed = [SimpleNamespace(metadata={"Name": name}) for name in names]
    monkeypatch.setattr(importlib.metadata, "distributions", lambda: iter(listed))
    assert made_for_cuda() == cuda
