"""How the backends load what they run."""

import dataclasses

import pytest

from tempme_export.bench import backends, cases
from tempme_export.runtime.processor import videos_at_once


@pytest.mark.parametrize("name", ["ort", "openvino"])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_int8_bundles_are_run_as_users_run_them(tiny, tiny_bundle, name, precision):
    """An int8 bundle's large batches go in parts, as `tempme_export.load` has it."""
    checkpoint, profile = tiny
    case = dataclasses.replace(cases.open_case(str(checkpoint), str(profile), None), precision=precision)
    plan = case.recipe.plan
    with backends.BACKENDS[name].load(case, tiny_bundle / "video.onnx", "cpu") as runner:
        at_once = videos_at_once(plan.frames * plan.tokens_per_frame)
        assert runner.max_batch == (at_once if precision == "int8" else None)
