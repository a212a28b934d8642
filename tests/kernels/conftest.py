"""Fresh memory that shows, and one call of every kernel, for what is compiled ahead of time."""

import pytest
import torch

from tempme_export.kernels import attention, match, merge

CLIPS, TOKENS, FACTOR = 4, 50, 2
MANY_TOKENS = 197  # of ViT-B/16: the largest tiles of a match in one program


def _calls(dtype, device, heads):
    generator, width = torch.Generator().manual_seed(42), 64 * heads

    def draw(*shape, dtype=dtype):
        if device == "meta":
            return torch.empty(shape, dtype=dtype, device=device)
        return torch.randn(shape, generator=generator).to(device, dtype)

    x, delta = draw(CLIPS, TOKENS, width), draw(CLIPS, TOKENS, width)
    qkv, qkv_many = draw(CLIPS, TOKENS, 3 * width), draw(2, MANY_TOKENS, 3 * width)
    position = draw(CLIPS, width)
    weight, bias = draw(width, dtype=torch.float32), draw(width, dtype=torch.float32)
    size = draw(CLIPS, TOKENS, dtype=torch.float32).square().round() + 1
    within = _assign(CLIPS, TOKENS, 1, 7).to(device)
    across = _assign(CLIPS // FACTOR, TOKENS * FACTOR, FACTOR, 30).to(device)
    return {
        "match_keys": lambda: match.match_keys(qkv, heads, 1, 7),
        "match_keys_many": lambda: match.match_keys(qkv_many, heads, 1, 7),
        "match_clips": lambda: match.match_clips(x, delta, FACTOR, FACTOR, 30),
        "merge_within": lambda: merge.merge_norm(x, delta, size, within, None, weight, bias, 1, 1, 7),
        "merge_first": lambda: merge.merge_norm(x, delta, None, within, None, weight, bias, 1, 1, 7),
        "merge_across": lambda: merge.merge_norm(x, delta, size, across, position, weight, bias, FACTOR, FACTOR, 30),
        "add_norm": lambda: merge.add_norm(x, delta, weight, bias),
        "layer_norm": lambda: merge.layer_norm(x, weight, bias),
        "attention": lambda: attention.attention(qkv, None, heads),
        "attention_bias": lambda: attention.attention(qkv, size.log(), heads),
        "attention_match": lambda: attention.attention_match(qkv, size.log(), heads, 1, 7),
    }


def _assign(items, n_tokens, n_cls, r):
    """The first r tokens of A go to the first token of B: some assignment that a match could have found."""
    set_a, set_b = (torch.arange(n_cls, n_tokens)[k::2] for k in (n_cls % 2, 1 - n_cls % 2))
    first_b = n_tokens - r - len(set_b)
    assign = torch.arange(n_tokens)
    assign[set_b] = first_b + torch.arange(len(set_b))
    assign[set_a[:r]] = first_b
    assign[set_a[r:]] = n_cls + torch.arange(len(set_a) - r)
    return assign.to(torch.int32).expand(items, -1)


@pytest.fixture(autouse=True)
def _poisoned(poisoned_memory):
    pass


@pytest.fixture(scope="session")
def kernel_calls():
    """{name: a call of a launcher} for a dtype, a device and heads of 64; together they launch every kernel."""
    return _calls
