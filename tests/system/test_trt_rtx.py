"""Our kernels as plugins in a real parser and builder of NVIDIA's: TensorRT-RTX, from the registry, on a CPU.

Its 0.3 GB are kept in build/. What it proves and what not: docs/tensorrt.md.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tempme_export.cli.rtx_check import FOLDER
from tempme_export.encoder.recipe import open_recipe
from tempme_export.exporters.plugin_nodes import plugin_nodes
from tempme_export.exporters.trt.rtx.builder import PROVIDER

ROOT = Path(__file__).parents[2]
MINI = ROOT / "examples" / "mini.pth"


@pytest.fixture(scope="module")
def environment():
    """Variables under which the check runs."""
    if not (ROOT / FOLDER / ".installed").is_file():
        made = subprocess.run(["make", FOLDER / ".installed"], cwd=ROOT, capture_output=True, text=True, timeout=500)
        if made.returncode:
            pytest.skip(f"NOT TESTED: TensorRT-RTX cannot be installed: {made.stderr.strip().splitlines()[-1]}")
    return {**os.environ, "LD_LIBRARY_PATH": str(ROOT / FOLDER / PROVIDER), "PYTHONSAFEPATH": "1"}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_every_node_of_ours_becomes_a_plugin(environment, precision):
    """The check itself also compares every launch with ours, and proves the precision of every product."""
    command = [sys.executable, "-m", "tempme_export.cli.rtx_check", MINI, "--precision", precision, "--json"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    plain, bodies, plugins = json.loads(done.stdout)["graphs"]
    nodes = len(plugin_nodes(open_recipe(MINI)))
    assert plugins["plugins"] and plugins["plugin_nodes"] == plugins["plugin_layers"] == nodes
    assert (plain["plugin_nodes"], bodies["plugin_layers"]) == (0, 0)
    assert plugins["layers"] < bodies["layers"], "what the plugins do is not built beside them"
