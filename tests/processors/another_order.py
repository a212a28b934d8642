"""A pytest plugin: torch as on a processor whose products add up in another order. ANOTHER_ORDER seeds it.

Every matrix product is taken over its terms shuffled and in parts, and the parts are added in float32: the freedom
that kernels have. Equal rows keep equal sums: the parts themselves are rounded from float64.
"""

import os

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

SEED = int(os.environ["ANOTHER_ORDER"])
MOST_PARTS = 24
WIDTH = (1, 3, 8, 16)[SEED % 4]  # terms of a part, as vectors have lanes


def product(a, b):
    """a [..., K] @ b [..., K, N], at least in float32."""
    terms = a.shape[-1]
    order = torch.randperm(terms, generator=torch.Generator().manual_seed(1000 * SEED + terms))
    wide = torch.promote_types(a.dtype, torch.float32)
    a, b = a.double()[..., order], b.double()[..., order, :]
    step = max(WIDTH, -(-terms // MOST_PARTS))
    return sum((a[..., k : k + step] @ b[..., k : k + step, :]).to(wide) for k in range(0, terms, step))


class AnotherOrder(TorchDispatchMode):
    """Takes over the products of dense tensors; those that are traced, or empty, go their way."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        factors = {"mm": args[:2], "bmm": args[:2], "addmm": args[1:3], "baddbmm": args[1:3]}.get(name)
        plain = factors and not kwargs and all(type(x) in (torch.Tensor, torch.nn.Parameter) for x in args)
        if not plain or args[0].is_meta or not all(x.numel() and x.is_floating_point() for x in factors):
            return func(*args, **(kwargs or {}))
        found = product(*factors)
        return (found if len(args) == 2 else found + args[0]).to(args[0].dtype)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item):
    with AnotherOrder():
        yield
