"""The package's three functions are what a user gets, whatever was imported before."""

import subprocess
import sys

import pytest

CASES = {
    "exporters after": "import tempme_export\nimport tempme_export.exporters.onnx",
    "exporters first": "import tempme_export.exporters.onnx\nimport tempme_export",
    "pipeline": "import tempme_export\nimport tempme_export.pipeline.export",
}


@pytest.mark.parametrize("imports", CASES.values(), ids=CASES.keys())
def test_export_stays_a_function(imports):
    check = """
import sys, types
assert isinstance(tempme_export.export, types.FunctionType), tempme_export.export
try:
    tempme_export.export("missing.pt")
except tempme_export.errors.CheckpointError as error:
    assert "missing.pt does not exist" in str(error)
else:
    raise AssertionError("exported a checkpoint that is not there")
"""
    script = f"{imports}\nimport tempme_export.errors{check}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", ["tempme_export", "tempme_export.retrieval"])
def test_importing_for_use_is_light(module):
    """Encoding with a bundle needs neither torch nor onnx, which take seconds to import."""
    script = f"import sys, {module}; sys.exit(', '.join({{'torch', 'onnx', 'open_clip'}} & sys.modules.keys()) or 0)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_public_names():
    import tempme_export

    assert tempme_export.__all__ == ["export", "load", "verify"]
    for name in tempme_export.__all__:
        assert callable(getattr(tempme_export, name)) and getattr(tempme_export, name).__doc__
