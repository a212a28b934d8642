"""The kernels themselves: on a GPU, or under TRITON_INTERPRET=1 on a CPU. The same tests, and none in between."""

import dataclasses
from pathlib import Path

import pytest
import torch

from tempme_export.kernels import launch
from tempme_export.kernels.launch import AttentionConfig, MatchConfig, RowsConfig, Tiles, power_of_two

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Compiled, everything here is a GPU test: `pytest -m gpu` takes all of it."""
    if not launch.interpreting():
        for item in items:
            if HERE in item.path.parents:
                item.add_marker("gpu")


@pytest.fixture(scope="session", autouse=True)
def device():
    """Where the tensors of these tests lie."""
    if launch.interpreting():
        return "cpu"
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU, or TRITON_INTERPRET=1")
    return "cuda"


def _large_match(n_a: int, width: int, *others: int) -> MatchConfig:
    config = launch.match_config(n_a, width, *others)
    block = min(512, power_of_two(n_a, 16))
    if config.resident:
        return dataclasses.replace(config, block_b=block)
    return dataclasses.replace(config, block_a=block, block_b=block, block_c=min(256, power_of_two(width, 16)))


def _large_rows(width: int, n_a: int) -> RowsConfig:
    return RowsConfig(128, min(256, power_of_two(n_a, 16)), num_warps=4)


def _large_attention(n_tokens: int, dtype: torch.dtype) -> AttentionConfig:
    block = min(256, power_of_two(n_tokens, 16))
    return AttentionConfig(block, block, num_warps=4)


@pytest.fixture
def shipped_tiles():
    """Leaves the launchers their own tiles when interpreting too."""


@pytest.fixture(autouse=True)
def _large_tiles(request):
    """The interpreter takes as long for a small tile as for a large one: fewer programs where tiles are not the point.

    A GPU runs what ships, and so do tests that ask for `shipped_tiles` or pass a configuration.
    """
    if not launch.interpreting() or "shipped_tiles" in request.fixturenames:
        yield
        return
    with launch.tiled(Tiles(_large_match, _large_rows, _large_attention)):
        yield


@pytest.fixture(scope="session")
def check_close(step_error):
    """Asserts that every row [..., D] is a float64 result but for the rounding of one step, relative to the row."""

    def check(found, expected):
        assert found.shape == expected.shape and expected.dtype == torch.float64
        error = (found.double().cpu() - expected.cpu()).norm(dim=-1)
        limit = step_error(found.dtype) * expected.cpu().norm(dim=-1)
        worst = (error / limit).max().item() if error.numel() else 0.0
        assert (error <= limit).all(), f"a row is off by {worst:.3g} times what {found.dtype} rounds"

    return check


def _some_assign(items, n_tokens, n_cls, r, seed=0):
    generator = torch.Generator().manual_seed(seed)
    set_a, set_b = (torch.arange(n_cls, n_tokens)[k::2] for k in (n_cls % 2, 1 - n_cls % 2))
    first_b = n_tokens - r - len(set_b)
    assign = torch.arange(n_tokens, dtype=torch.int32).repeat(items, 1)
    assign[:, set_b] = first_b + torch.arange(len(set_b), dtype=torch.int32)
    for row in assign:
        order = set_a[torch.randperm(len(set_a), generator=generator)]
        # Few partners, so that several join one and others none.
        partner = torch.randint(0, max(1, len(set_b) // 3), (r,), generator=generator)
        row[order[:r]] = (first_b + partner).to(torch.int32)
        row[order[r:].sort().values] = n_cls + torch.arange(len(set_a) - r, dtype=torch.int32)
    return assign


@pytest.fixture(scope="session")
def some_assign():
    """An assignment [B, N] int32 that a match could have found, drawn at random: no metric is needed."""
    return _some_assign


def _joined(x, factor, n_cls):
    if factor == 1:
        return x
    each, items = n_cls // factor, []
    for first in range(0, len(x), factor):
        clips = x[first : first + factor]
        items.append(torch.cat([*(clip[:each] for clip in clips), *(clip[each:] for clip in clips)]))
    return torch.stack(items)


@pytest.fixture(scope="session")
def joined():
    """[B * factor, n, ...] -> [B, n * factor, ...] by the words of spec section 3: class tokens clip by clip, then
    patches clip by clip."""
    return _joined


def _norm_by_definition(x, weight, bias):
    x, weight, bias = x.double().cpu(), weight.double().cpu(), bias.double().cpu()
    centred = x - x.mean(dim=-1, keepdim=True)
    return centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt() * weight + bias


@pytest.fixture(scope="session")
def norm_by_definition():
    """LayerNorm over the last dimension in float64, with the epsilon of every CLIP."""
    return _norm_by_definition


def _attention_by_definition(qkv, bias, heads):
    q, k, v = qkv.double().cpu().unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    logits = q @ k.mT
    if bias is not None:
        logits = logits + bias.double().cpu()[:, None, None, :]
    return (logits.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)


@pytest.fixture(scope="session")
def attention_by_definition():
    """softmax(q k^T + bias of the key) v in float64, head by head."""
    return _attention_by_definition
