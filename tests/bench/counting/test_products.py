import dataclasses

import pytest

from tempme_export.bench.counting.products import BlockTokens, Product, Products, check_tokens, tokens_of_schedule
from tempme_export.errors import InputError, ParityError

# One block of a tower 8 channels wide: 2 clips of 5 tokens in attention, 4 in the MLP; 3 channels out.
STEM = Product("convolution", 1, 8, 12, 8)
BLOCK = (
    Product("weights", 1, 10, 8, 24),
    Product("attention", 2, 5, 8, 5),
    Product("attention", 2, 5, 5, 8),
    Product("weights", 1, 10, 8, 8),
    Product("merging", 2, 2, 8, 3),
    Product("weights", 1, 8, 8, 32),
    Product("weights", 1, 8, 32, 8),
)
HEAD = Product("weights", 1, 2, 8, 3)


def test_parts_by_hand():
    parts = Products((STEM, *BLOCK, HEAD), 1).parts(8)
    assert parts.patch_convolution == 8 * 12 * 8
    assert parts.attention_projections == 10 * 8 * 24 + 10 * 8 * 8
    assert parts.attention_products == 2 * 2 * 5 * 5 * 8
    assert parts.mlp == 2 * 8 * 8 * 32
    assert parts.output_projection == 2 * 8 * 3
    assert parts.merging == 2 * 2 * 8 * 3
    assert parts.products == sum(one.macs for one in (STEM, *BLOCK, HEAD)) - parts.merging
    assert parts.gmacs == parts.products / 1e9


def test_tokens_by_hand():
    tokens = Products((STEM, *BLOCK, *BLOCK, HEAD), 1).tokens(8)
    assert tokens.to_dict() == {"clips": [2, 2], "attention": [5, 5], "mlp": [4, 4]}


def test_a_batch_shares_evenly_or_is_refused():
    both = Products((STEM, *BLOCK, HEAD), 2)
    assert both.tokens(8).clips == (1,)
    assert both.parts(8).mlp == 8 * 8 * 32
    with pytest.raises(ParityError, match=r"3 videos of a call do not share patch_convolution"):
        Products((Product("weights", 1, 1, 1, 1), *BLOCK, HEAD), 3).parts(8)


def test_an_output_as_wide_as_the_tower_is_no_projection_of_attention():
    parts = Products((STEM, *BLOCK, Product("weights", 1, 2, 8, 8)), 1).parts(8)
    assert parts.output_projection == 2 * 8 * 8


def test_a_stem_as_product_of_patches_is_the_patch_convolution():
    parts = Products((Product("weights", 1, 8, 8, 8), *BLOCK, HEAD), 1).parts(8)
    assert parts.patch_convolution == 8 * 8 * 8


@pytest.mark.parametrize("items", [(), (Product("merging", 1, 2, 2, 2),)], ids=["empty", "merging"])
def test_nothing_to_count_is_an_error(items):
    with pytest.raises(InputError, match="no matrix product"):
        Products(items, 1).parts(8)


def test_a_block_without_attention_or_mlp_is_no_block():
    with pytest.raises(InputError, match="block 0 projects 10 tokens and attends over 0"):
        Products((STEM, BLOCK[0], *BLOCK[3:], HEAD), 1).tokens(8)
    with pytest.raises(InputError, match="block 0 has 0 tokens of 2 clips in its MLP"):
        Products((STEM, *BLOCK[:5], HEAD), 1).tokens(8)


def test_tokens_of_the_schedule_by_hand(tiny_recipe):
    """17 - 2 tokens; 2 x 15 - 30 % - 10 %; 2 x 19 - 30 % - 10 %, each rounded down."""
    assert tokens_of_schedule(tiny_recipe("clips").schedule) == BlockTokens((4, 2, 1), (17, 21, 27), (15, 19, 25))


def test_other_tokens_than_the_schedules_are_named_block_by_block(tiny_recipe):
    schedule = tiny_recipe("none").schedule
    found = dataclasses.replace(tokens_of_schedule(schedule), attention=(17, 16, 17), mlp=(17, 16, 16))
    said = "the encoder does not have .*: block 1: 4 clips, 16 tokens in attention, 16 in the MLP instead of 4, 17, 17"
    with pytest.raises(ParityError, match=f"{said}; block 2"):
        check_tokens(found, schedule, "the encoder")
    check_tokens(tokens_of_schedule(schedule), schedule, "the encoder")
