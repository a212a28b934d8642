"""The preview of `--trt --dry-run`: from a recipe alone."""

import dataclasses
import json

from tempme_export.encoder.profile import BatchRange
from tempme_export.exporters.plugin_nodes import plugin_nodes
from tempme_export.exporters.trt.preview import preview_engine


def test_preview_of_a_recipe(tiny_recipe):
    profile = dataclasses.replace(tiny_recipe.profile, batch=BatchRange(1, 3, 7))
    recipe = dataclasses.replace(tiny_recipe, profile=profile)
    nodes = plugin_nodes(recipe)
    preview = preview_engine(recipe, "bf16", nodes, frame_mask=True, target="sm_90", missing=["TensorRT"])
    size = recipe.backbone.image_size
    assert preview.batch == (1, 3, 7) and preview.precision == "bf16"
    assert preview.profile == {
        "frames": tuple((n, 12, 3, size, size) for n in (1, 3, 7)),
        "frame_mask": ((1, 12), (3, 12), (7, 12)),
    }
    assert sum(preview.plugins.values()) == len(nodes) > 0
    assert all(preview.plugins[name] == sum(n.op_type == name for n in nodes) for name in preview.plugins)
    assert preview.targets == ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"), "no AMD build in an engine"
    assert preview.universal == "sm_80" and preview.target == "sm_90" and preview.missing == ("TensorRT",)
    assert json.loads(json.dumps(preview.to_dict()))["profile"]["frame_mask"] == [[1, 12], [3, 12], [7, 12]]


def test_without_gpu_or_mask(tiny_recipe):
    preview = preview_engine(tiny_recipe, "fp32", plugin_nodes(tiny_recipe))
    assert list(preview.profile) == ["frames"]
    assert preview.target is None and preview.missing == ()
