"""Where the launchers can reach tensors."""

import pytest
import torch

from tempme_export.kernels import attention, launch, match, merge


@pytest.mark.skipif(launch.interpreting(), reason="TRITON_INTERPRET is set: tensors may lie anywhere")
def test_a_cpu_tensor_without_the_interpreter():
    x, qkv, weight = torch.zeros(4, 21, 64), torch.zeros(4, 21, 192), torch.ones(64)
    assign = torch.zeros(4, 21, dtype=torch.int32)
    for name, run in (
        ("metric", lambda: match.match_tokens(x, 1, 5)),
        ("qkv", lambda: match.match_keys(qkv, 1, 1, 5)),
        ("x", lambda: match.match_clips(x, x, 2, 2, 5)),
        ("x", lambda: merge.merge_tokens(x, None, assign, 1, 5)),
        ("x", lambda: merge.merge_norm(x, x, None, assign, None, weight, weight, 1, 1, 5)),
        ("x", lambda: merge.add_norm(x, x, weight, weight)),
        ("x", lambda: merge.layer_norm(x, weight, weight)),
        ("qkv", lambda: attention.attention(qkv, None, 1)),
        ("qkv", lambda: attention.attention_match(qkv, None, 1, 1, 5)),
    ):
        with pytest.raises(ValueError, match=f"{name} is on cpu, and Triton kernels need a GPU .*ops"):
            run()
