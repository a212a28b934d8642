"""A bundle is measured beside the original path with the conventions it was built with."""

import json

import pytest

from tempme_export.artifacts.bundle import write_manifest
from tempme_export.artifacts.registry import VIDEO_ONNX
from tempme_export.bench.cases import open_case
from tempme_export.encoder.recipe import open_recipe
from tempme_export.errors import BundleError
from tempme_export.pipeline import export
from tempme_export.pipeline.spec import ExportSpec


@pytest.fixture
def gelu_bundle(tiny, tmp_path):
    """A bundle of the tiny checkpoint, whose file does not say the activation, built with plain GELU."""
    recipe = open_recipe(*tiny, "gelu")
    (tmp_path / "a.tempme").mkdir()
    (tmp_path / "a.tempme" / VIDEO_ONNX.file).write_bytes(b"x")
    write_manifest(tmp_path / "a.tempme", export._manifest(ExportSpec(""), recipe, export.Built()))
    return tmp_path / "a.tempme"


def test_the_original_path_has_the_bundles_activation(gelu_bundle, tiny):
    assert open_case(str(tiny[0]), str(tiny[1]), None).recipe.backbone.activation == "quickgelu"
    recipe = open_case(str(gelu_bundle), None, None).recipe
    assert recipe.backbone.activation == "gelu"
    assert "--activation" in next(one.source for one in recipe.conventions if one.about == "activation")


def test_bundles_of_earlier_versions_say_nothing(gelu_bundle):
    manifest = json.loads((gelu_bundle / "manifest.json").read_text())
    for key in ("conventions", "files", "sha256", "format"):
        del manifest[key]
    write_manifest(gelu_bundle, manifest)
    recipe = open_case(str(gelu_bundle), None, None).recipe
    assert recipe.backbone.activation == "gelu" and recipe.conventions == ()


def test_a_configuration_that_came_later(gelu_bundle, tiny):
    pixels = tiny[0].with_name("preprocessor_config.json")
    pixels.write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    try:
        with pytest.raises(BundleError, match="other pixel statistics"):
            open_case(str(gelu_bundle), None, None)
    finally:
        pixels.unlink()
