"""Candidates counted as they run, and those that do not run what they are said to."""

import dataclasses
import shutil

import pytest
import torch

from tempme_export.bench.candidates import on_backends
from tempme_export.bench.cases import benchmark_clips, open_case
from tempme_export.bench.counting.running import COMPILED, count_candidates
from tempme_export.bench.entries import with_methods
from tempme_export.encoder.checkpoint import expected_shapes
from tempme_export.encoder.complexity import complexity
from tempme_export.encoder.schedule import MergePolicy, build_schedule
from tempme_export.errors import ParityError


@pytest.fixture(scope="module")
def case(tiny):
    checkpoint, profile = tiny
    return open_case(str(checkpoint), str(profile), None)


@pytest.fixture(scope="module")
def clip(case):
    return benchmark_clips([case.recipe], seed=0)[:1]


@pytest.fixture
def candidates(case, tiny_bundle, tmp_path):
    shutil.copy(tiny_bundle / "video.onnx", tmp_path)  # where a graph that is built would lie
    found, _ = on_backends(case, ("torch", "ort", "openvino"), "cpu", tmp_path, lambda _: None)
    return found


def test_every_backend_has_the_tokens_of_the_schedule(case, clip, candidates):
    counted = count_candidates(candidates, clip)
    assert [one.candidate for one in counted] == ["original", "torch", "ort", "openvino"]
    blocks = case.recipe.schedule.blocks
    for one in counted:
        assert one.tokens.clips == tuple(block.clips for block in blocks)
        assert one.tokens.attention == tuple(block.tokens_attention for block in blocks)
        assert one.tokens.mlp == tuple(block.tokens_mlp for block in blocks)
    original = counted[0]
    assert {one.parts.products for one in counted} == {candidates[0].case.counted().products}
    assert {one.reason for one in counted} == {""}
    assert original.to_dict()["product_gmacs"] == pytest.approx(candidates[0].case.counted().products / 1e9)
    assert original.to_dict()["attention"] == list(original.tokens.attention)


def test_methods_too(case, clip, tmp_path):
    found, missing = with_methods(case, ("all",), None, "cpu", tmp_path, lambda _: None)
    counted = {one.method: one for one in count_candidates(found, clip)}
    assert {"none", "tome", "tempme", "temporal", "evit"} <= counted.keys()
    assert "diffrate" in missing and "reduction" in missing
    assert counted["none"].tokens.mlp == (17,) * 4
    assert counted["evit"].tokens.mlp[-1] < 17 and counted["evit"].parts.products < counted["none"].parts.products
    for one in found:
        assert counted[one.case.method].parts.products == one.case.counted().products


@pytest.mark.parametrize("which", range(4), ids=["original", "torch", "ort", "openvino"])
def test_another_schedule_is_noticed(case, clip, candidates, which):
    other = build_schedule(MergePolicy(1, (2, 3), (2, 2), 30, 10), layers=4, frames=4, tokens_per_frame=17)
    of = dataclasses.replace(candidates[which].case, own_schedule=other)
    wrong = dataclasses.replace(candidates[which], case=of)
    with pytest.raises(ParityError, match=r"does not have the tokens of its schedule: block 0"):
        count_candidates([wrong], clip)


@pytest.mark.parametrize("which", [0, 1, 2], ids=["original", "torch", "ort"])
def test_another_formula_is_noticed(clip, candidates, which):
    one = candidates[which]
    counted = one.case.counted()
    more = dataclasses.replace(counted, mlp=counted.mlp + 1)
    of = dataclasses.replace(one.case, counter=lambda schedule, backbone: more)
    with pytest.raises(ParityError, match="what runs is not what the formula describes"):
        count_candidates([dataclasses.replace(one, case=of)], clip)


def test_what_cannot_be_watched_says_so(clip, candidates):
    class Sealed:
        pass

    one = dataclasses.replace(candidates[0], runner=Sealed())
    (found,) = count_candidates([one], clip)
    assert (found.tokens, found.parts, found.reason) == (None, None, COMPILED)
    assert found.to_dict()["clips"] is None


def test_adapters_are_counted_with_their_own_formula(case, clip, tiny, tmp_path):
    facts = dataclasses.replace(case.recipe.checkpoint.facts, adapter=8)
    generator = torch.Generator().manual_seed(3)
    shapes = expected_shapes(facts).items()
    torch.save(
        {f"clip.{name}": 0.1 * torch.randn(shape, generator=generator) for name, shape in shapes}, tmp_path / "a.pt"
    )
    adapted = open_case(str(tmp_path / "a.pt"), str(tiny[1]), None)
    found, _ = on_backends(adapted, ("torch",), "cpu", tmp_path, lambda _: None)
    original, _ = count_candidates(found, clip)
    tokens = sum(block.clips * block.tokens_mlp for block in adapted.recipe.schedule.blocks)
    plain = complexity(adapted.recipe.schedule, adapted.recipe.backbone)
    assert original.parts.mlp == plain.mlp + 2 * 8 * 64 * tokens
