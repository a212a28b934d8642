"""Fresh memory that shows where it was not written."""

import functools

import pytest
import torch

_WRONG_INT = -(2**30)


def _poison(make):
    @functools.wraps(make)
    def poisoned(*args, **kwargs):
        out = make(*args, **kwargs)
        if out.is_meta or type(out) is not torch.Tensor:
            return out
        if out.is_floating_point():
            return out.fill_(torch.nan)
        return out.fill_(_WRONG_INT) if out.dtype in (torch.int32, torch.int64) else out

    return poisoned


@pytest.fixture
def poisoned_memory(monkeypatch):
    """Fresh memory holds NaN, or a number far out of range, so that an output not fully written shows."""
    for name in ("empty", "empty_like", "empty_strided"):
        monkeypatch.setattr(torch, name, _poison(getattr(torch, name)))
    for name in ("new_empty", "new_empty_strided"):
        monkeypatch.setattr(torch.Tensor, name, _poison(getattr(torch.Tensor, name)))
