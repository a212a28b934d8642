"""Fresh memory that shows where it was not written."""

import pytest
import torch


@pytest.fixture
def poisoned_memory():
    """Fresh memory holds NaN, or the largest integer, so that an output not fully written shows: torch's own switch,
    `torch.utils.deterministic.fill_uninitialized_memory`, which is on where algorithms are to be deterministic."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])
