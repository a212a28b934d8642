"""How the backends load what they run."""

import dataclasses

import pytest

from tempme_export.bench import candidates, cases
from tempme_export.runtime.processor import videos_at_once


@pytest.mark.parametrize("name", ["ort", "openvino"])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_int8_bundles_are_run_as_users_run_them(tiny, tiny_bundle, name, precision):
    """An int8 bundle's large batches go in parts, as `tempme_export.load` has it."""
    checkpoint, profile = tiny
    case = dataclasses.replace(cases.open_case(str(checkpoint), str(profile), None), precision=precision)
    schedule = case.recipe.schedule
    with candidates.known_candidates()[name].load(case, tiny_bundle / "video.onnx", "cpu") as runner:
        at_once = videos_at_once(schedule.frames * schedule.tokens_per_frame)
        assert runner.max_batch == (at_once if precision == "int8" else None)


@pytest.mark.parametrize(
    ("cpuinfo", "slow"), [("flags : fma avx2 amx_bf16 amx_tile\n", ()), ("flags : fma avx2\n", ("cpu",))]
)
def test_autocast_is_a_baseline_where_the_processor_has_tiles_for_it(tmp_path, cpuinfo, slow):
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    assert candidates._where_bf16_is_slow(tmp_path / "cpuinfo") == slow
    assert candidates._where_bf16_is_slow(tmp_path / "nothing") == ("cpu",)
