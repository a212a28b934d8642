"""The paper's figures typed in here, and costs by hand on sizes small enough to follow."""

import dataclasses

import pytest

from tempme_export.bench import paper
from tempme_export.bench.adapters import (
    ADAPTER_CLAIMS,
    ADAPTER_WIDTH,
    PROMPTS,
    counter_for,
    prompted_schedule,
    with_adapters,
    with_key_prompts,
)
from tempme_export.encoder.backbone import open_clip_backbone
from tempme_export.encoder.complexity import complexity
from tempme_export.encoder.random_weights import facts_of
from tempme_export.errors import ParityError, ProfileError

FACTS = facts_of(open_clip_backbone("ViT-B-32-quickgelu"))

# label -> the paper's figure, ours to one decimal, whether the text says enough
SPEC = {
    "Prompt B/32": (58.2, 58.2, True),
    "Prompt B/16": (216.8, 216.8, True),
    "Adapter B/32": (53.1, 53.1, True),
    "Adapter B/16": (211.7, 211.6, True),
    "VoP B/32": (58.0, 53.0, False),
    "VoP B/16": (246.2, 211.3, False),
    "DGL B/32": (67.4, 53.0, False),
    "DGL B/16": (251.2, 211.3, False),
}
CLAIMS = {claim.label: claim for claim in ADAPTER_CLAIMS}
BACKBONE = open_clip_backbone("ViT-B-32-quickgelu")
PLAIN = paper.merge_schedule(CLAIMS["Adapter B/32"], BACKBONE)


@pytest.mark.parametrize("label", SPEC)
def test_rows_of_the_paper(label):
    printed, counted, enough = SPEC[label]
    row = paper.count(CLAIMS[label])
    assert (row.printed, round(row.complexity.gmacs, 1)) == (printed, counted)
    assert row.reproduces == row.holds == enough
    assert bool(row.reason) != enough


def test_every_printed_row_is_there_and_the_check_passes():
    assert {label for label, claim in CLAIMS.items() if claim.printed is not None} == SPEC.keys()
    assert len(CLAIMS) == len(ADAPTER_CLAIMS) == len(SPEC) + 1
    paper.check(map(paper.count, ADAPTER_CLAIMS))


def test_a_wrong_print_is_caught():
    wrong = dataclasses.replace(CLAIMS["Prompt B/32"], printed=58.5)
    with pytest.raises(ParityError, match=r"Prompt B/32 \(Table 2\): 58\.24 GMACs"):
        paper.check([paper.count(wrong)])


def test_sizes_are_those_of_the_printed_parameters():
    towers = ((768, 12), (512, 12))
    adapters = sum(layers * (2 * ADAPTER_WIDTH * width + ADAPTER_WIDTH + width) for width, layers in towers)
    prompts = sum(layers * PROMPTS * width for width, layers in towers)
    assert (adapters, prompts) == (261_312, 76_800)
    assert (round(adapters / 1e6, 2), round(prompts / 1e6, 2)) == (0.26, 0.08)


def test_an_adapter_costs_two_thin_products_per_token():
    before, after = complexity(PLAIN, BACKBONE), with_adapters(PLAIN, BACKBONE)
    tokens = 12 * 12 * 50
    assert after.mlp - before.mlp == tokens * 2 * 768 * 8
    assert after.elementwise - before.elementwise == tokens * 8
    assert dataclasses.replace(after, mlp=before.mlp, elementwise=before.elementwise) == before


def test_prompts_pass_every_block_as_tokens():
    schedule = prompted_schedule(CLAIMS["Prompt B/32"], BACKBONE)
    assert {(block.clips, block.tokens_attention, block.tokens_mlp) for block in schedule.blocks} == {(12, 55, 55)}
    before, after = complexity(PLAIN, BACKBONE), complexity(schedule, BACKBONE)
    assert after.mlp - before.mlp == 12 * 12 * 5 * 8 * 768**2
    assert after.attention_products - before.attention_products == 12 * 12 * 2 * (55**2 - 50**2) * 768
    assert after.patch_convolution == before.patch_convolution
    assert after.output_projection == before.output_projection


def test_prompts_as_keys_and_values_cost_far_less_than_is_printed():
    before, after = complexity(PLAIN, BACKBONE), with_key_prompts(PLAIN, BACKBONE)
    assert after.attention_projections - before.attention_projections == 12 * 5 * 2 * 768**2
    assert after.attention_products - before.attention_products == 12 * 12 * 2 * 50 * 5 * 768
    assert after.mlp == before.mlp
    assert CLAIMS["Prompt B/32"].printed - after.gmacs > 5


@pytest.mark.parametrize(("label", "tokens"), [("VoP B/16", 2368), ("DGL B/16", 2416)])
def test_what_is_not_known_is_said_with_the_tokens_that_are_printed(label, tokens):
    reason = paper.count(CLAIMS[label]).reason
    assert reason.startswith("the paper gives neither") and "211.3 is the tower without them" in reason
    assert f"its {tokens} tokens are 12 x 197 + {tokens - 12 * 197}" in reason


@pytest.mark.parametrize(
    ("adapter", "prompts", "count"), [(None, None, complexity), (8, None, with_adapters), (None, 5, with_key_prompts)]
)
def test_a_checkpoint_is_counted_with_its_additions(adapter, prompts, count):
    facts = dataclasses.replace(FACTS, adapter=adapter, prompts=prompts)
    assert counter_for(facts, "ckpt.pt") is count


@pytest.mark.parametrize(("adapter", "prompts"), [(4, None), (None, 7), (8, 5)])
def test_additions_without_a_formula_are_refused(adapter, prompts):
    facts = dataclasses.replace(FACTS, adapter=adapter, prompts=prompts)
    with pytest.raises(ProfileError, match=rf"ckpt\.pt has adapters of {adapter} and prompts of {prompts}"):
        counter_for(facts, "ckpt.pt")
